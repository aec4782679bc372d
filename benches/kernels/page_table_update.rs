use criterion::Criterion;

use crate::problems::page_table_update::PROBLEMS;
use crate::support::{Bench, Lab, Work, batch};

/// The upload of a decode step of 256 sequences, in whose table of 65 536 pages this many entries change.
pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    for problem in PROBLEMS {
        let mut batch = batch(&[(0, 1); 256]);
        batch.page_table.append(&vec![0; 1 << 16]);
        let mut step = lab.device.step().expect("a step");
        let mut round = 0;
        let work = Work { bytes: 8 * problem.changes, flops: 0 };
        lab.measure(criterion, "page_table_update", &format!("{}/{}", problem.label, problem.changes), work, 1, |_| {
            round += 1;
            for change in 0..problem.changes {
                batch.page_table.write((round * 31 + change * 61) % (1 << 16), &[1]);
            }
            lab.device.upload(&batch, &mut step).map(|_| ())
        });
    }
}
