use criterion::Criterion;

use crate::problems::rms_norm::PROBLEMS;
use crate::support::{Bench, Lab, Work};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    for problem in PROBLEMS {
        let width = problem.width;
        let weight = lab.vector(width);
        for &rows in lab.device.rows() {
            let mut residual = lab.buffer(lab.wide_dtype(), rows * width);
            let delta = lab.buffer(lab.wide_dtype(), rows * width);
            let mut out = lab.buffer(lab.device.dtype(), rows * width);
            // The residual is read and written, the delta read, the output written.
            let work = Work { bytes: rows * width * (3 * lab.wide() + lab.narrow()), flops: 5 * rows * width };
            lab.measure(criterion, "rms_norm", &format!("{}/{rows}", problem.label), work, || {
                lab.device.rms_norm(rows, width, &mut residual, Some(&delta), &weight, 1e-5, &mut out)
            });
        }
    }
}
