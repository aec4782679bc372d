use burrstone::ops::{CacheShape, Ops};
use criterion::Criterion;

use crate::problems::page_copy::PROBLEMS;
use crate::support::{DTYPE, Lab, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    for problem in PROBLEMS {
        let (layers, kv_heads, head_dim) = (problem.planes / 2, problem.kv_heads, problem.head_dim);
        let shape = CacheShape { layers, pages: 64, page_size: 16, kv_heads, head_dim, dtype: DTYPE };
        let mut cache = lab.cpu.cache(shape).expect("a cache");
        let pairs: Vec<[u32; 2]> = (0..32).map(|from| [from, from + 32]).collect();
        let work = Work { bytes: shape.bytes(), flops: 0 };
        lab.measure(criterion, "page_copy", &format!("{}/32", problem.label), work, || {
            lab.cpu.copy_pages(&mut cache, &pairs).expect("pages");
        });
    }
}
