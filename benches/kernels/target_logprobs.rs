use burrstone::DType;
use criterion::Criterion;

use crate::problems::target_logprobs::PROBLEMS;
use crate::support::{Bench, Lab, Work};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    for problem in PROBLEMS {
        let vocab = problem.vocab;
        for rows in [1, 32] {
            let sets = lab.sets(4 * rows * vocab);
            let logits = lab.buffers(sets, DType::F32, rows * vocab);
            let mut step = lab.step_for_logits(Vec::new(), (0..rows as u32).collect());
            let work = Work { bytes: 4 * rows * vocab, flops: 13 * rows * vocab };
            lab.measure(criterion, "target_logprobs", &format!("{}/{rows}", problem.label), work, sets, |set| {
                lab.device.target_logprobs(&mut step, 0..rows, vocab, &logits[set])
            });
        }
    }
}
