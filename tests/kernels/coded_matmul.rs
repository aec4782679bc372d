//! Products with quantized weights: codes in every format and group size give the bits of the dequantized weight.

use std::collections::BTreeSet;
use std::sync::Arc;

use burrstone::DType;
use burrstone::device::{Bytes, SimOptions, Stream, Variant};
use burrstone::kernels::{Gpu, MatMul, MatMulPair, MatMulPlan, MatMulWeight, PackedWeight};
use burrstone::ops::{
    Activation, ActivationBits, Code, CodedWeight, LinearPart, Ops, Scales, Weight, WeightView, Zeros,
};
use proptest::prelude::*;

use crate::device::{Placed, assert_no_waste, counting_stream, decode, planned, products, some_variants, stream};
use crate::reference::matmul::matmul;
use crate::support::*;
use crate::tensor_cores::matmul_truncation;

/// The numbers of e2m1: what MXFP4 and NVFP4 consist of.
const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Scales, beside what they belong to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ScaleBits {
    /// Numbers of the activations' dtype, each with a zero point of its own.
    Sixteen,
    /// Others, and one zero point.
    ThirtyTwo,
}

fn coded(seed: u64, [n, k]: [usize; 2], code: Code, group: usize, scales: ScaleBits, dtype: DType) -> CodedWeight {
    let bytes: Vec<u8> = (0..(n * code.row_bytes(k)) as u64).map(|i| bits(seed, i) as u8).collect();
    let blocks = n * k.div_ceil(group);
    let largest = if code.bits() == 8 { 255 } else { 15 };
    let values = numbers(seed + 1, blocks, DType::F32).into_iter().map(|x| x / 16.0);
    let (values, zeros) = match (scales, code) {
        (ScaleBits::Sixteen, Code::U4 | Code::U8) => {
            let zeros = (0..blocks as u64).map(|i| (bits(seed + 2, i) % (largest + 1)) as u8).collect();
            (values.map(|x| round(x, dtype)).collect(), Zeros::Each(zeros))
        }
        _ => (values.collect(), Zeros::All(largest as u8 / 2 + 1)),
    };
    CodedWeight {
        name: "w".to_owned(),
        shape: [n, k],
        code,
        codes: Bytes::from(bytes),
        scales: Scales { rows: 1, columns: group, values, zeros },
        order: None,
        activations: ActivationBits::Full,
    }
}

#[derive(Clone, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    code: Code,
    group: usize,
    scales: ScaleBits,
    dtype: DType,
    out: DType,
    gate: Option<Activation>,
    biased: bool,
    accumulate: bool,
}

impl Case {
    fn variants(&self) -> Vec<&'static Variant> {
        products(self.dtype, self.out, if self.code.bits() == 4 { "u4" } else { "u8" })
    }

    /// One, or gate and up.
    fn blocks(&self) -> Vec<CodedWeight> {
        let Self { n, k, code, group, scales, dtype, .. } = *self;
        let blocks = 0..if self.gate.is_some() { 2 } else { 1 };
        blocks.map(|i| coded(10 * i + 1, [n, k], code, group, scales, dtype)).collect()
    }

    fn packed(&self, stream: &Stream) -> PackedWeight {
        let packed = match self.blocks().as_slice() {
            [gate, up] => PackedWeight::gated(stream, self.dtype, [gate, up]),
            [block] => PackedWeight::stacked(stream, self.dtype, &[block]),
            _ => unreachable!("one or two"),
        };
        packed.unwrap().expect("a format of the kernels")
    }

    /// The dequantized weight, gates and ups in groups of eight rows.
    fn dense(&self) -> Vec<f32> {
        let Self { n, k, dtype, .. } = *self;
        let blocks: Vec<Vec<f32>> = self.blocks().iter().map(|b| decode(dtype, &b.dense(dtype).data)).collect();
        let [gate, up] = blocks.as_slice() else { return blocks.concat() };
        let row = |values: &[f32], row: usize| match row < n {
            true => values[row * k..][..k].to_vec(),
            false => vec![0.0; k],
        };
        let groups = (0..n.div_ceil(8)).flat_map(|group| {
            let rows = 8 * group..8 * group + 8;
            rows.clone().flat_map(|r| row(gate, r)).chain(rows.flat_map(|r| row(up, r))).collect::<Vec<_>>()
        });
        groups.collect()
    }

    fn run(&self, stream: &Stream, weight: MatMulWeight<'_>, plan: Option<MatMulPlan>) -> Vec<u8> {
        let Self { m, n, k, dtype, out, gate, accumulate, .. } = *self;
        let rows = if gate.is_some() { MatMul::gated_rows(n) } else { n };
        let x = Placed::of(stream, dtype, &numbers(5, m * k, dtype), 0);
        let bias = Placed::of(stream, dtype, &numbers(6, rows, dtype), 1);
        let mut workspace = stream.alloc(DType::U32, MatMul::WORKSPACE / 8).unwrap();
        let mut to = Placed::of(stream, out, &numbers(7, m * n, out), 0);
        let args = MatMul {
            x: x.slice(),
            weight,
            bias: self.biased.then(|| bias.slice()),
            gate,
            out: to.slice_mut(),
            accumulate,
            scale: None,
            workspace: Some(workspace.slice_mut()),
            m,
            n,
            k,
        };
        match plan {
            Some(plan) => args.launch_plan(stream, &plan),
            None => args.launch(stream),
        }
        .unwrap();
        to.bytes()
    }

    fn check(&self) {
        let Self { m, n, k, dtype, out, .. } = *self;
        let spans = k.div_ceil(512);
        let dense = self.dense();
        for variant in some_variants(self.variants()) {
            let Some(stream) = stream(variant, k as u64) else { continue };
            let packed = self.packed(&stream);
            let weight = Placed::of(&stream, dtype, &dense, 0);
            let expected = self.run(&stream, weight.slice().into(), None);
            for splits in BTreeSet::from([1, spans]) {
                let got = self.run(&stream, packed.codes().into(), Some(planned(variant, splits, None)));
                assert!(got == expected, "{} in {splits}: not the bits of the dense product", variant.name);
            }
            assert!(self.run(&stream, packed.codes().into(), None) == expected, "sm_{}: as chosen", stream.arch());
            if self.gate.is_none() && !self.accumulate && !self.biased {
                let x = numbers(5, m * k, dtype);
                let (plain, exact) = (matmul(&x, &dense, None, m, n, k), matmul(&x, &dense, None, m, n, k));
                let more = matmul_truncation(variant, &x, &dense, k);
                assert_close_but_for(more, variant.name, out, &decode(out, &expected), &plain, &exact);
            }
        }
    }
}

