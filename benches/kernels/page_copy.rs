use criterion::Criterion;

use crate::problems::page_copy::PROBLEMS;
use crate::support::{Bench, Lab, Work};

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    for problem in PROBLEMS {
        let (mut cache, shape) = lab.cache(problem.planes / 2, 64 * 16, problem.kv_heads, problem.head_dim);
        let half = shape.pages as u32 / 2;
        let pairs: Vec<[u32; 2]> = (0..half).map(|from| [from, from + half]).collect();
        let work = Work { bytes: shape.bytes(), flops: 0 };
        lab.measure(criterion, "page_copy", &format!("{}/{half}", problem.label), work, 1, |_| {
            lab.device.copy_pages(&mut cache, &pairs)
        });
    }
}
