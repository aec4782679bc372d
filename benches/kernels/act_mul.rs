use burrstone::DType;
use burrstone::ops::{Activation, Ops};
use criterion::Criterion;

use crate::problems::act_mul::PROBLEMS;
use crate::support::{DTYPE, Lab, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    for problem in PROBLEMS {
        let width = problem.width;
        for rows in [1, 512] {
            let gate_up = lab.buffer(DType::F32, rows * 2 * width);
            let mut out = lab.buffer(DTYPE, rows * width);
            // The exponential counts as ten.
            let work = Work { bytes: rows * width * (8 + DTYPE.size()), flops: 13 * rows * width };
            lab.measure(criterion, "act_mul", &format!("{}/{rows}", problem.label), work, || {
                lab.cpu.act_mul(rows, width, Activation::Silu, &gate_up, &mut out).expect("an activation");
            });
        }
    }
}
