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

mod on_the_device {
    use burrstone::device::{Stream, Variant};
    use burrstone::kernels::{Norm, RmsNorm};

    use super::*;
    use crate::device::{
        Placed, assert_no_waste, assert_scale, counting_stream, decode, named, some_variants, stream, variants,
    };
    use crate::reference::rms_norm::layer_norm;
    use burrstone::device::Value;

    /// A problem and the contents of its arrays.
    #[derive(Clone, Debug)]
    struct Case {
        rows: usize,
        width: usize,
        dtype: DType,
        out: DType,
        norm: Norm,
        add: bool,
        bias: bool,
        offset: f32,
        /// Distance from an aligned address, in elements: residual, delta, gains, output.
        shifts: [usize; 4],
    }

    const EPS: f32 = 1e-5;

    impl Case {
        fn variants(&self) -> Vec<&'static Variant> {
            let norm = Value::Text(if self.norm == Norm::Rms { "rms" } else { "layer" });
            variants("rms_norm", &[("dtype", named(self.dtype)), ("norm", norm), ("out", named(self.out))])
        }

        fn array(&self, seed: u64, rows: usize) -> Vec<f32> {
            // Numbers with a mean other than 0, so that a wrong mean is detected.
            numbers(seed, rows * self.width, self.dtype).iter().map(|x| round(x + 0.25, self.dtype)).collect()
        }

        /// Residual stream, output and scales of a launch that starts at row `first`.
        fn run(&self, stream: &Stream, variant: &'static Variant, first: usize) -> (Vec<f32>, Vec<u8>, Vec<f32>) {
            let Case { width, dtype, out, shifts, .. } = *self;
            let rows = self.rows - first;
            let place = |seed, rows, shift| {
                let all = self.array(seed, rows);
                Placed::of(stream, dtype, if rows == 1 { &all } else { &all[first * width..] }, shift)
            };
            let mut residual = place(1, self.rows, shifts[0]);
            let delta = place(2, self.rows, shifts[1]);
            let (weight, bias) = (place(3, 1, shifts[2]), place(4, 1, shifts[2]));
            let mut normed = Placed::untouched(stream, out, rows * width, shifts[3]);
            let mut scales = Placed::untouched(stream, DType::F32, rows, 1);
            let quantized = out != dtype;
            let args = RmsNorm {
                residual: residual.slice_mut(),
                delta: self.add.then(|| delta.slice()),
                weight: weight.slice(),
                bias: self.bias.then(|| bias.slice()),
                out: normed.slice_mut(),
                scales: quantized.then(|| scales.slice_mut()),
                rows,
                width,
                eps: EPS,
                weight_offset: self.offset,
                norm: self.norm,
            };
            args.launch_variant(stream, variant).unwrap();
            let scales = if quantized { scales.read() } else { vec![1.0; rows] };
            (residual.read(), normed.bytes(), scales)
        }

