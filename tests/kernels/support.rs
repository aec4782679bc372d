//! Shared by the kernel tests: data, devices, tolerances.

use burrstone::DType;
use burrstone::cpu::{Buffer, Cpu, CpuOptions, Isa, Step};
use burrstone::device::{Bytes, SimOptions, Stream};
use burrstone::ops::{Activation, Batch, LinearPart, Ops, SampleRow, Span, WeightView};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::gpu::{gpu, on_a_gpu};
use crate::slice::one_in_turn;

/// The instruction sets to test: all of this machine, or the one that `BURRSTONE_TEST_ISA` names.
pub fn isas() -> Vec<Isa> {
    match std::env::var("BURRSTONE_TEST_ISA") {
        Ok(name) => {
            let isa = Isa::ALL
                .into_iter()
                .find(|isa| isa.name() == name)
                .expect("BURRSTONE_TEST_ISA names an instruction set");
            assert!(isa.is_present(), "this machine has no {name}");
            vec![isa]
        }
        Err(_) => Isa::ALL.into_iter().filter(|isa| isa.is_present()).collect(),
    }
}

pub fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads, isa: Some(isa) }).unwrap()
}

/// A simulated GPU.
pub fn simulated(options: SimOptions) -> Stream {
    crate::simulator::load();
    Stream::sim(options).unwrap()
}

/// The device for tests of CUDA kernels: the simulator, whose thread order is drawn from `seed`, or with
/// `BURRSTONE_TEST_DEVICE=cuda` the GPU.
pub fn stream(seed: u64) -> Stream {
    if on_a_gpu() {
        return gpu();
    }
    simulated(SimOptions { seed, ..SimOptions::default() })
}

/// A simulator for each generation of tensor cores, or the GPU.
pub fn streams(seed: u64) -> Vec<Stream> {
    if on_a_gpu() {
        return vec![stream(seed)];
    }
    [70, 75, 80, 90].map(|arch| simulated(SimOptions { arch, seed, ..SimOptions::default() })).into()
}

/// One of [`streams`], a different one at each commit: for tests whose subject other tests run on every architecture.
pub fn stream_in_turn(seed: u64) -> Vec<Stream> {
    one_in_turn(streams(seed))
}

pub fn any_isa() -> impl Strategy<Value = Isa> {
    proptest::sample::select(isas())
}

pub fn any_dtype() -> impl Strategy<Value = DType> {
    proptest::sample::select(vec![DType::F32, DType::BF16, DType::F16])
}

/// A dtype of the KV cache.
pub fn any_cache_dtype() -> impl Strategy<Value = DType> {
    let all = [DType::F32, DType::BF16, DType::F16, DType::E4M3, DType::E5M2, DType::I8];
    proptest::sample::select(all.to_vec())
}

/// One of the benchmarked shapes.
pub fn one_of<P: 'static, T: Clone + std::fmt::Debug + 'static>(
    problems: &'static [P],
    shape: impl Fn(&P) -> T,
) -> impl Strategy<Value = T> {
    proptest::sample::select(problems.iter().map(shape).collect::<Vec<T>>())
}

