use burrstone::DType;
use burrstone::ops::{CacheShape, Ops, RotaryKvWrite};
use criterion::Criterion;

use crate::problems::rotary_kv_write::PROBLEMS;
use crate::support::{DTYPE, Lab, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    for problem in PROBLEMS {
        let (heads, kv_heads, head_dim) = (problem.heads, problem.kv_heads, problem.head_dim);
        let width = (heads + 2 * kv_heads) * head_dim;
        for rows in [1, 512] {
            let step = lab.step(0, rows, head_dim);
            let pages = rows.div_ceil(16);
            let shape = CacheShape { layers: 1, pages, page_size: 16, kv_heads, head_dim, dtype: DTYPE };
            let mut cache = lab.cpu.cache(shape).expect("a cache");
            let qkv = lab.buffer(DType::F32, rows * width);
            let mut query = lab.buffer(DTYPE, rows * heads * head_dim);
            let work = Work { bytes: rows * width * (4 + DTYPE.size()), flops: 3 * rows * width };
            lab.measure(criterion, "rotary_kv_write", &format!("{}/{rows}", problem.label), work, || {
                let args = RotaryKvWrite {
                    qkv: &qkv,
                    query: &mut query,
                    cache: &mut cache,
                    layer: 0,
                    heads,
                    kv_heads,
                    head_dim,
                    rotary_dim: head_dim,
                    qk_norm: None,
                };
                lab.cpu.rotary_kv_write(&step, args).expect("a write");
            });
        }
    }
}
