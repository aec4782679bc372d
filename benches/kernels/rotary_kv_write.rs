use burrstone::DType;
use burrstone::ops::{RopeTable, RotaryKvWrite};
use criterion::Criterion;

use crate::problems::rotary_kv_write::PROBLEMS;
use crate::support::{Bench, Lab, Work};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    for problem in PROBLEMS {
        let (heads, kv_heads, head_dim) = (problem.heads, problem.kv_heads, problem.head_dim);
        let width = (heads + 2 * kv_heads) * head_dim;
        for &rows in lab.device.rows() {
            let step = lab.step(&[(0, rows)], vec![0]);
            let work = Work { bytes: rows * width * (lab.wide() + lab.narrow()), flops: 3 * rows * width };
            let sets = lab.sets(work.bytes);
            let mut caches: Vec<_> = (0..sets).map(|_| lab.cache(1, rows, kv_heads, head_dim).0).collect();
            let factors = lab.buffer(DType::F32, rows * head_dim);
            let qkv = lab.buffers(sets, lab.wide_dtype(), rows * width);
            let mut queries = lab.buffers(sets, lab.device.dtype(), rows * heads * head_dim);
            lab.measure(criterion, "rotary_kv_write", &format!("{}/{rows}", problem.label), work, sets, |set| {
                let args = RotaryKvWrite {
                    qkv: &qkv[set],
                    query: &mut queries[set],
                    cache: &mut caches[set],
                    layer: 0,
                    heads,
                    kv_heads,
                    head_dim,
                    rotary_dim: head_dim,
                    rope: RopeTable { factors: &factors, rows },
                    qk_norm: None,
                };
                lab.device.rotary_kv_write(&step, args)
            });
        }
    }
}
