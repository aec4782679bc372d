use criterion::Criterion;

use crate::problems::embedding::PROBLEMS;
use crate::support::{Bench, Lab, Work};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    for problem in PROBLEMS {
        let width = problem.width;
        let tables = lab.matrices(32_000, width);
        for &rows in lab.device.rows() {
            let step = lab.step(&[(0, rows)], vec![0]);
            let work = Work { bytes: rows * width * (lab.wide() + lab.narrow()), flops: 0 };
            let sets = lab.sets(work.bytes);
            let mut out = lab.buffers(sets, lab.wide_dtype(), rows * width);
            lab.measure(criterion, "embedding", &format!("{}/{rows}", problem.label), work, sets, |set| {
                lab.device.embedding(&step, &tables[set % tables.len()], &mut out[set])
            });
        }
    }
}
