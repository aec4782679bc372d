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
            let tokens: usize = sequences.iter().map(|(_, len)| len).sum();
            let seen: usize = sequences.iter().flat_map(|&(past, len)| past + 1..=past + len).sum();
            let kv_bytes = 2 * slots(&sequences) * problem.kv_heads * d * lab.narrow();
            let work = Work { bytes: kv_bytes + 2 * tokens * heads * d * lab.narrow(), flops: 4 * seen * heads * d };
            let sets = lab.sets(work.bytes);
            let caches: Vec<_> = (0..sets).map(|_| lab.cache(1, slots(&sequences), problem.kv_heads, d).0).collect();
            let queries = lab.buffers(sets, dtype, tokens * heads * d);
            let mut outs = lab.buffers(sets, dtype, tokens * heads * d);
            lab.measure(criterion, "attention", &format!("{}/{case}", problem.label), work, sets, |set| {
                let scale = 1.0 / (d as f32).sqrt();
                let (query, cache, out, scoring) =
                    (&queries[set], &caches[set], &mut outs[set], Scoring::scaled(scale));
                lab.device.attention(&step, Attention { query, cache, layer: 0, out, heads, scoring })
            });
        }
    }
}
