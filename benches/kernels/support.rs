//! What the benches share: the machine with its floors, and one way to measure.

use std::cell::Cell;
use std::time::{Duration, Instant};

use burrstone::DType;
use burrstone::cpu::{Buffer, Cpu, CpuOptions, Matrix, Probe, Step, probe};
use burrstone::device::Bytes;
use burrstone::ops::{Batch, Ops, SampleRow, Span, WeightView};
use criterion::{Criterion, Throughput};

/// Activations, weights and cache.
pub const DTYPE: DType = DType::BF16;

/// Weights larger than any cache, so that every call reads its own from memory.
const WEIGHTS: usize = 256 << 20;

/// This machine, its rates taken just before each kernel's.
pub struct Lab {
    pub cpu: Cpu,
    probe: Option<Probe>,
    weights: Bytes,
}

/// What a call must do at least.
pub struct Work {
    pub bytes: usize,
    pub flops: usize,
}

impl Lab {
    pub fn new() -> Self {
        let cpu = Cpu::new(CpuOptions::default()).expect("a CPU");
        Self { cpu, probe: None, weights: Bytes::from(vec![0x3c; WEIGHTS]) }
    }

    /// Takes the machine's rates, unless the benches are only tried out (`--test`).
    pub fn probe(&mut self) {
        if !std::env::args().any(|argument| argument == "--test") {
            self.probe = Some(probe(&self.cpu).expect("room for the probe"));
        }
    }

    /// Times `call`, and prints its best against the floor: what memory and arithmetic need, whichever is longer.
    pub fn measure(&self, criterion: &mut Criterion, kernel: &str, case: &str, work: Work, mut call: impl FnMut()) {
        let best = Cell::new(Duration::MAX);
        let mut group = criterion.benchmark_group(kernel);
        group.sample_size(10).measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(200));
        group.throughput(Throughput::Bytes(work.bytes as u64));
        group.bench_function(case, |bencher| {
            bencher.iter_custom(|iterations| {
                let start = Instant::now();
                (0..iterations).for_each(|_| call());
                let time = start.elapsed();
                best.set(best.get().min(time.div_f64(iterations as f64)));
                time
            });
        });
        group.finish();
        let Some(probe) = self.probe.filter(|_| best.get() < Duration::MAX) else { return };
        let time = best.get().as_secs_f64();
        let (gb, gflop) = (work.bytes as f64 / 1e9, work.flops as f64 / 1e9);
        let floor = (gb / probe.read_gb_s).max(gflop / probe.bf16_gflop_s);
        println!(
            "{kernel}/{case}: best {:.3} ms, {:.1} GB/s of {:.1}, {:.1} GFLOP/s of {:.1}: {:.0} % of the floor",
            time * 1e3,
            gb / time,
            probe.read_gb_s,
            gflop / time,
            probe.bf16_gflop_s,
            100.0 * floor / time,
        );
    }

    /// As many matrices `[n, k]`, of no more than all weights, as there are weights for, to be used in turn.
    pub fn matrices(&self, n: usize, k: usize) -> Vec<Matrix> {
        let len = n * k * DTYPE.size();
        let one = |i: usize| {
            let data = self.weights.slice(i * len..(i + 1) * len).expect("inside");
            let view = WeightView { name: "weight".to_owned(), dtype: DTYPE, shape: vec![n, k], data };
            self.cpu.matrix(vec![view], Vec::new()).expect("a matrix")
        };
        (0..WEIGHTS / len).map(one).collect()
    }

    pub fn buffer(&self, dtype: DType, len: usize) -> Buffer {
        let mut buffer = self.cpu.buffer(dtype, len).expect("a buffer");
        let values: Vec<f32> = (0..len).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
        buffer.write(&values).expect("the values");
        buffer
    }

    /// One sequence: `len` tokens after `past`, in pages of 16; the logits of the last are wanted.
    pub fn step(&self, past: usize, len: usize, rotary_dim: usize) -> Step {
        self.step_with_logits(past, len, rotary_dim, vec![len as u32 - 1])
    }

    /// The same, with the logits of `logit_rows`.
    pub fn step_with_logits(&self, past: usize, len: usize, rotary_dim: usize, logit_rows: Vec<u32>) -> Step {
        self.uploaded(Batch { logit_rows, ..batch(past, len, rotary_dim) })
    }

    /// Rows of logits, each of which asks for a token or a log-probability.
    pub fn step_for_logits(&self, samples: Vec<SampleRow>, targets: Vec<u32>) -> Step {
        let rows = samples.len().max(targets.len());
        let logit_rows = (0..rows as u32).collect();
        self.uploaded(Batch { logit_rows, samples, targets, ..batch(0, rows, 0) })
    }

    fn uploaded(&self, batch: Batch) -> Step {
        let mut step = self.cpu.step().expect("a step");
        self.cpu.upload(&batch, &mut step).expect("a batch");
        step
    }
}

/// One sequence: `len` tokens after `past`, in pages of 16.
fn batch(past: usize, len: usize, rotary_dim: usize) -> Batch {
    let range = past as u32..(past + len) as u32;
    Batch {
        tokens: (0..len as u32).map(|t| t * 7919 % 32_000).collect(),
        positions: range.clone().collect(),
        slots: range.collect(),
        rope: vec![0.5; len * rotary_dim],
        spans: vec![Span { start: 0, len, kv_len: past + len, pages: 0 }],
        page_table: (0..(past + len).div_ceil(16) as u32).collect(),
        ..Batch::default()
    }
}
