//! The product on devices: every variant and every split against the oracle, and against each other bit by bit.

use std::collections::BTreeSet;

use burrstone::device::sim::{SiteStats, Space};
use burrstone::device::{SimOptions, Stream, Value, Variant};
use burrstone::kernels::{MatMul, MatMulPair, MatMulPlan};
use burrstone::ops::Activation;

use super::*;
use crate::device::{Placed, assert_no_waste, counting_stream, decode, dense_products, planned, some_variants, stream};
use crate::slice::one_in_turn;
use crate::tensor_cores::matmul_truncation;

#[derive(Clone, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    dtype: DType,
    out: DType,
    biased: bool,
    /// Added to what is there.
    accumulate: bool,
    /// Elements away from the best alignment: x, weight, out.
    shifts: [usize; 3],
}

impl Case {
    /// The product of x's rows from `first` on, with a plan; without one, as `launch` chooses.
    fn run(&self, stream: &Stream, plan: Option<MatMulPlan>, first: usize) -> Vec<u8> {
        let Case { n, k, dtype, accumulate, shifts, .. } = *self;
        let m = self.m - first;
        let x = Placed::of(stream, dtype, &numbers(1, self.m * k, dtype)[first * k..], shifts[0]);
        let weight = Placed::of(stream, dtype, &numbers(2, n * k, dtype), shifts[1]);
        let bias = Placed::of(stream, dtype, &numbers(3, n, dtype), 1);
        let mut workspace = stream.alloc(DType::U32, MatMul::WORKSPACE / 8).unwrap();
        let (x, weight, bias) = (x.slice(), weight.slice(), self.biased.then(|| bias.slice()));
        let mut launch = || {
            let mut out = if accumulate {
                Placed::of(stream, self.out, &self.before()[first * n..], shifts[2])
            } else {
                Placed::untouched(stream, self.out, m * n, shifts[2])
            };
            let (to, scale, workspace) = (out.slice_mut(), None, Some(workspace.slice_mut()));
            let args =
                MatMul { x, weight: weight.into(), bias, gate: None, out: to, accumulate, scale, workspace, m, n, k };
            match plan {
                Some(plan) => args.launch_plan(stream, &plan),
                None => args.launch(stream),
            }
            .unwrap();
            out.bytes()
        };
        let first = launch();
        if matches!(plan, Some(MatMulPlan { splits: 2.., .. })) {
            assert!(launch() == first, "a launch leaves the workspace as it found it");
        }
        first
    }

    /// What results are added to.
    fn before(&self) -> Vec<f32> {
        numbers(4, self.m * self.n, self.out)
    }

    /// The bits of results, added: rounded once more.
    fn added(&self, results: &[u8]) -> Vec<f32> {
        let sums = self.before().into_iter().zip(decode(self.out, results)).map(|(before, result)| before + result);
        sums.map(|sum| round(sum, self.out)).collect()
    }

    fn variants(&self) -> Vec<&'static Variant> {
        dense_products(self.dtype, self.out)
    }

    fn check(&self) {
        let Case { m, n, k, dtype, out, biased, .. } = *self;
        let (x, w, b) = (numbers(1, m * k, dtype), numbers(2, n * k, dtype), numbers(3, n, dtype));
        let bias = biased.then_some(b.as_slice());
        let plain = matmul::<f32>(&x, &w, bias, m, n, k);
        let exact = matmul::<f64>(&x, &w, bias, m, n, k);
        let spans = k.div_ceil(512).max(1);
        let mut firsts: Vec<(Value, Vec<u8>)> = Vec::new();
        for variant in some_variants(self.variants()) {
            let Some(stream) = stream(variant, k as u64) else { continue };
            let instruction = variant.value("instruction").expect("an axis");
            for splits in [1, 2, spans].into_iter().filter(|&s| s <= spans).collect::<BTreeSet<_>>() {
                let got = self.run(&stream, Some(planned(variant, splits, None)), 0);
                // Whatever the tile and the split: small steps and large ones meet in one batch of requests.
                if let Some((_, first)) = firsts.iter().find(|(own, _)| *own == instruction) {
                    assert!(*first == got, "{} in {splits} differs", variant.name);
                    continue;
                }
                let alone = Self { accumulate: false, ..self.clone() };
                let results = alone.run(&stream, Some(planned(variant, splits, None)), 0);
                let more = matmul_truncation(variant, &x, &w, k);
                assert_close_but_for(more, variant.name, out, &decode(out, &results), &plain, &exact);
                if self.accumulate {
                    assert_same_bits(variant.name, &decode(out, &got), &self.added(&results));
                }
                firsts.push((instruction, got));
            }
        }
        // What is chosen for the last row alone.
        for variant in self.variants() {
            let Some((_, all)) = firsts.iter().find(|(own, _)| Some(*own) == variant.value("instruction")) else {
                continue;
            };
            let Some(stream) = stream(variant, 9).filter(|_| m > 0) else { continue };
            assert!(all.ends_with(&self.run(&stream, None, m - 1)), "a row alone differs");
            break;
        }
    }
}

