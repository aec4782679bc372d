use criterion::Criterion;

use crate::problems::act_mul::PROBLEMS;
use crate::support::{Bench, Lab, Work};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    for problem in PROBLEMS {
        let width = problem.width;
        for &rows in lab.device.rows() {
            let gate_up = lab.buffer(lab.wide_dtype(), rows * 2 * width);
            let mut out = lab.buffer(lab.device.dtype(), rows * width);
            if lab.device.act_mul(rows, width, &gate_up, &mut out).is_none() {
                return;
            }
            // The exponential counts as ten.
            let work = Work { bytes: rows * width * (2 * lab.wide() + lab.narrow()), flops: 13 * rows * width };
            lab.measure(criterion, "act_mul", &format!("{}/{rows}", problem.label), work, || {
                lab.device.act_mul(rows, width, &gate_up, &mut out).expect("a kernel")
            });
        }
    }
}
