//! Shared by the benches: devices with their floors, and the measurement.

use std::cell::{OnceCell, RefCell};
use std::io::Write;
use std::time::Duration;

use burrstone::device::Bytes;
use burrstone::ops::{
    ActivationBits, Batch, CacheShape, Code, CodedWeight, LinearPart, Ops, Rates, SampleRow, Scales, Span, Weight,
    WeightView, Zeros,
};
use burrstone::{DType, Result};
use criterion::{Criterion, Throughput};

/// Weights larger than any cache, so that every call reads its own from memory.
const WEIGHTS: usize = 256 << 20;
/// Tokens per page.
const PAGE_SIZE: usize = 16;

/// Arguments: the weight's number, rows, x and out.
pub type VendorMatmul<B> = Box<dyn FnMut(usize, usize, &B, &mut B) -> Result<()>>;

/// Times this many calls in sequence.
pub type Timer<'a> = Box<dyn FnMut(u64) -> Result<Duration> + 'a>;

/// Samples of a case.
const SAMPLES: usize = 10;

/// Layers of a decoder.
#[derive(Clone, Copy)]
pub struct Layers {
    pub label: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    /// Tokens in the cache before the measured one.
    pub depth: usize,
}

/// A device for the benches.
pub trait Bench: Ops {
    /// The dtype of activations, weights and cache.
    fn dtype(&self) -> DType;

    /// Row counts to measure.
    fn rows(&self) -> &'static [usize];

    /// Row counts of matrix products.
    fn product_rows(&self) -> &'static [usize];

    /// Bytes that evict everything from the caches: buffers rotate through as many. 0: every call uses the same
    /// buffers.
    fn cold_bytes(&self) -> usize;

    /// The measurement time of a case, after a warm-up of a third of it.
    fn measurement_time(&self) -> Duration;

    /// Whole layers to measure, if supported.
    fn layers(&self) -> Option<Layers>;

    /// Batches for attention: a name, and for each sequence its tokens before and in the step.
    fn sequences(&self) -> Vec<(&'static str, Vec<(usize, usize)>)>;

    fn write(&self, buffer: &mut Self::Buffer, values: &[f32]);

    /// `out = silu(gate) * up` of `gate_up: [rows, 2 · width]`, if the device has a kernel for it.
    fn act_mul(&self, rows: usize, width: usize, gate_up: &Self::Buffer, out: &mut Self::Buffer) -> Option<Result<()>>;

    /// `out = x · weightᵀ` of one of these weights `[n, k]` by the vendor's library, if there is one.
    fn vendor_matmul(&self, _weights: Vec<WeightView>, _n: usize, _k: usize) -> Option<VendorMatmul<Self::Buffer>> {
        None
    }

    /// Times calls of `call`, whose argument is the set of buffers to use, one of `sets`.
    fn timer<'a>(&'a self, sets: usize, call: &'a mut dyn FnMut(usize) -> Result<()>) -> Result<Timer<'a>>;
}

/// The least work of a call.
#[derive(Clone, Copy)]
pub struct Work {
    pub bytes: usize,
    pub flops: usize,
}

/// A device, with its rates measured just before each kernel.
pub struct Lab<D> {
    pub device: D,
    rates: Option<Rates>,
    /// Random numbers, generated at their first use.
    weights: OnceCell<Bytes>,
}

impl<D: Bench> Lab<D> {
    pub fn new(device: D) -> Self {
        Self { device, rates: None, weights: OnceCell::new() }
    }

    /// Measures the device's rates, unless the benches are only tried (`--test`).
    pub fn probe(&mut self) {
        if !std::env::args().any(|argument| argument == "--test") {
            self.rates = Some(self.device.rates(self.device.dtype()).expect("rates"));
        }
    }

    /// The number of sets of `bytes` that calls must rotate through to find none of their data in a cache; at most 64.
    pub fn sets(&self, bytes: usize) -> usize {
        if self.device.cold_bytes() == 0 { 1 } else { (self.device.cold_bytes() / bytes.max(1) + 1).clamp(2, 64) }
    }

