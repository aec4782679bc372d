use burrstone::DType;
use burrstone::device::Bytes;
use burrstone::ops::{Ops, WeightView};
use criterion::Criterion;

use crate::problems::rms_norm::PROBLEMS;
use crate::support::{DTYPE, Lab, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    for problem in PROBLEMS {
        let width = problem.width;
        let data = Bytes::from(vec![0x3c; width * DTYPE.size()]);
        let view = WeightView { name: "gain".to_owned(), dtype: DTYPE, shape: vec![width], data };
        let weight = lab.cpu.vector(view).expect("a gain");
        for rows in [1, 512] {
            let mut residual = lab.buffer(DType::F32, rows * width);
            let delta = lab.buffer(DType::F32, rows * width);
            let mut out = lab.buffer(DTYPE, rows * width);
            let work = Work { bytes: rows * width * (8 + DTYPE.size()), flops: 5 * rows * width };
            lab.measure(criterion, "rms_norm", &format!("{}/{rows}", problem.label), work, || {
                let delta = Some(&delta);
                lab.cpu.rms_norm(rows, width, &mut residual, delta, &weight, 1e-5, &mut out).expect("a norm");
            });
        }
    }
}
