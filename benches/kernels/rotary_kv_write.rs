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
            let (mut cache, _) = lab.cache(1, rows, kv_heads, head_dim);
            let factors = lab.buffer(DType::F32, rows * head_dim);
            let qkv = lab.buffer(lab.wide_dtype(), rows * width);
            let mut query = lab.buffer(lab.device.dtype(), rows * heads * head_dim);
            let work = Work { bytes: rows * width * (lab.wide() + lab.narrow()), flops: 3 * rows * width };
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
                    rope: RopeTable { factors: &factors, rows },
                    qk_norm: None,
                };
                lab.device.rotary_kv_write(&step, args)
            });
        }
    }
}
