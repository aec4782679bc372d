use burrstone::DType;
use burrstone::ops::{Ops, SampleRow};
use criterion::Criterion;

use crate::problems::sample::PROBLEMS;
use crate::support::{Lab, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    let greedy = SampleRow { seed: 1, position: 1, ..SampleRow::GREEDY };
    let cases = [
        ("greedy", greedy.clone()),
        ("temperature", SampleRow { temperature: 1.0, ..greedy.clone() }),
        ("top-p", SampleRow { temperature: 1.0, top_p: 0.9, ..greedy.clone() }),
        ("top-k", SampleRow { temperature: 1.0, top_k: 50, ..greedy }),
    ];
    for problem in PROBLEMS {
        let mut logits = lab.buffer(DType::F32, problem.vocab);
        let values: Vec<f32> = (0..problem.vocab).map(|i| (i * 7919 % 10_007) as f32 / 1000.0).collect();
        logits.write(&values).expect("the logits");
        for (case, row) in &cases {
            let work = Work { bytes: 4 * problem.vocab, flops: 13 * problem.vocab };
            let mut step = lab.step_for_logits(vec![row.clone()], Vec::new());
            lab.measure(criterion, "sample", &format!("{}/{case}", problem.label), work, || {
                lab.cpu.sample(&mut step, 0..1, problem.vocab, &mut logits).expect("a row");
                lab.cpu.sampled(&mut step).expect("a token");
            });
        }
    }
}