fn any_case(shape: impl Strategy<Value = (usize, usize, usize)>) -> impl Strategy<Value = Case> {
    let dtype = proptest::sample::select(vec![DType::BF16, DType::F16]);
    let shifts = proptest::sample::select(vec![[0, 0, 0], [8, 16, 8], [1, 0, 1], [0, 3, 2]]);
    let switches = (any::<bool>(), any::<bool>(), any::<bool>());
    (shape, dtype, switches, shifts).prop_map(|((m, n, k), dtype, (wide, biased, accumulate), shifts)| {
        let out = if wide { DType::F32 } else { dtype };
        Case { m, n, k, dtype, out, biased, accumulate, shifts }
    })
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn every_variant_agrees_with_the_oracle(
        case in any_case((1usize..12, 1usize..80, prop_oneof![1usize..40, (1usize..30).prop_map(|g| 8 * g)])),
    ) {
        case.check();
    }

    /// Around the borders of tiles and of stages.
    #[test]
    fn borders_agree_with_the_oracle(
        case in any_case((
            proptest::sample::select(vec![7usize, 8, 9, 16, 17, 63, 64, 65, 128, 129]),
            proptest::sample::select(vec![31usize, 32, 63, 64, 65, 128, 129, 132]),
            proptest::sample::select(vec![63usize, 64, 65, 128, 136]),
        )),
    ) {
        case.check();
    }

}

proptest! {
    #![proptest_config(cases(8))]

    /// Around the borders of spans: what one block adds and what several do.
    #[test]
    fn spans_agree_with_the_oracle(
        case in any_case((
            proptest::sample::select(vec![1usize, 3, 9]),
            proptest::sample::select(vec![5usize, 64, 68]),
            proptest::sample::select(vec![504usize, 512, 513, 520, 1024, 1032, 1543]),
        )),
    ) {
        case.check();
    }
}

/// The first row of few and of hundreds is the same, by the variants that are chosen for them.
#[test]
fn a_row_does_not_depend_on_company() {
    let (n, k, dtype) = (136, 1096, DType::F16);
    for arch in one_in_turn(vec![70, 75, 80, 90]) {
        let case = Case { m: 300, n, k, dtype, out: DType::F32, biased: true, accumulate: true, shifts: [0; 3] };
        let runs = |variant: &&Variant| variant.archs.contains(&arch);
        let variant = case.variants().into_iter().find(runs).expect("a variant");
        let Some(stream) = arch_stream(variant, arch) else { continue };
        let all = case.run(&stream, None, 0);
        for first in [299, 298, 291, 283, 268, 200] {
            assert!(all.ends_with(&case.run(&stream, None, first)), "sm_{arch}: {} rows differ", 300 - first);
        }
    }
}

/// On few multiprocessors Hopper's blocks take several spans and tiles each, one after the other: the same bits.
#[test]
fn a_block_that_stays_computes_what_many_do_on_the_simulator() {
    for (k, shift) in [(1096, 0), (1099, 1)] {
        let (dtype, out) = (DType::F16, DType::F16);
        let case = Case { m: 20, n: 200, k, dtype, out, biased: true, accumulate: true, shifts: [shift; 3] };
        let hopper = case.variants().into_iter().filter(|variant| variant.archs.contains(&90));
        for variant in some_variants(hopper.collect()) {
            let sim = |sms| simulated(SimOptions { arch: 90, sms, seed: 3, ..SimOptions::default() });
            let many = case.run(&sim(None), Some(planned(variant, 1, None)), 0);
            for splits in [1, 3] {
                let one = case.run(&sim(Some(1)), Some(planned(variant, splits, None)), 0);
                assert!(one == many, "{} in {splits}, k = {k}: differs", variant.name);
            }
        }
    }
}

