//! Products whose results are quantized on their way out: the codes of what is there otherwise.

use std::collections::BTreeSet;

use burrstone::DType;
use burrstone::device::{Stream, Variant};
use burrstone::kernels::{MatMul, MatMulPair, MatMulPlan};
use burrstone::ops::Activation;
use proptest::prelude::*;

use crate::device::{Placed, decode, dense_products, largest_code, planned, some_variants, stream};
use crate::reference::matmul::matmul;
use crate::support::*;

#[derive(Clone, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    dtype: DType,
    codes: DType,
    gate: Option<Activation>,
    biased: bool,
    /// Of the largest code, what the largest result becomes: above 1 it saturates.
    reach: f32,
}

/// The code of a number: the nearest one, of two the even one, and the last one beyond it.
fn code(x: f32, codes: DType) -> u8 {
    if codes == DType::I8 {
        return x.round_ties_even().clamp(-128.0, 127.0) as i8 as u8;
    }
    let values: Vec<u8> = (0..0x7f).collect();
    let distance = |code: &u8| (f64::from(decode(codes, &[*code])[0]) - f64::from(x).abs()).abs();
    let nearer = |a: &u8, b: &u8| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2)));
    let magnitude = values.into_iter().min_by(nearer).expect("codes");
    magnitude | if x.is_sign_negative() { 0x80 } else { 0 }
}

impl Case {
    fn weight_rows(&self) -> usize {
        if self.gate.is_some() { MatMul::gated_rows(self.n) } else { self.n }
    }

    fn run(&self, stream: &Stream, plan: &MatMulPlan, out: DType, scale: Option<f32>) -> Vec<u8> {
        let Case { m, n, k, dtype, gate, .. } = *self;
        let rows = self.weight_rows();
        let [x, weight, bias] =
            [m * k, rows * k, rows].map(|len| Placed::of(stream, dtype, &numbers(len as u64, len, dtype), 0));
        let scale = scale.map(|scale| Placed::of(stream, DType::F32, &[scale], 1));
        let mut workspace = stream.alloc(DType::U32, MatMul::WORKSPACE / 8).unwrap();
        let mut to = Placed::untouched(stream, out, m * n, 0);
        let args = MatMul {
            x: x.slice(),
            weight: weight.slice().into(),
            bias: self.biased.then(|| bias.slice()),
            gate,
            out: to.slice_mut(),
            accumulate: false,
            scale: scale.as_ref().map(Placed::slice),
            workspace: Some(workspace.slice_mut()),
            m,
            n,
            k,
        };
        args.launch_plan(stream, plan).unwrap();
        to.bytes()
    }

    /// The codes, and those of the results that a launch without a scale leaves.
    fn check(&self, variant: &'static Variant, seed: u64) {
        let Some(stream) = stream(variant, seed) else { return };
        let (spans, codes) = (self.k.div_ceil(512), self.codes);
        let plain = decode(self.dtype, &self.run(&stream, &planned(variant, 1, None), self.dtype, None));
        let largest = plain.iter().fold(0.0f32, |most, y| most.max(y.abs()));
        let scale = largest / (largest_code(codes) * self.reach);
        let expected: Vec<u8> = plain.iter().map(|y| code(y / scale, codes)).collect();
        let hopper = variant.archs.contains(&90) && self.k.is_multiple_of(8) && variant.int("m") != Some(8);
        let pair = hopper.then_some(planned(variant, 1, Some(MatMulPair::Weight)));
        let splits: BTreeSet<usize> = [1, spans].into();
        for plan in splits.into_iter().map(|splits| planned(variant, splits, None)).chain(pair) {
            let got = self.run(&stream, &plan, codes, Some(scale));
            assert!(got == expected, "{} in {}, {:?}: differs", variant.name, plan.splits, plan.pair);
        }
        if self.gate.is_none() {
            self.check_exact(&decode(codes, &expected), scale, variant.name);
        }
    }

    /// Against the oracle: half a step of the codes, and what bf16 leaves of a sum.
    fn check_exact(&self, codes: &[f32], scale: f32, what: &str) {
        let Case { m, n, k, dtype, biased, .. } = *self;
        let [x, w, b] = [m * k, n * k, n].map(|len| numbers(len as u64, len, dtype));
        let exact = matmul::<f64>(&x, &w, biased.then_some(b.as_slice()), m, n, k);
        let last = f64::from(largest_code(self.codes));
        let step = |ratio: f64| if self.codes == DType::I8 { 0.5 } else { (ratio.abs() / 16.0).max(1.0 / 1024.0) };
        for (i, (code, exact)) in codes.iter().zip(exact).enumerate() {
            let ratio = (exact / f64::from(scale)).clamp(-last, last);
            let allowed = step(ratio) + ratio.abs() / 64.0 + 0.01;
            assert!((f64::from(*code) - ratio).abs() <= allowed, "{what}: element {i}: {code}, not {ratio}");
        }
    }
}

