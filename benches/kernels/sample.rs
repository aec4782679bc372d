use burrstone::DType;
use burrstone::ops::{Ops, SampleRow};
use criterion::Criterion;

use crate::support::{Lab, MODELS, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    let greedy = SampleRow {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        history: &[],
        banned: &[],
        seed: 1,
        position: 1,
    };
    let cases = [
        ("greedy", greedy.clone()),
        ("temperature", SampleRow { temperature: 1.0, ..greedy.clone() }),
        ("top-p", SampleRow { temperature: 1.0, top_p: 0.9, ..greedy.clone() }),
        ("top-k", SampleRow { temperature: 1.0, top_k: 50, ..greedy }),
    ];
    for model in &MODELS {
        let mut logits = lab.buffer(DType::F32, model.vocab);
        let values: Vec<f32> = (0..model.vocab).map(|i| (i * 7919 % 10_007) as f32 / 1000.0).collect();
        logits.write(&values).expect("the logits");
        for (case, row) in &cases {
            let work = Work { bytes: 4 * model.vocab, flops: 13 * model.vocab };
            lab.measure(criterion, "sample", &format!("{}/{case}", model.name), work, || {
                lab.cpu.sample(model.vocab, &mut logits, std::slice::from_ref(row)).expect("a token");
            });
        }
    }
}
