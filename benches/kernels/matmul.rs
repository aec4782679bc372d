use criterion::Criterion;

use crate::problems::matmul::PROBLEMS;
use crate::support::{Bench, Lab, Work};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    for problem in PROBLEMS {
        let (n, k) = (problem.n, problem.k);
        let matrices = lab.matrices(n, k);
        for rows in [1, 8, 64, 512] {
            let x = lab.buffer(lab.device.dtype(), rows * k);
            let mut out = lab.buffer(lab.wide_dtype(), rows * n);
            let mut turn = matrices.iter().cycle();
            let bytes = (n * k + rows * k) * lab.narrow() + rows * n * lab.wide();
            let work = Work { bytes, flops: 2 * rows * n * k };
            lab.measure(criterion, "matmul", &format!("{}/{rows}", problem.label), work, || {
                lab.device.matmul(rows, &x, turn.next().expect("a matrix"), &mut out)
            });
        }
    }
}
