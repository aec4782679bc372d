use burrstone::DType;
use burrstone::ops::Ops;
use criterion::Criterion;

use crate::support::{DTYPE, Lab, MODELS, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    for model in &MODELS {
        let qkv = (model.heads + 2 * model.kv_heads) * model.head_dim;
        let layers = [
            ("qkv", qkv, model.hidden),
            ("o", model.hidden, model.heads * model.head_dim),
            ("gate_up", 2 * model.inter, model.hidden),
            ("down", model.hidden, model.inter),
        ];
        for (layer, n, k) in layers {
            let matrices = lab.matrices(n, k);
            for rows in [1, 8, 64, 512] {
                let x = lab.buffer(DTYPE, rows * k);
                let mut out = lab.buffer(DType::F32, rows * n);
                let mut turn = matrices.iter().cycle();
                let work = Work { bytes: n * k * DTYPE.size(), flops: 2 * rows * n * k };
                lab.measure(criterion, "matmul", &format!("{}/{layer}/{rows}", model.name), work, || {
                    let matrix = turn.next().expect("a matrix");
                    lab.cpu.matmul(rows, &x, matrix, &mut out).expect("a product");
                });
            }
        }
    }
}
