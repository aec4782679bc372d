use burrstone::ops::{Attention, CacheShape, Ops};
use criterion::Criterion;

use crate::problems::attention::PROBLEMS;
use crate::support::{DTYPE, Lab, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    for problem in PROBLEMS {
        let (heads, d) = (problem.heads, problem.head_dim);
        for (case, past, len) in [("prefill-512", 0, 512), ("prefill-2048", 0, 2048), ("decode-2048", 2047, 1)] {
            let step = lab.step(past, len, 0);
            let pages = (past + len).div_ceil(16);
            let shape =
                CacheShape { layers: 1, pages, page_size: 16, kv_heads: problem.kv_heads, head_dim: d, dtype: DTYPE };
            let cache = lab.cpu.cache(shape).expect("a cache");
            let query = lab.buffer(DTYPE, len * heads * d);
            let mut out = lab.buffer(DTYPE, len * heads * d);
            let seen: usize = (past..past + len).map(|position| position + 1).sum();
            let work = Work { bytes: shape.bytes(), flops: 4 * seen * heads * d };
            lab.measure(criterion, "attention", &format!("{}/{case}", problem.label), work, || {
                let scale = 1.0 / (d as f32).sqrt();
                let (query, cache, out) = (&query, &cache, &mut out);
                let args = Attention { query, cache, layer: 0, out, heads, scale, window: None };
                lab.cpu.attention(&step, args).expect("attention");
            });
        }
    }
}
