use burrstone::DType;
use burrstone::ops::SampleRow;
use criterion::Criterion;

use crate::problems::sample::PROBLEMS;
use crate::support::{Bench, Lab, Work};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    let greedy = SampleRow { seed: 1, position: 1, ..SampleRow::GREEDY };
    let cases = [
        ("greedy", greedy.clone()),
        ("temperature", SampleRow { temperature: 1.0, ..greedy.clone() }),
        ("top-p", SampleRow { temperature: 1.0, top_p: 0.9, ..greedy.clone() }),
        ("top-k", SampleRow { temperature: 1.0, top_k: 50, ..greedy.clone() }),
        ("typical-p", SampleRow { temperature: 1.0, typical_p: 0.9, ..greedy }),
    ];
    for problem in PROBLEMS {
        let vocab = problem.vocab;
        for rows in [1, 512] {
            let values: Vec<f32> = (0..rows * vocab).map(|i| (i * 7919 % 10_007) as f32 / 1000.0).collect();
            let work = Work { bytes: 4 * rows * vocab, flops: 13 * rows * vocab };
            let sets = lab.sets(work.bytes);
            let mut logits: Vec<_> = (0..sets).map(|_| lab.buffer_of(DType::F32, &values)).collect();
            for (case, row) in &cases {
                let mut step = lab.step_for_logits(vec![row.clone(); rows], Vec::new());
                lab.measure(criterion, "sample", &format!("{}/{case}-{rows}", problem.label), work, sets, |set| {
                    lab.device.sample(&mut step, 0..rows, vocab, &mut logits[set])
                });
            }
        }
    }
}