fn any_case() -> impl Strategy<Value = Case> {
    let code = proptest::sample::select(vec![Code::U4, Code::U8, Code::Table(E2M1)]);
    let k = proptest::sample::select(vec![16usize, 48, 64, 80, 128, 192, 576, 1040]);
    // The last one stands for all of k.
    let group = proptest::sample::select(vec![16usize, 32, 64, 128, 0]);
    let scales = proptest::sample::select(vec![ScaleBits::Sixteen, ScaleBits::ThirtyTwo]);
    let dtype = proptest::sample::select(vec![DType::BF16, DType::F16]);
    let size = (prop_oneof![1usize..20, Just(65), Just(130)], prop_oneof![1usize..80, 120usize..140]);
    let gate = proptest::option::weighted(0.3, proptest::sample::select(vec![Activation::Silu, Activation::GeluTanh]));
    (size, k, (code, group, scales), dtype, gate, any::<[bool; 3]>()).prop_map(
        |((m, n), k, (code, group, scales), dtype, gate, [wide, biased, accumulate])| {
            let group = if group == 0 || group > k { k } else { group };
            let out = if wide && gate.is_none() { DType::F32 } else { dtype };
            let accumulate = accumulate && gate.is_none();
            Case { m, n, k, code, group, scales, dtype, out, gate, biased, accumulate }
        },
    )
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn codes_give_the_bits_of_the_dequantized_weight_on_devices(case in any_case()) {
        case.check();
    }
}

/// Blocks in pairs that share x give the bits of single ones: tiles in even and odd numbers.
#[test]
fn pairs_compute_what_single_blocks_do_on_devices() {
    for (code, n, dtype) in [(Code::U4, 200, DType::F16), (Code::U8, 256, DType::BF16)] {
        let (m, k, group, scales, out) = (150, 592, 32, ScaleBits::Sixteen, dtype);
        let case = Case { m, n, k, code, group, scales, dtype, out, gate: None, biased: true, accumulate: false };
        let hopper = case.variants().into_iter().filter(|variant| variant.archs.contains(&90));
        for variant in some_variants(hopper.collect()) {
            let Some(stream) = stream(variant, 3) else { continue };
            let packed = case.packed(&stream);
            let run = |pair| case.run(&stream, packed.codes().into(), Some(planned(variant, 1, pair)));
            assert!(run(Some(MatMulPair::X)) == run(None), "{}: pairs differ", variant.name);
        }
    }
}

