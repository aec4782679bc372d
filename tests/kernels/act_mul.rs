use burrstone::DType;
use burrstone::cpu::Isa;
use burrstone::ops::{Activation, Ops};
use proptest::prelude::*;

use crate::problems::act_mul::PROBLEMS;
use crate::reference::Real;
use crate::reference::act_mul::{gelu, gelu_tanh, silu};
use crate::support::*;

fn act<T: Real>(activation: Activation, x: T) -> T {
    match activation {
        Activation::Silu => silu(x),
        Activation::GeluTanh => gelu_tanh(x),
        _ => gelu(x),
    }
}

const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn agrees_with_the_oracle(
        isa in any_isa(),
        threads in 1usize..4,
        rows in 1usize..6,
        width in prop_oneof![1usize..100, one_of(PROBLEMS, |p| p.width)],
        activation in proptest::sample::select(ALL.to_vec()),
        dtype in any_dtype(),
    ) {
        let cpu = cpu(isa, threads);
        let x: Vec<f32> = numbers(1, rows * 2 * width, DType::F32).iter().map(|x| 5.0 * x).collect();
        let gate_up = buffer(&cpu, DType::F32, &x);
        let mut out = cpu.buffer(dtype, rows * width).unwrap();
        cpu.act_mul(rows, width, activation, &gate_up, &mut out).unwrap();
        let (mut plain, mut exact) = (Vec::new(), Vec::new());
        for row in x.chunks(2 * width) {
            let (gate, up) = row.split_at(width);
            plain.extend(gate.iter().zip(up).map(|(&g, &u)| act(activation, g) * u));
            exact.extend(gate.iter().zip(up).map(|(&g, &u)| act(activation, f64::from(g)) * f64::from(u)));
        }
        assert_close(&format!("{isa}"), dtype, &out.read(rows * width).unwrap(), &plain, &exact);
    }
}

/// Far out the activations are 0 and the identity, and nothing overflows on the way.
#[test]
fn extremes_are_finite() {
    for isa in isas() {
        let cpu = cpu(isa, 1);
        for activation in ALL {
            let gate_up = buffer(&cpu, DType::F32, &[-1e4, -100.0, 0.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0, 1.0]);
            let mut out = cpu.buffer(DType::F32, 5).unwrap();
            cpu.act_mul(1, 5, activation, &gate_up, &mut out).unwrap();
            let out = out.read(5).unwrap();
            assert!(out[0].abs() < 1e-30 && out[1].abs() < 1e-30, "{isa} {activation:?}: {out:?}");
            assert_eq!(out[2..], [0.0, 100.0, 1e4], "{isa} {activation:?}");
        }
    }
}

/// Small arguments keep their relative precision.
#[test]
fn small_arguments_are_precise() {
    let x: Vec<f32> = (1..400).map(|i| 1e-6 * 1.03f32.powi(i)).collect();
    let up = vec![1.0; x.len()];
    for isa in isas() {
        let cpu = cpu(isa, 1);
        for activation in ALL {
            let gate_up = buffer(&cpu, DType::F32, &[x.clone(), up.clone()].concat());
            let mut out = cpu.buffer(DType::F32, x.len()).unwrap();
            cpu.act_mul(1, x.len(), activation, &gate_up, &mut out).unwrap();
            for (&x, y) in x.iter().zip(out.read(x.len()).unwrap()) {
                let exact = act(activation, f64::from(x));
                let error = ((f64::from(y) - exact) / exact).abs();
                assert!(error < 5e-7, "{isa} {activation:?} of {x}: {y}, not {exact}");
            }
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let gate_up = buffer(&cpu, DType::F32, &[0.0; 8]);
    let mut out = cpu.buffer(DType::F32, 3).unwrap();
    assert_refused(cpu.act_mul(1, 4, Activation::Silu, &gate_up, &mut out), "act_mul", "out");
    assert_refused(cpu.act_mul(1, 5, Activation::Silu, &gate_up, &mut out), "act_mul", "gate_up");
    assert_refused(cpu.act_mul(usize::MAX, 5, Activation::Silu, &gate_up, &mut out), "act_mul", "gate_up");
}