proptest! {
    #![proptest_config(cases(4))]

    /// On the tensor cores of every architecture, around the borders of tiles and of spans.
    #[test]
    fn codes_on_devices_are_those_of_the_results(
        shape in prop_oneof![
            (proptest::sample::select(vec![1usize, 9, 65]), proptest::sample::select(vec![4usize, 64, 132]), Just(72usize)),
            (Just(3usize), Just(68usize), Just(1032usize)),
        ],
        dtype in proptest::sample::select(vec![DType::BF16, DType::F16]),
        codes in proptest::sample::select(vec![DType::E4M3, DType::I8]),
        gate in proptest::option::of(Just(Activation::Silu)),
        biased in any::<bool>(),
        reach in proptest::sample::select(vec![0.01f32, 0.9, 1.5]),
    ) {
        let (m, n, k) = shape;
        let case = Case { m, n, k, dtype, codes, gate, biased, reach };
        for variant in some_variants(dense_products(dtype, dtype)) {
            case.check(variant, m as u64);
        }
    }
}

#[test]
fn what_is_no_number_has_a_code_on_devices() {
    // One infinite weight, one that is not a number.
    for codes in [DType::E4M3, DType::I8] {
        for variant in dense_products(DType::F16, DType::F16) {
            let Some(stream) = stream(variant, 4).filter(|_| variant.int("m") == Some(16)) else { continue };
            let x = Placed::of(&stream, DType::F16, &[1.0; 8], 0);
            let mut values = [0.0f32; 32];
            (values[0], values[8], values[16]) = (f32::INFINITY, f32::NEG_INFINITY, f32::NAN);
            let weight = Placed::of(&stream, DType::F16, &values, 0);
            let scale = Placed::of(&stream, DType::F32, &[0.25], 0);
            let mut out = Placed::untouched(&stream, codes, 4, 0);
            let (x, weight, to, scale) = (x.slice(), weight.slice(), out.slice_mut(), Some(scale.slice()));
            let args = MatMul {
                x,
                weight: weight.into(),
                bias: None,
                gate: None,
                out: to,
                accumulate: false,
                scale,
                workspace: None,
                m: 1,
                n: 4,
                k: 8,
            };
            args.launch_plan(&stream, &planned(variant, 1, None)).unwrap();
            let expected: [u8; 4] = if codes == DType::I8 { [127, 0x80, 0, 0] } else { [0x7e, 0xfe, 0x7f, 0] };
            assert_eq!(out.bytes(), expected, "{}", variant.name);
        }
    }
}

#[test]
fn a_scale_on_devices_belongs_to_a_quantized_output() {
    let stream = crate::support::stream(2);
    let attempt = |out: DType, scale: Option<(DType, usize)>, n: usize, from: usize| {
        let x = Placed::untouched(&stream, DType::F16, 8, 0);
        let weight = Placed::untouched(&stream, DType::F16, n * 4, 0);
        let scale = scale.map(|(dtype, len)| Placed::new(&stream, dtype, &vec![1; len * dtype.size()], 0));
        let mut out = Placed::untouched(&stream, out, 2 * n, from);
        let (x, weight, to, scale) = (x.slice(), weight.slice(), out.slice_mut(), scale.as_ref().map(Placed::slice));
        MatMul {
            x,
            weight: weight.into(),
            bias: None,
            gate: None,
            out: to,
            accumulate: false,
            scale,
            workspace: None,
            m: 2,
            n,
            k: 4,
        }
        .launch(&stream)
    };
    const OP: &str = "matmul";
    attempt(DType::E4M3, Some((DType::F32, 1)), 8, 0).unwrap();
    attempt(DType::I8, Some((DType::F32, 1)), 8, 4).unwrap();
    assert_refused(attempt(DType::I8, None, 8, 0), OP, "scale");
    assert_refused(attempt(DType::I8, Some((DType::F32, 0)), 8, 0), OP, "scale");
    assert_refused(attempt(DType::I8, Some((DType::F16, 1)), 8, 0), OP, "scale");
    assert_refused(attempt(DType::F16, Some((DType::F32, 1)), 8, 0), OP, "scale");
    assert_refused(attempt(DType::I8, Some((DType::F32, 1)), 6, 0), OP, "n");
    assert_refused(attempt(DType::I8, Some((DType::F32, 1)), 8, 1), OP, "out");
    assert_refused(attempt(DType::E5M2, None, 8, 0), OP, "out");
}