/// Codes and scales are copied in whole sectors, and no bank of shared memory is asked twice for them.
#[test]
fn codes_use_memory_to_the_full_on_the_simulator() {
    for (code, group) in [(Code::U4, 128), (Code::U8, 32)] {
        let (m, n, k, scales, dtype) = (64, 128, 576, ScaleBits::Sixteen, DType::F16);
        let (out, gate, biased, accumulate) = (dtype, None, false, false);
        let case = Case { m, n, k, code, group, scales, dtype, out, gate, biased, accumulate };
        for variant in some_variants(case.variants()) {
            let stream = counting_stream(variant);
            let packed = case.packed(&stream);
            case.run(&stream, packed.codes().into(), Some(planned(variant, 1, None)));
            let copied = ["matmul_tile.cuh", "matmul_fragments.cuh", "matmul_warpgroup.cuh"];
            assert_no_waste(&stream, |site| copied.iter().any(|file| site.place.file.ends_with(file)));
        }
    }
}

/// Every code at every place of a group, with every zero point of four bits and many of eight, in each dtype.
#[test]
fn every_code_is_dequantized_exactly_on_devices() {
    for (code, dtype, scales) in [Code::U4, Code::U8, Code::Table(E2M1)].into_iter().flat_map(|code| {
        [DType::BF16, DType::F16]
            .into_iter()
            .flat_map(move |dtype| [ScaleBits::Sixteen, ScaleBits::ThirtyTwo].map(|scales| (code, dtype, scales)))
    }) {
        // x picks one element of a row for each token: the product is the element itself.
        let (n, k) = (256, 128);
        let mut block = coded(3, [n, k], code, 16, scales, dtype);
        // Row r has zero point r, and column j of it code r + j.
        let nibble = |i: usize| (i % 16) as u8;
        let bytes: Vec<u8> = match code.bits() {
            4 => (0..n).flat_map(|r| (0..k / 2).map(move |j| nibble(r + 2 * j) | nibble(r + 2 * j + 1) << 4)).collect(),
            _ => (0..n).flat_map(|r| (0..k).map(move |j| (r + 2 * j) as u8)).collect(),
        };
        block.codes = Bytes::from(bytes);
        if let Zeros::Each(zeros) = &mut block.scales.zeros {
            let largest = if code.bits() == 4 { 15 } else { 255 };
            zeros.iter_mut().enumerate().for_each(|(i, zero)| *zero = (i / (k / 16) % (largest + 1)) as u8);
        }
        let expected = decode(dtype, &block.dense(dtype).data);
        let (mut x, m) = (vec![0.0f32; k * k], k);
        (0..k).for_each(|j| x[j * k + j] = 1.0);
        for variant in some_variants(products(dtype, dtype, if code.bits() == 4 { "u4" } else { "u8" })) {
            let Some(stream) = stream(variant, 1) else { continue };
            let packed = PackedWeight::stacked(&stream, dtype, &[&block]).unwrap().expect("a format of the kernels");
            let x = Placed::of(&stream, dtype, &x, 0);
            let mut out = Placed::untouched(&stream, dtype, m * n, 0);
            let args = MatMul {
                x: x.slice(),
                weight: packed.codes().into(),
                bias: None,
                gate: None,
                out: out.slice_mut(),
                accumulate: false,
                scale: None,
                workspace: None,
                m,
                n,
                k,
            };
            args.launch_plan(&stream, &planned(variant, 1, None)).unwrap();
            for (i, &got) in out.read().iter().enumerate() {
                let (row, column) = (i % n, i / n);
                // Zeros of either sign are one sum.
                assert_eq!(got, expected[row * k + column], "{}: row {row}, column {column}", variant.name);
            }
        }
    }
}

fn part(weight: CodedWeight) -> LinearPart {
    LinearPart { weight: Weight::Coded(weight), bias: None }
}

fn dequantized(weight: &CodedWeight, dtype: DType) -> WeightView {
    weight.dense(dtype)
}