/// Blocks in pairs give the bits of single ones: tiles in even and odd numbers, one or several for each pair, and results
/// of both widths.
#[test]
fn pairs_compute_what_single_blocks_do() {
    for (m, n, out, accumulate) in [(200, 200, DType::F16, true), (97, 300, DType::F32, false)] {
        let case = Case { m, n, k: 584, dtype: DType::F16, out, biased: true, accumulate, shifts: [0, 8, 1] };
        let hopper = case.variants().into_iter().filter(|variant| variant.archs.contains(&90));
        let mut plain: Option<Vec<u8>> = None;
        let tall = hopper.filter(|variant| variant.int("m").is_some_and(|m| m >= 64));
        for variant in some_variants(tall.collect()) {
            let Some(stream) = arch_stream(variant, 90) else { continue };
            let plain = plain.get_or_insert_with(|| case.run(&stream, Some(planned(variant, 1, None)), 0));
            for pair in [MatMulPair::X, MatMulPair::Weight] {
                let plan = Some(planned(variant, 1, Some(pair)));
                assert!(case.run(&stream, plan, 0) == *plain, "{}: pairs with one {pair:?} differ", variant.name);
            }
            if stream.info().device != "sim" {
                continue;
            }
            // On three multiprocessors there is one pair, or there are as many as these hold.
            let few = SimOptions { arch: 90, sms: Some(3), seed: 7, ..SimOptions::default() };
            let plan = Some(planned(variant, 1, Some(MatMulPair::X)));
            let got = case.run(&simulated(few), plan, 0);
            assert!(got == *plain, "{}: pairs that stay differ", variant.name);
        }
    }
}

/// Of a pair's launch too every access fills its sectors, and no bank is asked twice.
#[test]
fn pairs_use_memory_to_the_full_on_the_simulator() {
    let (dtype, biased, accumulate, shifts) = (DType::F16, false, true, [0; 3]);
    let case = Case { m: 128, n: 256, k: 128, dtype, out: dtype, biased, accumulate, shifts };
    for variant in case.variants().into_iter().filter(|variant| variant.archs.contains(&90)) {
        if variant.int("m") == Some(64) {
            let stream = counting_stream(variant);
            case.run(&stream, Some(planned(variant, 1, Some(MatMulPair::X))), 0);
            assert_no_waste(&stream, |_| true);
        }
    }
}

/// The device that runs the tests, where it is of the architecture; the simulator can be any.
fn arch_stream(variant: &Variant, arch: u32) -> Option<Stream> {
    let stream = stream(variant, 5)?;
    if stream.info().device == "sim" {
        return Some(simulated(SimOptions { arch, seed: 5, ..SimOptions::default() }));
    }
    (stream.arch() == arch).then_some(stream)
}

/// Tiles are loaded in whole sectors, no bank of shared memory is asked twice while they are multiplied, and results leave
/// in whole sectors, through banks that Volta's fragments alone share. So does what they are added to come.
#[test]
fn tiles_use_memory_to_the_full_on_the_simulator() {
    let in_loop = |site: &SiteStats| {
        ["matmul_tile.cuh", "matmul_fragments.cuh"].iter().any(|file| site.place.file.ends_with(file))
    };
    for out in [DType::F16, DType::F32] {
        for (splits, accumulate) in [(1, true), (2, false)] {
            let (dtype, biased, shifts) = (DType::F16, false, [0; 3]);
            let case = Case { m: 64, n: 128, k: 576, dtype, out, biased, accumulate, shifts };
            for variant in some_variants(case.variants()) {
                let by_rows = variant.value("instruction") == Some(Value::Text("m8n8k4"));
                let stream = counting_stream(variant);
                case.run(&stream, Some(planned(variant, splits, None)), 0);
                assert_no_waste(&stream, |site| in_loop(site) || site.space == Space::Global || !by_rows);
            }
        }
    }
}

