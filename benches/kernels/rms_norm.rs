use criterion::Criterion;

use crate::problems::rms_norm::PROBLEMS;
use crate::support::{Bench, Lab, Work};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    for problem in PROBLEMS {
        let width = problem.width;
        let weight = lab.vector(width);
        for &rows in lab.device.rows() {
            // The residual is read and written, the delta is read, the output is written.
            let work = Work { bytes: rows * width * (3 * lab.wide() + lab.narrow()), flops: 5 * rows * width };
            let sets = lab.sets(work.bytes);
            let mut residual = lab.buffers(sets, lab.wide_dtype(), rows * width);
            let delta = lab.buffers(sets, lab.wide_dtype(), rows * width);
            let mut out = lab.buffers(sets, lab.device.dtype(), rows * width);
            lab.measure(criterion, "rms_norm", &format!("{}/{rows}", problem.label), work, sets, |set| {
                let (residual, out) = (&mut residual[set], &mut out[set]);
                lab.device.rms_norm(rows, width, residual, Some(&delta[set]), &weight, 1e-5, out)
            });
        }
    }
}
