use burrstone::DType;
use burrstone::ops::Ops;
use criterion::Criterion;

use crate::problems::matmul::PROBLEMS;
use crate::support::{DTYPE, Lab, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    for problem in PROBLEMS {
        let (n, k) = (problem.n, problem.k);
        let matrices = lab.matrices(n, k);
        for rows in [1, 8, 64, 512] {
            let x = lab.buffer(DTYPE, rows * k);
            let mut out = lab.buffer(DType::F32, rows * n);
            let mut turn = matrices.iter().cycle();
            let work = Work { bytes: n * k * DTYPE.size(), flops: 2 * rows * n * k };
            lab.measure(criterion, "matmul", &format!("{}/{rows}", problem.label), work, || {
                let matrix = turn.next().expect("a matrix");
                lab.cpu.matmul(rows, &x, matrix, &mut out).expect("a product");
            });
        }
    }
}