#[test]
fn nothing_times_nothing_is_the_bias() {
    let (dtype, out, biased, accumulate, shifts) = (DType::F16, DType::F32, true, false, [0; 3]);
    let case = Case { m: 2, n: 3, k: 0, dtype, out, biased, accumulate, shifts };
    for variant in case.variants() {
        let Some(stream) = stream(variant, 1) else { continue };
        let bias = numbers(3, 3, DType::F16);
        assert_eq!(
            decode(DType::F32, &case.run(&stream, Some(planned(variant, 1, None)), 0)),
            [bias.clone(), bias].concat()
        );
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let variant = dense_products(DType::F16, DType::F16)[0];
    let stream = stream(variant, 1).expect("f16 is everywhere");
    let attempt = |x_len, w_dtype, bias_len, out_dtype, m| {
        let x = Placed::untouched(&stream, DType::F16, x_len, 0);
        let weight = Placed::untouched(&stream, w_dtype, 12, 0);
        let bias = Placed::untouched(&stream, DType::F16, bias_len, 0);
        let mut out = Placed::untouched(&stream, out_dtype, 6, 0);
        let (x, weight, bias) = (x.slice(), weight.slice(), Some(bias.slice()));
        MatMul {
            x,
            weight: weight.into(),
            bias,
            gate: None,
            out: out.slice_mut(),
            accumulate: false,
            scale: None,
            workspace: None,
            m,
            n: 3,
            k: 4,
        }
        .launch(&stream)
    };
    const OP: &str = "matmul";
    attempt(8, DType::F16, 3, DType::F16, 2).unwrap();
    attempt(8, DType::F16, 3, DType::F16, 0).unwrap();
    assert_refused(attempt(7, DType::F16, 3, DType::F16, 2), OP, "x");
    assert_refused(attempt(8, DType::BF16, 3, DType::F16, 2), OP, "weight");
    assert_refused(attempt(8, DType::F16, 2, DType::F16, 2), OP, "bias");
    assert_refused(attempt(12, DType::F16, 3, DType::F16, 3), OP, "out");
    assert_refused(attempt(8, DType::F16, 3, DType::BF16, 2), OP, "out");
    assert_refused(attempt(8, DType::F16, 3, DType::F16, usize::MAX), OP, "x");

    // Splits: no more than spans, and none without a workspace that holds their sums.
    let split = |splits, dtype, words, from: usize| {
        let (m, n, k) = (1, 64, 1024);
        let x = Placed::untouched(&stream, DType::F16, k, 0);
        let weight = Placed::untouched(&stream, DType::F16, n * k, 0);
        let mut out = Placed::untouched(&stream, DType::F16, n, 0);
        let mut workspace = stream.alloc(dtype, words).unwrap();
        let workspace = workspace.slice_mut().range(from..words);
        let (x, weight, out) = (x.slice(), weight.slice(), out.slice_mut());
        MatMul {
            x,
            weight: weight.into(),
            bias: None,
            gate: None,
            out,
            accumulate: false,
            scale: None,
            workspace,
            m,
            n,
            k,
        }
        .launch_plan(&stream, &planned(variant, splits, None))
    };
    let words = 4096 + 2 * variant.int("m").unwrap() as usize * variant.int("n").unwrap() as usize;
    split(2, DType::U32, words, 0).unwrap();
    assert_refused(split(0, DType::U32, words, 0), OP, "splits");
    assert_refused(split(3, DType::U32, words, 0), OP, "splits");
    assert_refused(split(2, DType::F32, words, 0), OP, "workspace");
    assert_refused(split(2, DType::U32, words - 1, 0), OP, "workspace");
    assert_refused(split(2, DType::U32, words + 1, 1), OP, "workspace");
    assert_refused(split(2, DType::U32, 0, 1), OP, "workspace");

    // Sums with what is there: of numbers, without a gate.
    let accumulate = |gate, out: DType| {
        let (m, n, k) = (1, 8, 8);
        let x = Placed::untouched(&stream, DType::F16, m * k, 0);
        let weight = Placed::untouched(&stream, DType::F16, 2 * n * k, 0);
        let scale = Placed::of(&stream, DType::F32, &[1.0], 0);
        let mut to = Placed::untouched(&stream, out, m * n, 0);
        let (x, weight, scale, to) =
            (x.slice(), weight.slice(), (out.size() == 1).then(|| scale.slice()), to.slice_mut());
        MatMul {
            x,
            weight: weight.into(),
            bias: None,
            gate,
            out: to,
            accumulate: true,
            scale,
            workspace: None,
            m,
            n,
            k,
        }
        .launch(&stream)
    };
    accumulate(None, DType::F32).unwrap();
    assert_refused(accumulate(Some(Activation::Silu), DType::F16), OP, "accumulate");
    assert_refused(accumulate(None, DType::I8), OP, "accumulate");
}

/// Pairs are for Hopper, with one split, where rows can be copied in boxes.
#[test]
fn pairs_of_wrong_shapes_are_refused_on_the_simulator() {
    let attempt = |variant: &'static Variant, arch, splits, k, shift| {
        let (m, n) = (64, 64);
        let stream = simulated(SimOptions { arch, ..SimOptions::default() });
        let x = Placed::untouched(&stream, DType::F16, m * k, shift);
        let weight = Placed::untouched(&stream, DType::F16, n * k, 0);
        let mut out = Placed::untouched(&stream, DType::F16, m * n, 0);
        let mut workspace = stream.alloc(DType::U32, MatMul::WORKSPACE / 8).unwrap();
        let (x, weight, out, workspace) = (x.slice(), weight.slice(), out.slice_mut(), Some(workspace.slice_mut()));
        let args = MatMul {
            x,
            weight: weight.into(),
            bias: None,
            gate: None,
            out,
            accumulate: false,
            scale: None,
            workspace,
            m,
            n,
            k,
        };
        args.launch_plan(&stream, &planned(variant, splits, Some(MatMulPair::X)))
    };
    let all = dense_products(DType::F16, DType::F16);
    let of = |arch, m| *all.iter().find(|v| v.archs.contains(&arch) && v.int("m") == Some(m)).expect("a variant");
    const OP: &str = "matmul";
    attempt(of(90, 16), 90, 1, 1024, 0).unwrap();
    assert_refused(attempt(of(90, 16), 90, 2, 1024, 0), OP, "pair");
    assert_refused(attempt(of(90, 16), 90, 1, 1023, 0), OP, "pair");
    assert_refused(attempt(of(90, 16), 90, 1, 1024, 1), OP, "pair");
    assert_refused(attempt(of(90, 8), 90, 1, 1024, 0), OP, "pair");
    assert_refused(attempt(of(80, 16), 80, 1, 1024, 0), OP, "pair");
}

