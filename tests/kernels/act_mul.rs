use burrstone::DType;
use burrstone::ops::Activation;
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
        width in prop_oneof![1usize..100, one_of(PROBLEMS, |p| p.width)],
        activation in proptest::sample::select(ALL.to_vec()),
        dtype in any_dtype(),
    ) {
        let cpu = cpu(isa, threads);
        let x: Vec<f32> = numbers(1, 2 * width, DType::F32).iter().map(|x| 5.0 * x).collect();
        let (gate, up) = x.split_at(width);
        let got = act_mul(&cpu, activation, gate, up, dtype);
        let plain: Vec<f32> = gate.iter().zip(up).map(|(&g, &u)| act(activation, g) * u).collect();
        let exact = gate.iter().zip(up).map(|(&g, &u)| act(activation, f64::from(g)) * f64::from(u));
        assert_close(&format!("{isa}"), dtype, &got, &plain, &exact.collect::<Vec<f64>>());
    }
}

/// For large arguments the activations are 0 or the identity; intermediate results do not overflow.
#[test]
fn extremes_are_finite() {
    for isa in isas() {
        let cpu = cpu(isa, 1);
        for activation in ALL {
            let out = act_mul(&cpu, activation, &[-1e4, -100.0, 0.0, 100.0, 1e4], &[1.0; 5], DType::F32);
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
            for (&x, y) in x.iter().zip(act_mul(&cpu, activation, &x, &up, DType::F32)) {
                let exact = act(activation, f64::from(x));
                let error = ((f64::from(y) - exact) / exact).abs();
                assert!(error < 5e-7, "{isa} {activation:?} of {x}: {y}, not {exact}");
            }
        }
    }
}

mod on_the_device {
    use burrstone::device::{Stream, Variant};
    use burrstone::kernels::ActMul;

    use super::*;
    use crate::device::{Placed, assert_no_waste, assert_scale, counting_stream, decode, named, stream, variants};

    #[derive(Clone, Debug)]
    struct Case {
        rows: usize,
        width: usize,
        dtype: DType,
        out: DType,
        activation: Activation,
        shifts: [usize; 2],
    }

    impl Case {
        fn input(&self) -> Vec<f32> {
            numbers(1, self.rows * 2 * self.width, DType::F32).iter().map(|x| round(5.0 * x, self.dtype)).collect()
        }

        /// Output and scales of a launch that starts at row `first`.
        fn run(&self, stream: &Stream, variant: &'static Variant, first: usize) -> (Vec<u8>, Vec<f32>) {
            let Case { width, dtype, out, activation, shifts, .. } = *self;
            let rows = self.rows - first;
            let gate_up = Placed::of(stream, dtype, &self.input()[first * 2 * width..], shifts[0]);
            let mut product = Placed::untouched(stream, out, rows * width, shifts[1]);
            let mut scales = Placed::untouched(stream, DType::F32, rows, 1);
            let quantized = out != dtype;
            let args = ActMul {
                gate_up: gate_up.slice(),
                out: product.slice_mut(),
                scales: quantized.then(|| scales.slice_mut()),
                rows,
                width,
                activation,
            };
            args.launch_variant(stream, variant).unwrap();
            (product.bytes(), if quantized { scales.read() } else { vec![1.0; rows] })
        }

        fn check(&self) {
            let Case { rows, width, dtype, out, activation, .. } = *self;
            let (mut plain, mut exact) = (Vec::new(), Vec::new());
            for row in self.input().chunks(2 * width) {
                let (gate, up) = row.split_at(width);
                plain.extend(gate.iter().zip(up).map(|(&g, &u)| act(activation, g) * u));
                exact.extend(gate.iter().zip(up).map(|(&g, &u)| act(activation, f64::from(g)) * f64::from(u)));
            }
            let mut first: Option<(Vec<u8>, Vec<f32>)> = None;
            for variant in variants("act_mul", &[("dtype", named(dtype)), ("out", named(out))]) {
                let Some(stream) = stream(variant, width as u64) else { continue };
                let (got, scales) = self.run(&stream, variant, 0);
                let values = decode(out, &got);
                if out == dtype {
                    assert_close(variant.name, dtype, &values, &plain, &exact);
                } else {
                    for ((codes, &scale), exact) in values.chunks(width).zip(&scales).zip(exact.chunks(width)) {
                        assert_quantized(variant.name, out, codes, scale, exact);
                        assert_scale(variant.name, out, codes, scale, exact);
                    }
                }
                let (last, last_scales) = self.run(&stream, variant, rows - 1);
                assert!(
                    got.ends_with(&last) && scales.ends_with(&last_scales),
                    "{}: the last row alone has other bits",
                    variant.name
                );
                let (bits, bits_of_scales) = first.get_or_insert((got.clone(), scales.clone()));
                assert!(*bits == got && *bits_of_scales == scales, "{}: differs from the first variant", variant.name);
            }
        }
    }