/// Layers of blocks that share a format, of blocks that do not, and of what the kernels do not take.
#[test]
fn layers_of_any_blocks_give_the_bits_of_dequantized_ones_on_devices() {
    let (m, k, dtype) = (9, 128, DType::F16);
    let block = |seed, n, code, group, scales| coded(seed, [n, k], code, group, scales, dtype);
    let four = |seed, n| block(seed, n, Code::U4, 32, ScaleBits::Sixteen);
    let in_order = |seed, order| CodedWeight { order: Some(Arc::from(shuffled(order, k))), ..four(seed, 24) };
    let mut tall = four(6, 24);
    tall.scales = Scales { rows: 24, columns: k, values: vec![0.125], zeros: Zeros::All(8) };
    let layers = [
        vec![four(1, 40), four(2, 24), four(3, 24)],
        vec![four(1, 40), block(2, 24, Code::U4, k, ScaleBits::Sixteen)],
        vec![four(1, 40), block(2, 24, Code::U4, 32, ScaleBits::ThirtyTwo)],
        vec![four(1, 40), block(2, 24, Code::U8, 32, ScaleBits::Sixteen)],
        vec![block(1, 24, Code::E4m3, k, ScaleBits::ThirtyTwo)],
        vec![in_order(5, 9), in_order(7, 9)],
        vec![in_order(5, 9), in_order(7, 10)],
        vec![tall],
    ];
    for stream in stream_in_turn(4) {
        let gpu = Gpu::new(stream.clone(), dtype, 16, 100).unwrap();
        let mut x = gpu.buffer(dtype, m * k).unwrap();
        x.write(&encode(&numbers(8, m * k, dtype), dtype)).unwrap();
        let product = |parts: Vec<LinearPart>, n: usize| {
            let matrix = gpu.matrix(parts).unwrap();
            let mut out = gpu.buffer(dtype, m * n).unwrap();
            gpu.matmul(m, &x, &matrix, &mut out).unwrap();
            out.read::<u8>().unwrap()
        };
        for (i, blocks) in layers.iter().enumerate() {
            let n = blocks.iter().map(|block| block.shape[0]).sum();
            let views = blocks.iter().map(|block| dequantized(block, dtype)).collect();
            let (got, expected) =
                (product(blocks.iter().cloned().map(part).collect(), n), product(parts(views, Vec::new()), n));
            assert!(got == expected, "sm_{}: layer {i}", stream.arch());
        }
        let gated = |parts: Vec<LinearPart>| {
            let matrix = gpu.gated_matrix(parts).unwrap();
            let mut out = gpu.buffer(dtype, m * 24).unwrap();
            gpu.gated_matmul(m, &x, &matrix, Activation::Silu, &mut out).unwrap();
            out.read::<u8>().unwrap()
        };
        for [gate, up] in [[four(1, 24), four(2, 24)], [in_order(1, 9), in_order(2, 9)]] {
            let views = [&gate, &up].map(|block| dequantized(block, dtype)).into();
            assert!(
                gated(vec![part(gate), part(up)]) == gated(parts(views, Vec::new())),
                "sm_{}: gated",
                stream.arch()
            );
        }
    }
}

/// What is packed takes the bytes of its codes and scales.
#[test]
fn codes_save_memory_on_devices() {
    let stream = simulated(SimOptions::default());
    let size = |code, group, scales| {
        let block = coded(1, [256, 512], code, group, scales, DType::F16);
        PackedWeight::stacked(&stream, DType::F16, &[&block]).unwrap().expect("a format of the kernels").bytes()
    };
    assert_eq!(size(Code::U4, 128, ScaleBits::Sixteen), 256 * (512 / 2 + 4 * 4));
    assert_eq!(size(Code::U8, 512, ScaleBits::ThirtyTwo), 256 * (512 + 4));
}

#[test]
fn wrong_codes_are_refused_on_devices() {
    let variant = products(DType::F16, DType::F16, "u4")[0];
    let Some(stream) = stream(variant, 1) else { return };
    let block = coded(1, [24, 64], Code::U4, 32, ScaleBits::Sixteen, DType::F16);
    let packed = PackedWeight::stacked(&stream, DType::F16, &[&block]).unwrap().expect("a format of the kernels");
    let attempt = |n, k, shift, plan: Option<MatMulPlan>| {
        let x = Placed::untouched(&stream, DType::F16, k, shift);
        let mut out = Placed::untouched(&stream, DType::F16, n, 0);
        let (x, weight, out) = (x.slice(), packed.codes().into(), out.slice_mut());
        let args = MatMul {
            x,
            weight,
            bias: None,
            gate: None,
            out,
            accumulate: false,
            scale: None,
            workspace: None,
            m: 1,
            n,
            k,
        };
        match plan {
            Some(plan) => args.launch_plan(&stream, &plan),
            None => args.launch(&stream),
        }
    };
    const OP: &str = "matmul";
    attempt(24, 64, 0, None).unwrap();
    assert_refused(attempt(23, 64, 0, None), OP, "weight");
    assert_refused(attempt(24, 48, 0, None), OP, "weight");
    assert_refused(attempt(24, 64, 1, None), OP, "x");
    let dense = products(DType::F16, DType::F16, "dense")[0];
    assert_refused(attempt(24, 64, 0, Some(planned(dense, 1, None))), OP, "variant");
    assert_refused(attempt(24, 64, 0, Some(planned(variant, 1, Some(MatMulPair::Weight)))), OP, "pair");
}