/// By NVIDIA's library, on a GPU where it is installed; elsewhere it says what is missing. It is the control of the bounds:
/// where it fails here, they are too narrow for the hardware.
#[cfg(feature = "cuda")]
#[test]
fn a_library_may_multiply() {
    use burrstone::device::CublasLt;

    use crate::tensor_cores::{largest_partial, truncation};

    let dtype = DType::F16;
    let variant = dense_products(dtype, dtype)[0];
    let stream = stream(variant, 1).expect("f16 is everywhere");
    let library = match CublasLt::new(&stream) {
        Ok(library) => library,
        Err(error) => {
            let missing = if stream.info().device == "sim" { "expected a GPU" } else { "libcublasLt cannot be loaded" };
            assert_eq!(error.to_string(), format!("device {}: cuBLASLt: {missing}", stream.info().device));
            return;
        }
    };
    let shapes = [(37, 72, 200), (16, 64, 4096)];
    let outs = [(DType::F16, false), (DType::F16, true), (DType::F32, false)];
    for ((m, n, k), (out, biased)) in shapes.into_iter().flat_map(|shape| outs.map(|out| (shape, out))) {
        let (x, w, b) = (numbers(1, m * k, dtype), numbers(2, n * k, dtype), numbers(3, n, dtype));
        let bias = biased.then_some(b.as_slice());
        let (plain, exact) = (matmul::<f32>(&x, &w, bias, m, n, k), matmul::<f64>(&x, &w, bias, m, n, k));
        // Nobody says how many products a step of its kernels adds: four are the fewest of all architectures.
        let more = truncation(k, 4, largest_partial(&x, &w, k));
        let [x, w, b] = [&x, &w, &b].map(|values| Placed::of(&stream, dtype, values, 0));
        let mut workspace = stream.alloc(DType::U32, MatMul::WORKSPACE).unwrap();
        let mut to = Placed::untouched(&stream, out, m * n, 0);
        let (x, weight, bias) = (x.slice(), w.slice(), biased.then(|| b.slice()));
        let (gate, to_slice, accumulate, scale) = (None, to.slice_mut(), false, None);
        let workspace = Some(workspace.slice_mut());
        let args =
            MatMul { x, weight: weight.into(), bias, gate, out: to_slice, accumulate, scale, workspace, m, n, k };
        args.launch_cublas_lt(&library).unwrap();
        let got = to.read();
        let error = got.iter().zip(&exact).fold(0.0f64, |a, (&x, e)| a.max((f64::from(x) - e).abs()));
        let bound = allowed(out, &plain, &exact);
        println!("cuBLASLt, {m} x {n} x {k} in {out}: off by {error:e}, bound {bound:e} + {more:e}");
        assert_close_but_for(more, "cuBLASLt", out, &got, &plain, &exact);
    }
}
