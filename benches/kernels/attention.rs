use burrstone::ops::{Attention, Scoring};
use criterion::Criterion;

use crate::problems::attention::PROBLEMS;
use crate::support::{Bench, Lab, Work, slots};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    let dtype = lab.device.dtype();
    for problem in PROBLEMS {
        let (heads, d) = (problem.heads, problem.head_dim);
        for (case, sequences) in lab.device.sequences() {
            let step = lab.step(&sequences, vec![0]);
            let (cache, shape) = lab.cache(1, slots(&sequences), problem.kv_heads, d);
            let tokens: usize = sequences.iter().map(|(_, len)| len).sum();
            let query = lab.buffer(dtype, tokens * heads * d);
            let mut out = lab.buffer(dtype, tokens * heads * d);
            let seen: usize = sequences.iter().flat_map(|&(past, len)| past + 1..=past + len).sum();
            let work =
                Work { bytes: shape.bytes() + 2 * tokens * heads * d * lab.narrow(), flops: 4 * seen * heads * d };
            lab.measure(criterion, "attention", &format!("{}/{case}", problem.label), work, || {
                let scale = 1.0 / (d as f32).sqrt();
                let (query, cache, out, scoring) = (&query, &cache, &mut out, Scoring::scaled(scale));
                lab.device.attention(&step, Attention { query, cache, layer: 0, out, heads, scoring })
            });
        }
    }
}