        fn check(&self) {
            let Case { rows, width, dtype, out, norm, offset, .. } = *self;
            let (x, y) = (self.array(1, rows), self.array(2, rows));
            let sum: Vec<f32> =
                x.iter().zip(&y).map(|(x, y)| if self.add { round(x + y, dtype) } else { *x }).collect();
            let gain: Vec<f32> = self.array(3, 1).iter().map(|g| g + offset).collect();
            let bias = if self.bias { self.array(4, 1) } else { vec![0.0; width] };
            let normed = |row: &[f32]| -> (Vec<f32>, Vec<f64>) {
                let (plain, exact) = match norm {
                    Norm::Rms => (rms_norm::<f32>(row, &gain, EPS), rms_norm::<f64>(row, &gain, EPS)),
                    _ => (layer_norm::<f32>(row, &gain, EPS), layer_norm::<f64>(row, &gain, EPS)),
                };
                let plain = plain.iter().zip(&bias).map(|(y, b)| y + b).collect();
                (plain, exact.iter().zip(&bias).map(|(y, b)| y + f64::from(*b)).collect())
            };
            let (plain, exact): (Vec<_>, Vec<_>) = sum.chunks(width).map(normed).unzip();
            let mut first: Option<(Vec<u8>, Vec<f32>)> = None;
            for variant in some_variants(self.variants()) {
                let Some(stream) = stream(variant, width as u64) else { continue };
                let (residual, got, scales) = self.run(&stream, variant, 0);
                assert_same_bits(variant.name, &residual, &sum);
                let values = decode(out, &got);
                if out == dtype {
                    assert_close(variant.name, dtype, &values, &plain.concat(), &exact.concat());
                } else {
                    for ((codes, &scale), exact) in values.chunks(width).zip(&scales).zip(&exact) {
                        assert_quantized(variant.name, out, codes, scale, exact);
                        assert_scale(variant.name, out, codes, scale, exact);
                    }
                }
                // The last row alone.
                let (_, last, last_scales) = self.run(&stream, variant, rows - 1);
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
        let norm = proptest::sample::select(vec![Norm::Rms, Norm::Layer]);
        let shifts = proptest::sample::select(vec![[0; 4], [8, 8, 16, 0], [1, 0, 0, 0], [0, 3, 2, 0], [0, 0, 0, 4]]);
        let switches = (any::<bool>(), any::<bool>(), any::<bool>());
        (shape, dtype, out, norm, switches, shifts).prop_map(|(shape, dtype, out, norm, (add, bias, one), shifts)| {
            let (rows, width) = shape;
            let (out, offset) = (out.unwrap_or(dtype), if one { 1.0 } else { 0.0 });
            Case { rows, width, dtype, out, norm, add, bias, offset, shifts }
        })
    }

    proptest! {
        #![proptest_config(cases(60))]

        #[test]
        fn every_variant_agrees_with_the_oracle(
            case in any_case((1usize..5, prop_oneof![1usize..100, (1usize..150).prop_map(|n| 8 * n)])),
        ) {
            case.check();
        }

        /// Row lengths around what a thread keeps in registers, for each number of threads.
        #[test]
        fn long_rows_agree_with_the_oracle(
            case in any_case((1usize..3, proptest::sample::select(vec![4088, 4096, 4104, 5000, 8192, 8195, 16392]))),
        ) {
            case.check();
        }
    }

    #[test]
    fn measured_shapes_agree_with_the_oracle() {
        for problem in PROBLEMS {
            let (rows, width, norm) = (2, problem.width, Norm::Rms);
            let (dtype, add, bias, offset, shifts) = (DType::BF16, true, false, 0.0, [0; 4]);
            for out in [DType::BF16, DType::E4M3, DType::I8] {
                Case { rows, width, dtype, out, norm, add, bias, offset, shifts }.check();
            }
        }
    }

    #[test]
    fn accesses_are_fully_coalesced_on_the_simulator() {
        let (rows, width, norm, dtype) = (2, 2048, Norm::Rms, DType::BF16);
        let (out, add, bias, offset, shifts) = (dtype, true, false, 0.0, [0; 4]);
        let case = Case { rows, width, dtype, out, norm, add, bias, offset, shifts };
        for variant in case.variants() {
            let stream = counting_stream(variant);
            case.run(&stream, variant, 0);
            assert_no_waste(&stream, |_| true);
        }
    }

    /// A row of zeros is quantized to codes 0, with a valid scale.
    #[test]
    fn zeros_are_quantized() {
        for variant in variants("rms_norm", &[("out", Value::Text("e4m3")), ("norm", Value::Text("rms"))]) {
            let dtype = if variant.value("dtype") == Some(named(DType::F16)) { DType::F16 } else { DType::BF16 };
            let Some(stream) = stream(variant, 1) else { continue };
            let mut residual = Placed::of(&stream, dtype, &[0.0; 24], 0);
            let weight = Placed::of(&stream, dtype, &[1.0; 24], 0);
            let mut out = Placed::untouched(&stream, DType::E4M3, 24, 0);
            let mut scales = Placed::untouched(&stream, DType::F32, 1, 0);
            let args = RmsNorm {
                residual: residual.slice_mut(),
                delta: None,
                weight: weight.slice(),
                bias: None,
                out: out.slice_mut(),
                scales: Some(scales.slice_mut()),
                rows: 1,
                width: 24,
                eps: 1e-6,
                weight_offset: 0.0,
                norm: Norm::Rms,
            };
            args.launch_variant(&stream, variant).unwrap();
            assert_eq!((out.read(), scales.read()), (vec![0.0; 24], vec![0.0]), "{}", variant.name);
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let stream = stream(variants("rms_norm", &[("dtype", named(DType::F16))])[0], 1)
            .expect("every architecture has an f16 variant");
        let attempt = |x_len, delta_dtype, weight_len, out_dtype, scaled: bool, rows| {
            let mut residual = Placed::untouched(&stream, DType::F16, x_len, 0);
            let delta = Placed::untouched(&stream, delta_dtype, 8, 0);
            let weight = Placed::untouched(&stream, DType::F16, weight_len, 0);
            let mut out = Placed::untouched(&stream, out_dtype, 8, 0);
            let mut scales = Placed::untouched(&stream, DType::F32, 2, 0);
            let args = RmsNorm {
                residual: residual.slice_mut(),
                delta: Some(delta.slice()),
                weight: weight.slice(),
                bias: None,
                out: out.slice_mut(),
                scales: scaled.then(|| scales.slice_mut()),
                rows,
                width: 4,
                eps: 0.0,
                weight_offset: 0.0,
                norm: Norm::Rms,
            };
            args.launch(&stream)
        };
        const OP: &str = "rms_norm";
        attempt(8, DType::F16, 4, DType::F16, false, 2).unwrap();
        attempt(8, DType::F16, 4, DType::F16, false, 0).unwrap();
        assert_refused(attempt(7, DType::F16, 4, DType::F16, false, 2), OP, "residual");
        assert_refused(attempt(8, DType::BF16, 4, DType::F16, false, 2), OP, "delta");
        assert_refused(attempt(8, DType::F16, 3, DType::F16, false, 2), OP, "weight");
        assert_refused(attempt(8, DType::F16, 4, DType::BF16, false, 2), OP, "out");
        assert_refused(attempt(8, DType::F16, 4, DType::I8, false, 2), OP, "scales");
        assert_refused(attempt(8, DType::F16, 4, DType::F16, true, 2), OP, "scales");
        assert_refused(attempt(8, DType::F16, 4, DType::F16, false, usize::MAX), OP, "residual");
    }

    /// A variant of another dtype would read beyond the arrays.
    #[test]
    fn a_variant_for_another_problem_is_refused() {
        let own = variants("rms_norm", &[("dtype", named(DType::F16))])[0];
        let others = [variants("rms_norm", &[("dtype", named(DType::BF16))])[0], variants("act_mul", &[])[0]];
        let stream = stream(own, 1).expect("every architecture has an f16 variant");
        for variant in others {
            let mut residual = Placed::untouched(&stream, DType::F16, 8, 0);
            let weight = Placed::untouched(&stream, DType::F16, 8, 0);
            let mut out = Placed::untouched(&stream, DType::F16, 8, 0);
            let args = RmsNorm {
                residual: residual.slice_mut(),
                delta: None,
                weight: weight.slice(),
                bias: None,
                out: out.slice_mut(),
                scales: None,
                rows: 1,
                width: 8,
                eps: 0.0,
                weight_offset: 0.0,
                norm: Norm::Rms,
            };
            assert_refused(args.launch_variant(&stream, variant), "rms_norm", "variant");
        }
    }
}