/// `n` cases, or `PROPTEST_CASES`. Every run draws the same, so that a failure can be reproduced.
pub fn cases(n: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    let rng_seed = proptest::test_runner::RngSeed::Fixed(2026);
    ProptestConfig { cases: asked.unwrap_or(n), failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

/// A hash of `(seed, index)`: SplitMix64.
pub fn bits(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The numbers `0..n`, shuffled.
pub fn shuffled(seed: u64, n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_by_key(|&i| bits(seed, u64::from(i)));
    order
}

/// `n` numbers in −1..1, rounded to `dtype`.
pub fn numbers(seed: u64, n: usize, dtype: DType) -> Vec<f32> {
    (0..n as u64).map(|i| round((bits(seed, i) >> 40) as f32 / (1 << 23) as f32 - 1.0, dtype)).collect()
}

pub fn round(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        _ => x,
    }
}

pub fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    let bytes = |x: &f32| match dtype {
        DType::BF16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

/// A tensor at an odd address, as in a checkpoint whose header has an odd length.
pub fn view(values: &[f32], shape: &[usize], dtype: DType) -> WeightView {
    let mut bytes = vec![0xff];
    bytes.extend(encode(values, dtype));
    let data = Bytes::from(bytes);
    let data = data.slice(1..data.len()).unwrap();
    WeightView { name: "w".to_owned(), dtype, shape: shape.to_vec(), data }
}

/// Parts of a linear layer, with a bias for each or none.
pub fn parts(weights: Vec<WeightView>, biases: Vec<WeightView>) -> Vec<LinearPart> {
    let mut biases = biases.into_iter();
    weights.into_iter().map(|weight| LinearPart { bias: biases.next(), ..LinearPart::dense(weight) }).collect()
}

pub fn buffer(cpu: &Cpu, dtype: DType, values: &[f32]) -> Buffer {
    let mut buffer = cpu.buffer(dtype, values.len()).unwrap();
    buffer.write(values).unwrap();
    buffer
}

/// `activation(gate) · up`. With a single input of 1, the products of a gated layer are its weights.
pub fn act_mul(cpu: &Cpu, activation: Activation, gate: &[f32], up: &[f32], dtype: DType) -> Vec<f32> {
    let blocks = [gate, up].map(|values| view(values, &[values.len(), 1], DType::F32));
    let matrix = cpu.gated_matrix(parts(blocks.into(), Vec::new())).unwrap();
    let mut out = cpu.buffer(dtype, gate.len()).unwrap();
    cpu.gated_matmul(1, &buffer(cpu, DType::F32, &[1.0]), &matrix, activation, &mut out).unwrap();
    out.read(gate.len()).unwrap()
}

/// One sequence of `tokens` in the slots of page 0.
pub fn step_of(cpu: &Cpu, tokens: &[u32], logit_rows: &[u32]) -> Step {
    let mut step = cpu.step().unwrap();
    cpu.upload(&batch_of(tokens, logit_rows), &mut step).unwrap();
    step
}

fn batch_of(tokens: &[u32], logit_rows: &[u32]) -> Batch {
    let n = tokens.len();
    Batch {
        tokens: tokens.to_vec(),
        slots: (0..n as u32).collect(),
        rope_rows: (0..n as u32).collect(),
        spans: vec![Span { start: 0, len: n, kv_len: n, pages: 0 }],
        page_table: vec![0].into(),
        logit_rows: logit_rows.to_vec(),
        ..Batch::default()
    }
}

/// A step with `rows` rows of logits, each to sample or to score.
pub fn step_for_logits(cpu: &Cpu, rows: usize, samples: Vec<SampleRow>, targets: Vec<u32>) -> Step {
    let mut batch = batch_of(&vec![0; rows], &(0..rows as u32).collect::<Vec<_>>());
    batch.samples = samples;
    batch.targets = targets;
    let mut step = cpu.step().unwrap();
    cpu.upload(&batch, &mut step).unwrap();
    step
}

/// Half a unit in the last place of 1.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 0.5f64.powi(8),
        DType::F16 => 0.5f64.powi(11),
        _ => 0.5f64.powi(24),
    }
}

/// The allowed distance from `exact`: twice the error of the plain f32 implementation plus twice the rounding of a
/// result.
pub fn allowed(dtype: DType, plain: &[f32], exact: &[f64]) -> f64 {
    let largest = exact.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    let plain_error = plain.iter().zip(exact).fold(0.0f64, |a, (&p, e)| a.max((f64::from(p) - e).abs()));
    // The rounding error of a subnormal is absolute.
    let least = if dtype == DType::F16 { 0.5f64.powi(25) } else { 0.0 };
    // A few numbers can be exact by luck, so four roundings are always allowed.
    let plain_error = plain_error.max(4.0 * rounding(DType::F32) * largest);
    2.0 * plain_error + 2.0 * (rounding(dtype) * largest).max(least)
}

/// Each element within [`allowed`], and a small relative distance of the whole.
#[track_caller]
pub fn assert_close(what: &str, dtype: DType, got: &[f32], plain: &[f32], exact: &[f64]) {
    assert_close_but_for(0.0, what, dtype, got, plain, exact);
}

/// [`assert_close`] with `more` error allowed, see [`tensor_cores`](crate::tensor_cores).
#[track_caller]
pub fn assert_close_but_for(more: f64, what: &str, dtype: DType, got: &[f32], plain: &[f32], exact: &[f64]) {
    assert_eq!((got.len(), plain.len()), (exact.len(), exact.len()), "{what}: lengths");
    let bound = allowed(dtype, plain, exact) + more;
    let (mut cross, mut squares) = (0.0, 0.0);
    for (i, (&x, &e)) in got.iter().zip(exact).enumerate() {
        let error = (f64::from(x) - e).abs();
        assert!(error <= bound, "{what}: element {i} is {x}, not {e}: off by {error:e}, allowed {bound:e}");
        cross += f64::from(x) * e;
        squares += f64::from(x).powi(2) + e * e;
    }
    let distance = if squares == 0.0 { 0.0 } else { 1.0 - 2.0 * cross / squares };
    assert!(distance < 1e-5, "{what}: distance {distance:e}");
}

/// Codes times their scale are the exact values, up to rounding to the nearest code and f32 errors.
#[track_caller]
pub fn assert_quantized(what: &str, dtype: DType, codes: &[f32], scale: f32, exact: &[f64]) {
    assert_eq!(codes.len(), exact.len(), "{what}: lengths");
    let scale = f64::from(scale);
    let largest = exact.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    let (mut cross, mut squares) = (0.0, 0.0);
    for (i, (&code, &e)) in codes.iter().zip(exact).enumerate() {
        let x = f64::from(code) * scale;
        // Half the distance between neighbouring codes.
        let half = match dtype {
            DType::E4M3 => (e.abs() / 16.0).max(0.5f64.powi(10) * scale),
            DType::E5M2 => (e.abs() / 8.0).max(0.5f64.powi(17) * scale),
            _ => 0.5 * scale,
        };
        let (error, bound) = ((x - e).abs(), 1.001 * half + 1e-5 * largest);
        assert!(
            error <= bound,
            "{what}: element {i} is {code} · {scale}, not {e}: off by {error:e}, allowed {bound:e}"
        );
        cross += x * e;
        squares += x * x + e * e;
    }
    // Half a step of E5M2 is an eighth of the value.
    let allowed = if dtype == DType::E5M2 { 8e-3 } else { 1e-3 };
    let distance = if squares == 0.0 { 0.0 } else { 1.0 - 2.0 * cross / squares };
    assert!(codes.len() < 8 || distance < allowed, "{what}: distance {distance:e}");
}

#[track_caller]
pub fn assert_same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}: lengths");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{what}: element {i}: {a} and {b}");
    }
}

/// Asserts that an error names the operator and the field.
#[track_caller]
pub fn assert_refused<T>(result: burrstone::Result<T>, op: &str, field: &str) {
    let message = result.err().expect("refused").to_string();
    assert!(message.starts_with(&format!("operator {op}: {field}: expected ")), "{message}");
}
