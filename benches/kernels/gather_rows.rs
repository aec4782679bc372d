use burrstone::DType;
use burrstone::ops::Ops;
use criterion::Criterion;

use crate::problems::gather_rows::PROBLEMS;
use crate::support::{Lab, Work};

pub fn bench(criterion: &mut Criterion, lab: &Lab) {
    let tokens = 512;
    let step = lab.step_with_logits(0, tokens, 0, (0..tokens as u32).collect());
    for problem in PROBLEMS {
        let width = problem.width;
        let x = lab.buffer(DType::F32, tokens * width);
        let mut out = lab.buffer(DType::F32, tokens * width);
        let work = Work { bytes: 2 * tokens * width * 4, flops: 0 };
        lab.measure(criterion, "gather_rows", &format!("{}/{tokens}", problem.label), work, || {
            lab.cpu.gather_rows(&step, 0..tokens, width, &x, &mut out).expect("rows");
        });
    }
}
