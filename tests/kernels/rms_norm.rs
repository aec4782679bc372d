use burrstone::DType;
use burrstone::cpu::Isa;
use burrstone::ops::{Ops, Rows};
use proptest::prelude::*;

use crate::problems::rms_norm::PROBLEMS;
use crate::reference::rms_norm::rms_norm;
use crate::support::*;

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn agrees_with_the_oracle(
        isa in any_isa(),
        threads in 1usize..4,
        tokens in 1usize..30,
        width in prop_oneof![1usize..200, one_of(PROBLEMS, |p| p.width)],
        dtype in any_dtype(),
        out_dtype in any_dtype(),
        add in any::<bool>(),
        gather in any::<bool>(),
    ) {
        let cpu = cpu(isa, threads);
        let x = numbers(1, tokens * width, DType::F32);
        let y = numbers(2, tokens * width, DType::F32);
        let gain = numbers(3, width, dtype);
        let logit_rows: Vec<u32> = (0..tokens as u32).filter(|t| t % 3 == 0).collect();
        let step = step_of(&cpu, &vec![0; tokens], &logit_rows);
        let (first, last) = (logit_rows.len() / 3, logit_rows.len());
        let (rows, wanted): (_, Vec<usize>) = if gather {
            (Rows::Logits { start: first, end: last }, logit_rows[first..].iter().map(|&t| t as usize).collect())
        } else {
            (Rows::All, (0..tokens).collect())
        };
        let mut residual = buffer(&cpu, DType::F32, &x);
        let delta = buffer(&cpu, DType::F32, &y);
        let weight = cpu.vector(view(&gain, &[width], dtype)).unwrap();
        let mut out = cpu.buffer(out_dtype, tokens * width).unwrap();
        let eps = 1e-5;
        cpu.rms_norm(&step, rows, width, &mut residual, add.then_some(&delta), &weight, eps, &mut out).unwrap();

        let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| if add { x + y } else { *x }).collect();
        assert_same_bits("residual", &residual.read(tokens * width).unwrap(), &sum);
        let got = out.read(wanted.len() * width).unwrap();
        let row = |t: &usize| &sum[t * width..][..width];
        let plain: Vec<f32> = wanted.iter().flat_map(|t| rms_norm::<f32>(row(t), &gain, eps)).collect();
        let exact: Vec<f64> = wanted.iter().flat_map(|t| rms_norm::<f64>(row(t), &gain, eps)).collect();
        assert_close(&format!("{isa}"), out_dtype, &got, &plain, &exact);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let step = step_of(&cpu, &[0, 0], &[1]);
    let weight = cpu.vector(view(&[1.0; 4], &[4], DType::F32)).unwrap();
    let mut x = buffer(&cpu, DType::F32, &[1.0; 8]);
    let mut out = cpu.buffer(DType::F32, 8).unwrap();
    let short = buffer(&cpu, DType::F32, &[1.0; 7]);
    let delta = Some(&short);
    assert_refused(cpu.rms_norm(&step, Rows::All, 4, &mut x, delta, &weight, 0.0, &mut out), "rms_norm", "delta");
    assert_refused(cpu.rms_norm(&step, Rows::All, 3, &mut x, None, &weight, 0.0, &mut out), "rms_norm", "weight");
    let rows = Rows::Logits { start: 0, end: 2 };
    assert_refused(cpu.rms_norm(&step, rows, 4, &mut x, None, &weight, 0.0, &mut out), "rms_norm", "rows");
    let mut small = cpu.buffer(DType::F32, 7).unwrap();
    assert_refused(cpu.rms_norm(&step, Rows::All, 4, &mut x, None, &weight, 0.0, &mut small), "rms_norm", "out");
    let mut narrow = cpu.buffer(DType::BF16, 8).unwrap();
    let refused = cpu.rms_norm(&step, Rows::All, 4, &mut narrow, None, &weight, 0.0, &mut out);
    assert_refused(refused, "rms_norm", "residual");
    assert_refused(cpu.vector(view(&[1.0; 4], &[2, 2], DType::F32)), "vector", "shape");
}
