use burrstone::DType;
use burrstone::ops::Ops;
use criterion::Criterion;

use crate::problems::target_logprobs::PROBLEMS;
use crate::support::{Lab, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    for problem in PROBLEMS {
        for rows in [1, 32] {
            let logits = lab.buffer(DType::F32, rows * problem.vocab);
            let targets: Vec<u32> = (0..rows as u32).collect();
            let work = Work { bytes: 4 * rows * problem.vocab, flops: 13 * rows * problem.vocab };
            let mut step = lab.step_for_logits(Vec::new(), targets);
            lab.measure(criterion, "target_logprobs", &format!("{}/{rows}", problem.label), work, || {
                lab.cpu.target_logprobs(&mut step, 0..rows, problem.vocab, &logits).expect("rows");
                lab.cpu.scored(&mut step).expect("log-probabilities");
            });
        }
    }
}
