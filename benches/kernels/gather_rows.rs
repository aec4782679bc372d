use criterion::Criterion;

use crate::problems::gather_rows::PROBLEMS;
use crate::support::{Bench, Lab, Work};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    let tokens = 512;
    let step = lab.step(&[(0, tokens)], (0..tokens as u32).collect());
    for problem in PROBLEMS {
        let width = problem.width;
        let work = Work { bytes: 2 * tokens * width * lab.wide(), flops: 0 };
        let sets = lab.sets(work.bytes);
        let x = lab.buffers(sets, lab.wide_dtype(), tokens * width);
        let mut out = lab.buffers(sets, lab.wide_dtype(), tokens * width);
        lab.measure(criterion, "gather_rows", &format!("{}/{tokens}", problem.label), work, sets, |set| {
            lab.device.gather_rows(&step, 0..tokens, width, &x[set], &mut out[set])
        });
    }
}
