use burrstone::DType;
use burrstone::ops::Ops;
use criterion::Criterion;

use crate::problems::embedding::PROBLEMS;
use crate::support::{DTYPE, Lab, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    for problem in PROBLEMS {
        let width = problem.width;
        let tables = lab.matrices(32_000, width);
        for rows in [1, 512] {
            let step = lab.step(0, rows, 0);
            let mut out = lab.buffer(DType::F32, rows * width);
            let work = Work { bytes: rows * width * (4 + DTYPE.size()), flops: 0 };
            lab.measure(criterion, "embedding", &format!("{}/{rows}", problem.label), work, || {
                lab.cpu.embedding(&step, &tables[0], &mut out).expect("rows");
            });
        }
    }
}
