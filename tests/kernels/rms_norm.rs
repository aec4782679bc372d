use burrstone::DType;
use burrstone::cpu::Isa;
use burrstone::ops::Ops;
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
        rows in 1usize..30,
        width in prop_oneof![1usize..200, one_of(PROBLEMS, |p| p.width)],
        dtype in any_dtype(),
        out_dtype in any_dtype(),
        add in any::<bool>(),
    ) {
        let cpu = cpu(isa, threads);
        let x = numbers(1, rows * width, DType::F32);
        let y = numbers(2, rows * width, DType::F32);
        let gain = numbers(3, width, dtype);
        let mut residual = buffer(&cpu, DType::F32, &x);
        let delta = buffer(&cpu, DType::F32, &y);
        let weight = cpu.vector(view(&gain, &[width], dtype)).unwrap();
        let mut out = cpu.buffer(out_dtype, rows * width).unwrap();
        let eps = 1e-5;
        cpu.rms_norm(rows, width, &mut residual, add.then_some(&delta), &weight, eps, &mut out).unwrap();

        let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| if add { x + y } else { *x }).collect();
        assert_same_bits("residual", &residual.read(rows * width).unwrap(), &sum);
        let got = out.read(rows * width).unwrap();
        let plain: Vec<f32> = sum.chunks(width).flat_map(|row| rms_norm::<f32>(row, &gain, eps)).collect();
        let exact: Vec<f64> = sum.chunks(width).flat_map(|row| rms_norm::<f64>(row, &gain, eps)).collect();
        assert_close(&format!("{isa}"), out_dtype, &got, &plain, &exact);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let weight = cpu.vector(view(&[1.0; 4], &[4], DType::F32)).unwrap();
    let mut x = buffer(&cpu, DType::F32, &[1.0; 8]);
    let mut out = cpu.buffer(DType::F32, 8).unwrap();
    let short = buffer(&cpu, DType::F32, &[1.0; 7]);
    let delta = Some(&short);
    assert_refused(cpu.rms_norm(2, 4, &mut x, delta, &weight, 0.0, &mut out), "rms_norm", "delta");
    assert_refused(cpu.rms_norm(2, 3, &mut x, None, &weight, 0.0, &mut out), "rms_norm", "weight");
    let mut small = cpu.buffer(DType::F32, 7).unwrap();
    assert_refused(cpu.rms_norm(2, 4, &mut x, None, &weight, 0.0, &mut small), "rms_norm", "out");
    let mut narrow = cpu.buffer(DType::BF16, 8).unwrap();
    let refused = cpu.rms_norm(2, 4, &mut narrow, None, &weight, 0.0, &mut out);
    assert_refused(refused, "rms_norm", "residual");
    assert_refused(cpu.vector(view(&[1.0; 4], &[2, 2], DType::F32)), "vector", "shape");
}
