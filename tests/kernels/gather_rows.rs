use burrstone::DType;
use burrstone::cpu::Isa;
use burrstone::ops::Ops;
use proptest::prelude::*;

use crate::problems::gather_rows::PROBLEMS;
use crate::reference::gather_rows::gather_rows;
use crate::support::*;

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn agrees_with_the_oracle(
        threads in 1usize..4,
        tokens in 1usize..60,
        width in prop_oneof![1usize..200, one_of(PROBLEMS, |p| p.width)],
        dtype in any_dtype(),
        every in 1usize..5,
        start in 0usize..10,
    ) {
        let cpu = cpu(Isa::best(), threads);
        let values = numbers(1, tokens * width, dtype);
        let logit_rows: Vec<u32> = (0..tokens as u32).rev().step_by(every).collect::<Vec<_>>().into_iter().rev().collect();
        let step = step_of(&cpu, &vec![0; tokens], &logit_rows);
        let start = start.min(logit_rows.len());
        let x = buffer(&cpu, dtype, &values);
        let mut out = cpu.buffer(dtype, tokens * width).unwrap();
        cpu.gather_rows(&step, start..logit_rows.len(), width, &x, &mut out).unwrap();
        let expected = gather_rows(&values, width, &logit_rows[start..]);
        assert_same_bits("rows", &out.read(expected.len()).unwrap(), &expected);
        assert!(out.read(tokens * width).unwrap()[expected.len()..].iter().all(|&x| x == 0.0), "written behind the rows");
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let step = step_of(&cpu, &[0, 0], &[1]);
    let x = buffer(&cpu, DType::F32, &[1.0; 8]);
    let mut out = cpu.buffer(DType::F32, 4).unwrap();
    assert_refused(cpu.gather_rows(&step, 0..2, 4, &x, &mut out), "gather_rows", "rows");
    assert_refused(cpu.gather_rows(&step, 0..1, 5, &x, &mut out), "gather_rows", "x");
    let mut short = cpu.buffer(DType::F32, 3).unwrap();
    assert_refused(cpu.gather_rows(&step, 0..1, 4, &x, &mut short), "gather_rows", "out");
    let mut narrow = cpu.buffer(DType::BF16, 4).unwrap();
    assert_refused(cpu.gather_rows(&step, 0..1, 4, &x, &mut narrow), "gather_rows", "out");
}
