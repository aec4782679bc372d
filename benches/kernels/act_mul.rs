use criterion::Criterion;

use crate::problems::act_mul::PROBLEMS;
use crate::support::{Bench, Lab, Work};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    for problem in PROBLEMS {
        let width = problem.width;
        for &rows in lab.device.rows() {
            // The exponential counts as ten operations.
            let work = Work { bytes: rows * width * (2 * lab.wide() + lab.narrow()), flops: 13 * rows * width };
            let sets = lab.sets(work.bytes);
            let gate_up = lab.buffers(sets, lab.wide_dtype(), rows * 2 * width);
            let mut out = lab.buffers(sets, lab.device.dtype(), rows * width);
            if lab.device.act_mul(rows, width, &gate_up[0], &mut out[0]).is_none() {
                return;
            }
            lab.measure(criterion, "act_mul", &format!("{}/{rows}", problem.label), work, sets, |set| {
                lab.device.act_mul(rows, width, &gate_up[set], &mut out[set]).expect("a kernel")
            });
        }
    }
}