    /// Times `call`, whose argument is the set of buffers to use, one of `sets`. Prints the spread of its times, and
    /// the floor: the longer of the times for memory traffic and arithmetic. Appends a line of JSON to the file
    /// `BURRSTONE_BENCH_RECORD`, if set.
    pub fn measure(
        &self,
        criterion: &mut Criterion,
        kernel: &str,
        case: &str,
        work: Work,
        sets: usize,
        mut call: impl FnMut(usize) -> Result<()>,
    ) {
        let samples = RefCell::new(Vec::new());
        let mut group = criterion.benchmark_group(kernel);
        let time = self.device.measurement_time();
        group.sample_size(SAMPLES).measurement_time(time).warm_up_time(time / 3);
        group.throughput(Throughput::Bytes(work.bytes as u64));
        let mut timer = self.device.timer(sets, &mut call).expect(kernel);
        group.bench_function(case, |bencher| {
            bencher.iter_custom(|iterations| {
                let time = timer(iterations).expect(kernel);
                samples.borrow_mut().push(time.as_secs_f64() / iterations as f64);
                time
            });
        });
        group.finish();
        let samples = samples.into_inner();
        let Some(rates) = self.rates.filter(|_| !samples.is_empty()) else { return };
        // The first samples are the warm-up's.
        let mut samples = samples[samples.len().saturating_sub(SAMPLES)..].to_vec();
        samples.sort_by(f64::total_cmp);
        let (min, median, max) = (samples[0], samples[samples.len() / 2], samples[samples.len() - 1]);
        let (gb, gflop) = (work.bytes as f64 / 1e9, work.flops as f64 / 1e9);
        let floor = 100.0 * (gb / rates.gb_s).max(gflop / rates.gflop_s) / median;
        let data = match self.device.cold_bytes() {
            0 => "reused",
            cold if sets * work.bytes >= cold => "cold",
            _ => "in the cache",
        };
        let [min_us, median_us, max_us] = [min, median, max].map(|seconds| seconds * 1e6);
        let (gb_s, gflop_s) = (gb / median, gflop / median);
        println!(
            "{kernel}/{case}: {min_us:.2} {median_us:.2} {max_us:.2} µs (min, median, max), {gb_s:.1} GB/s of {:.1}, \
             {gflop_s:.1} GFLOP/s of {:.1}: {floor:.0} % of the floor, data {data}",
            rates.gb_s, rates.gflop_s,
        );
        let Some(file) = std::env::var_os("BURRSTONE_BENCH_RECORD") else { return };
        let line = format!(
            "{{\"record\":\"figure\",\"kernel\":\"{kernel}\",\"case\":\"{case}\",\"min_us\":{min_us:.3},\
             \"median_us\":{median_us:.3},\"max_us\":{max_us:.3},\"gb_s\":{gb_s:.1},\"gflop_s\":{gflop_s:.1},\
             \"peak_gb_s\":{:.1},\"peak_gflop_s\":{:.1},\"floor_percent\":{floor:.1},\"data\":\"{data}\"}}\n",
            rates.gb_s, rates.gflop_s,
        );
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(&file);
        opened.and_then(|mut file| file.write_all(line.as_bytes())).expect("BURRSTONE_BENCH_RECORD");
    }

    /// Bytes of an element of activations, weights and cache.
    pub fn narrow(&self) -> usize {
        self.device.dtype().size()
    }

    /// The dtype of matrix products and the residual stream.
    pub fn wide_dtype(&self) -> DType {
        self.device.wide_dtype(self.device.dtype())
    }

    /// Bytes of an element of those.
    pub fn wide(&self) -> usize {
        self.wide_dtype().size()
    }

    /// Matrices `[n, k]` to rotate through: as many as the weights' bytes allow.
    pub fn matrices(&self, n: usize, k: usize) -> Vec<D::Matrix> {
        self.views(n, k).map(|view| self.device.matrix(vec![LinearPart::dense(view)]).expect("a matrix")).collect()
    }

    /// The same for pairs of projections `[width, k]`.
    pub fn gated_matrices(&self, width: usize, k: usize) -> Vec<D::GatedMatrix> {
        let views: Vec<WeightView> = self.views(width, k).collect();
        let one = |pair: &[WeightView]| {
            self.device.gated_matrix(pair.iter().cloned().map(LinearPart::dense).collect()).expect("a matrix")
        };
        views.chunks_exact(2).map(one).collect()
    }

    /// Matrices of codes, half as many bytes, in groups that share a scale of the device's dtype.
    pub fn coded_matrices(&self, n: usize, k: usize, bits: usize, group: usize) -> Vec<D::Matrix> {
        let len = n * k * bits / 8;
        let one = |i| {
            let weight = CodedWeight {
                name: "weight".to_owned(),
                shape: [n, k],
                code: if bits == 4 { Code::U4 } else { Code::U8 },
                codes: self.weights().slice(i * len..(i + 1) * len).expect("inside"),
                scales: Scales {
                    rows: 1,
                    columns: group,
                    values: vec![0.0078125; n * k.div_ceil(group)],
                    zeros: Zeros::All(if bits == 4 { 8 } else { 128 }),
                },
                order: None,
                activations: ActivationBits::Full,
            };
            self.device.matrix(vec![LinearPart { weight: Weight::Coded(weight), bias: None }]).expect("a matrix")
        };
        (0..WEIGHTS / 2 / len).map(one).collect()
    }

    pub fn views(&self, n: usize, k: usize) -> impl Iterator<Item = WeightView> {
        let (dtype, len) = (self.device.dtype(), n * k * self.narrow());
        (0..WEIGHTS / len).map(move |i| self.view(dtype, vec![n, k], i * len))
    }

