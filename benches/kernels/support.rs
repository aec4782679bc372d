//! What the benches share: a device with its floors, and one way to measure.

use std::cell::Cell;
use std::time::Duration;

use burrstone::device::Bytes;
use burrstone::ops::{Batch, CacheShape, Ops, Rates, SampleRow, Span, WeightView};
use burrstone::{DType, Result};
use criterion::{Criterion, Throughput};

/// Weights larger than any cache, so that every call reads its own from memory.
const WEIGHTS: usize = 256 << 20;
/// Tokens of a page.
const PAGE_SIZE: usize = 16;

/// Takes rows, x and out.
pub type VendorMatmul<B> = Box<dyn FnMut(usize, &B, &mut B) -> Result<()>>;

/// A device that can be measured.
pub trait Bench: Ops {
    /// Of activations, weights and cache.
    fn dtype(&self) -> DType;

    /// Numbers of rows that are worth measuring.
    fn rows(&self) -> &'static [usize];

    /// Batches that attention is measured with: a name, and for each sequence the tokens before and in the step.
    fn sequences(&self) -> Vec<(&'static str, Vec<(usize, usize)>)>;

    fn write(&self, buffer: &mut Self::Buffer, values: &[f32]);

    /// `out = silu(gate) * up` of `gate_up: [rows, 2 · width]`, where that has a kernel of its own.
    fn act_mul(&self, rows: usize, width: usize, gate_up: &Self::Buffer, out: &mut Self::Buffer) -> Option<Result<()>>;

    /// `out = x · weightᵀ` of a weight `[n, k]` of its own by the vendor's library, where there is one.
    fn vendor_matmul(&self, _n: usize, _k: usize) -> Option<VendorMatmul<Self::Buffer>> {
        None
    }

    /// Time of `calls` calls, one after another.
    fn time(&self, calls: u64, call: &mut dyn FnMut() -> Result<()>) -> Result<Duration>;
}

/// What a call must do at least.
#[derive(Clone, Copy)]
pub struct Work {
    pub bytes: usize,
    pub flops: usize,
}

/// A device, its rates taken just before each kernel's.
pub struct Lab<D> {
    pub device: D,
    rates: Option<Rates>,
    weights: Bytes,
}

impl<D: Bench> Lab<D> {
    pub fn new(device: D) -> Self {
        Self { device, rates: None, weights: Bytes::from(vec![0x3c; WEIGHTS]) }
    }

    /// Takes the device's rates, unless the benches are only tried out (`--test`).
    pub fn probe(&mut self) {
        if !std::env::args().any(|argument| argument == "--test") {
            self.rates = Some(self.device.rates(self.device.dtype()).expect("rates"));
        }
    }

    /// Times `call`, and prints its best against the floor: what memory and arithmetic need, whichever is longer.
    pub fn measure(
        &self,
        criterion: &mut Criterion,
        kernel: &str,
        case: &str,
        work: Work,
        mut call: impl FnMut() -> Result<()>,
    ) {
        let best = Cell::new(Duration::MAX);
        let mut group = criterion.benchmark_group(kernel);
        group.sample_size(10).measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(200));
        group.throughput(Throughput::Bytes(work.bytes as u64));
        group.bench_function(case, |bencher| {
            bencher.iter_custom(|iterations| {
                let time = self.device.time(iterations, &mut call).expect(kernel);
                best.set(best.get().min(time.div_f64(iterations as f64)));
                time
            });
        });
        group.finish();
        let Some(rates) = self.rates.filter(|_| best.get() < Duration::MAX) else { return };
        let time = best.get().as_secs_f64();
        let (gb, gflop) = (work.bytes as f64 / 1e9, work.flops as f64 / 1e9);
        let floor = (gb / rates.gb_s).max(gflop / rates.gflop_s);
        println!(
            "{kernel}/{case}: best {:.2} µs, {:.1} GB/s of {:.1}, {:.1} GFLOP/s of {:.1}: {:.0} % of the floor",
            time * 1e6,
            gb / time,
            rates.gb_s,
            gflop / time,
            rates.gflop_s,
            100.0 * floor / time,
        );
    }

    /// Bytes of an element of activations, weights and cache.
    pub fn narrow(&self) -> usize {
        self.device.dtype().size()
    }

    /// The dtype of matrix products and of the residual stream.
    pub fn wide_dtype(&self) -> DType {
        self.device.wide_dtype(self.device.dtype())
    }

    /// Bytes of an element of these.
    pub fn wide(&self) -> usize {
        self.wide_dtype().size()
    }

    /// As many matrices `[n, k]`, of no more than all weights, as there are weights for, to be used in turn.
    pub fn matrices(&self, n: usize, k: usize) -> Vec<D::Matrix> {
        self.views(n, k).map(|view| self.device.matrix(vec![view], Vec::new()).expect("a matrix")).collect()
    }

    /// The same of pairs of projections `[width, k]`.
    pub fn gated_matrices(&self, width: usize, k: usize) -> Vec<D::GatedMatrix> {
        let views: Vec<WeightView> = self.views(width, k).collect();
        let one = |pair: &[WeightView]| self.device.gated_matrix(pair.to_vec(), Vec::new()).expect("a matrix");
        views.chunks_exact(2).map(one).collect()
    }

    fn views(&self, n: usize, k: usize) -> impl Iterator<Item = WeightView> {
        let (dtype, len) = (self.device.dtype(), n * k * self.narrow());
        (0..WEIGHTS / len).map(move |i| {
            let data = self.weights.slice(i * len..(i + 1) * len).expect("inside");
            WeightView { name: "weight".to_owned(), dtype, shape: vec![n, k], data }
        })
    }

    /// A gain of `width`.
    pub fn vector(&self, width: usize) -> D::Vector {
        let data = self.weights.slice(0..width * self.narrow()).expect("inside");
        let view = WeightView { name: "gain".to_owned(), dtype: self.device.dtype(), shape: vec![width], data };
        self.device.vector(view).expect("a gain")
    }

    pub fn buffer(&self, dtype: DType, len: usize) -> D::Buffer {
        let values: Vec<f32> = (0..len).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
        self.buffer_of(dtype, &values)
    }

    pub fn buffer_of(&self, dtype: DType, values: &[f32]) -> D::Buffer {
        let mut buffer = self.device.buffer(dtype, values.len()).expect("a buffer");
        self.device.write(&mut buffer, values);
        buffer
    }

    /// A cache with room for `tokens` in one sequence.
    pub fn cache(&self, layers: usize, tokens: usize, kv_heads: usize, head_dim: usize) -> (D::Cache, CacheShape) {
        let (pages, page_size, dtype) = (tokens.div_ceil(PAGE_SIZE), PAGE_SIZE, self.device.dtype());
        let shape = CacheShape { layers, pages, page_size, kv_heads, head_dim, dtype };
        (self.device.cache(shape).expect("a cache"), shape)
    }

    /// Sequences of so many tokens before the step and in it; the logits of `logit_rows` are wanted.
    pub fn step(&self, sequences: &[(usize, usize)], logit_rows: Vec<u32>) -> D::Step {
        self.uploaded(Batch { logit_rows, ..batch(sequences) })
    }

    /// Rows of logits, each of which asks for a token or a log-probability.
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

/// Slots that sequences of so many tokens take, each of which has pages of its own.
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