    fn any_case(shape: impl Strategy<Value = (usize, usize)>) -> impl Strategy<Value = Case> {
        let dtype = proptest::sample::select(vec![DType::BF16, DType::F16]);
        let out = proptest::sample::select(vec![None, Some(DType::E4M3), Some(DType::I8)]);
        let activation = proptest::sample::select(ALL.to_vec());
        let shifts = proptest::sample::select(vec![[0, 0], [8, 16], [1, 0], [0, 3]]);
        (shape, dtype, out, activation, shifts).prop_map(|((rows, width), dtype, out, activation, shifts)| {
            let out = out.unwrap_or(dtype);
            Case { rows, width, dtype, out, activation, shifts }
        })
    }

    proptest! {
        #![proptest_config(cases(50))]

        #[test]
        fn every_variant_agrees_with_the_oracle(
            case in any_case((1usize..5, prop_oneof![1usize..100, (1usize..150).prop_map(|n| 8 * n)])),
        ) {
            case.check();
        }

        #[test]
        fn long_rows_agree_with_the_oracle(
            case in any_case((1usize..3, proptest::sample::select(vec![2048, 4096, 4104, 4999, 8200, 16392]))),
        ) {
            case.check();
        }
    }

    #[test]
    fn accesses_are_fully_coalesced_on_the_simulator() {
        let (rows, width, dtype, activation) = (2, 2048, DType::BF16, Activation::Silu);
        let case = Case { rows, width, dtype, out: dtype, activation, shifts: [0; 2] };
        for variant in variants("act_mul", &[("dtype", named(dtype)), ("out", named(dtype))]) {
            let stream = counting_stream(variant);
            case.run(&stream, variant, 0);
            assert_no_waste(&stream, |_| true);
        }
    }

    /// The same limits on the device.
    #[test]
    fn extremes_are_finite() {
        let gate = [-6e4, -100.0, 0.0, 100.0, 6e4].map(|x| round(x, DType::F16));
        for variant in variants("act_mul", &[("dtype", named(DType::F16)), ("out", named(DType::F16))]) {
            for activation in ALL {
                let Some(stream) = stream(variant, 1) else { continue };
                let gate_up = Placed::of(&stream, DType::F16, &[gate, [1.0; 5]].concat(), 0);
                let mut out = Placed::untouched(&stream, DType::F16, 5, 0);
                let (gate_up, to) = (gate_up.slice(), out.slice_mut());
                let args = ActMul { gate_up, out: to, scales: None, rows: 1, width: 5, activation };
                args.launch_variant(&stream, variant).unwrap();
                // +0 and −0 are equal.
                assert_eq!(out.read(), [0.0, 0.0, 0.0, gate[3], gate[4]], "{} {activation:?}", variant.name);
            }
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let stream = stream(variants("act_mul", &[("dtype", named(DType::F16))])[0], 1)
            .expect("every architecture has an f16 variant");
        let attempt = |dtype, out_dtype, out_len, scales_len: Option<usize>, width| {
            let gate_up = Placed::untouched(&stream, dtype, 16, 0);
            let mut out = Placed::untouched(&stream, out_dtype, out_len, 0);
            let mut scales = scales_len.map(|len| Placed::untouched(&stream, DType::F32, len, 0));
            let scales = scales.as_mut().map(Placed::slice_mut);
            let (gate_up, out) = (gate_up.slice(), out.slice_mut());
            ActMul { gate_up, out, scales, rows: 2, width, activation: Activation::Silu }.launch(&stream)
        };
        const OP: &str = "act_mul";
        attempt(DType::F16, DType::F16, 8, None, 4).unwrap();
        attempt(DType::F16, DType::I8, 8, Some(2), 4).unwrap();
        assert_refused(attempt(DType::F32, DType::F32, 8, None, 4), OP, "gate_up");
        assert_refused(attempt(DType::F16, DType::F16, 8, None, 5), OP, "gate_up");
        assert_refused(attempt(DType::F16, DType::F16, 7, None, 4), OP, "out");
        assert_refused(attempt(DType::F16, DType::F32, 8, None, 4), OP, "out");
        assert_refused(attempt(DType::F16, DType::I8, 8, Some(1), 4), OP, "scales");
        assert_refused(attempt(DType::F16, DType::I8, 8, None, 4), OP, "scales");
        assert_refused(attempt(DType::F16, DType::F16, 8, None, usize::MAX), OP, "gate_up");
    }
}
