use burrstone::DType;
use burrstone::ops::Ops;
use criterion::Criterion;

use crate::support::{Lab, MODELS, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    for model in &MODELS {
        for rows in [1, 32] {
            let logits = lab.buffer(DType::F32, rows * model.vocab);
            let targets: Vec<u32> = (0..rows as u32).collect();
            let work = Work { bytes: 4 * rows * model.vocab, flops: 13 * rows * model.vocab };
            lab.measure(criterion, "target_logprobs", &format!("{}/{rows}", model.name), work, || {
                lab.cpu.target_logprobs(model.vocab, &logits, &targets).expect("log-probabilities");
            });
        }
    }
}