    /// A tensor of random numbers from byte `from` on.
    pub fn view(&self, dtype: DType, shape: Vec<usize>, from: usize) -> WeightView {
        let len = shape.iter().product::<usize>() * dtype.size();
        let data = self.weights().slice(from..from + len).expect("inside");
        WeightView { name: "weight".to_owned(), dtype, shape, data }
    }

    /// Small random numbers of the device's dtype: with constant ones a GPU uses less power and runs faster.
    fn weights(&self) -> &Bytes {
        self.weights.get_or_init(|| {
            let mut bytes = Vec::with_capacity(WEIGHTS);
            for x in random(WEIGHTS / 2) {
                let x = 0.05 * x;
                bytes.extend(
                    match self.device.dtype() {
                        DType::F16 => half::f16::from_f32(x).to_bits(),
                        _ => half::bf16::from_f32(x).to_bits(),
                    }
                    .to_le_bytes(),
                );
            }
            Bytes::from(bytes)
        })
    }

    /// A gain vector of `width`.
    pub fn vector(&self, width: usize) -> D::Vector {
        self.device.vector(self.view(self.device.dtype(), vec![width], 0)).expect("a gain")
    }

    pub fn buffer(&self, dtype: DType, len: usize) -> D::Buffer {
        self.buffer_of(dtype, &random(len).collect::<Vec<_>>())
    }

    pub fn buffer_of(&self, dtype: DType, values: &[f32]) -> D::Buffer {
        let mut buffer = self.device.buffer(dtype, values.len()).expect("a buffer");
        self.device.write(&mut buffer, values);
        buffer
    }

    /// `sets` buffers.
    pub fn buffers(&self, sets: usize, dtype: DType, len: usize) -> Vec<D::Buffer> {
        (0..sets).map(|_| self.buffer(dtype, len)).collect()
    }

    /// A cache of random numbers with room for `tokens` in one sequence.
    pub fn cache(&self, layers: usize, tokens: usize, kv_heads: usize, head_dim: usize) -> (D::Cache, CacheShape) {
        let (pages, page_size, dtype) = (tokens.div_ceil(PAGE_SIZE), PAGE_SIZE, self.device.dtype());
        let shape = CacheShape { layers, pages, page_size, kv_heads, head_dim, dtype };
        let mut cache = self.device.cache(shape).expect("a cache");
        let page_bytes = shape.bytes() / pages.max(1);
        for page in 0..pages {
            let from = page * page_bytes % (WEIGHTS - page_bytes) / 2 * 2;
            let bytes = self.weights().slice(from..from + page_bytes).expect("inside");
            self.device.write_pages(&mut cache, &[page as u32], &bytes).expect("a page");
        }
        (cache, shape)
    }

    /// A step of sequences with these numbers of tokens before and in the step; computes the logits of `logit_rows`.
    pub fn step(&self, sequences: &[(usize, usize)], logit_rows: Vec<u32>) -> D::Step {
        self.uploaded(Batch { logit_rows, ..batch(sequences) })
    }

    /// A step with rows of logits, each to sample or to score.
    pub fn step_for_logits(&self, samples: Vec<SampleRow>, targets: Vec<u32>) -> D::Step {
        let rows = samples.len().max(targets.len());
        let logit_rows = (0..rows as u32).collect();
        self.uploaded(Batch { logit_rows, samples, targets, ..batch(&[(0, rows)]) })
    }

    fn uploaded(&self, batch: Batch) -> D::Step {
        let mut step = self.device.step().expect("a step");
        self.device.upload(&batch, &mut step).expect("a batch");
        step
    }
}

/// Random numbers between −1 and 1: a Weyl sequence, mixed.
fn random(len: usize) -> impl Iterator<Item = f32> {
    (0..len as u64).map(|i| {
        let mut z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^= z >> 31;
        (z >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// Slots of sequences with these numbers of tokens, each with pages of its own.
pub fn slots(sequences: &[(usize, usize)]) -> usize {
    sequences.iter().map(|(past, len)| (past + len).next_multiple_of(PAGE_SIZE)).sum()
}

pub fn batch(sequences: &[(usize, usize)]) -> Batch {
    let mut batch = Batch::default();
    for &(past, len) in sequences {
        let (start, pages) = (batch.tokens.len(), batch.page_table.len());
        let range = past as u32..(past + len) as u32;
        batch.tokens.extend((0..len as u32).map(|t| t * 7919 % 32_000));
        batch.rope_rows.extend(range.clone());
        batch.slots.extend(range.map(|position| (pages * PAGE_SIZE) as u32 + position));
        batch.spans.push(Span { start, len, kv_len: past + len, pages });
        batch.page_table.append(&Vec::from_iter(pages as u32..(pages + (past + len).div_ceil(PAGE_SIZE)) as u32));
    }
    batch
}
