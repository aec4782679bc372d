//! The CPU: every kernel of [`Ops`] in vector code chosen at run time, on a small pool of threads.
//!
//! Arithmetic. The residual stream, matrix products and logits are f32; what feeds a product (norm, attention and
//! activation outputs, queries) and the cache have the dtype of the activations; weights keep the dtype or the codes of
//! the checkpoint, packed for products when they are loaded. Results depend on the instruction set, and on nothing else
//! of the machine.

// Kernels, by `burrstone-codegen lists`:
mod act_mul;
mod attention;
mod embedding;
mod gather_rows;
mod matmul;
mod page_copy;
mod page_table_update;
mod rms_norm;
mod rotary_kv_write;
mod sample;
mod target_logprobs;
// End of kernels.

mod buffer;
mod kv_cache;
mod matrix;
mod panels;
mod pool;
mod probe;
mod simd;

use std::convert::Infallible;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use buffer::{Buffer, Step, Vector};
pub use kv_cache::Cache;
pub use matrix::{GatedMatrix, Matrix};
pub use probe::{Probe, probe};
pub use simd::Isa;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{
    Activation, Attention, Batch, CacheShape, KernelLimits, LinearPart, Ops, Rates, RotaryKvWrite, Sampled, StepShape,
    Weight, WeightView,
};
use pool::Pool;

/// Elements of the longest attention head: what kernels keep on their stacks.
pub(crate) const MAX_HEAD_DIM: usize = 512;

/// Threads of a [`Cpu`] at most: more than any machine has cores, and far fewer than the pool can count.
pub const MAX_THREADS: usize = 1024;

/// How a [`Cpu`] is set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads that work, the caller among them; 0 takes what the cgroup and the affinity allow, at most one for each
    /// physical core.
    pub threads: usize,
    /// `None` takes the best that the machine has.
    pub isa: Option<Isa>,
}

/// The CPU as a device.
pub struct Cpu {
    isa: Isa,
    pool: Pool,
    scratch: Mutex<Scratch>,
}

/// Room that kernels keep from call to call.
struct Scratch {
    matmul: matmul::Scratch,
    attention: attention::Scratch,
    sample: Vec<Vec<f32>>,
}

impl Cpu {
    /// # Errors
    /// `options.threads` is more than [`MAX_THREADS`]; the machine lacks `options.isa`, or refuses threads or memory.
    pub fn new(options: CpuOptions) -> Result<Self> {
        let failed = |reason: String| Error::Device { device: "cpu".to_owned(), reason };
        let isa = options.isa.unwrap_or_else(Isa::best);
        if !isa.is_present() {
            return Err(failed(format!("this machine has no {isa}")));
        }
        if options.threads > MAX_THREADS {
            return Err(Error::request("threads", format!("at most {MAX_THREADS}"), options.threads));
        }
        let threads = if options.threads == 0 { pool::available_threads().min(MAX_THREADS) } else { options.threads };
        let pool = Pool::new(threads).map_err(|e| failed(format!("{threads} threads: {e}")))?;
        let scratch = Mutex::new(Scratch {
            matmul: matmul::Scratch::new(threads)?,
            attention: attention::Scratch::new(threads)?,
            sample: vec![Vec::new(); threads],
        });
        Ok(Self { isa, pool, scratch })
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        // Scratch holds nothing from one call to the next, so a panic leaves nothing half done in it.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ops for Cpu {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type GatedMatrix = GatedMatrix;
    type Vector = Vector;
    type Cache = Cache;
    type Step = Step;
    type Recording = Infallible;

    fn describe(&self) -> String {
        let threads = self.threads();
        format!("cpu ({}, {threads} thread{})", self.isa, if threads == 1 { "" } else { "s" })
    }

    fn limits(&self) -> KernelLimits {
        // Token ids are 32 bits, and so are the indices of a mask's words.
        KernelLimits { head_dim: MAX_HEAD_DIM, vocab: u32::MAX as usize }
    }

    fn rates(&self, activations: DType) -> Result<Rates> {
        let probe = probe(self)?;
        let gflop_s = if activations == DType::BF16 { probe.bf16_gflop_s } else { probe.f32_gflop_s };
        Ok(Rates { gb_s: probe.read_gb_s, gflop_s })
    }

    fn wide_dtype(&self, _activation: DType) -> DType {
        DType::F32
    }

    fn matrix(&self, parts: Vec<LinearPart>) -> Result<Matrix> {
        Matrix::new(&self.pool, parts)
    }

    fn table(&self, weight: Weight) -> Result<Matrix> {
        Matrix::table(&self.pool, weight)
    }

    fn gated_matrix(&self, parts: Vec<LinearPart>) -> Result<GatedMatrix> {
        GatedMatrix::new(&self.pool, parts)
    }

    fn vector(&self, weight: WeightView) -> Result<Vector> {
        Vector::new(&weight)
    }

    fn floats(&self, values: &[f32]) -> Result<Vector> {
        Ok(Vector(values.to_vec()))
    }

    fn buffer(&self, dtype: DType, len: usize) -> Result<Buffer> {
        Buffer::new(dtype, len)
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache> {
        Cache::new(shape)
    }

    fn step(&self) -> Result<Step> {
        Ok(Step::default())
    }

    fn upload(&self, batch: &Batch, step: &mut Step) -> Result<StepShape> {
        step.upload(batch)?;
        Ok(StepShape { tokens: batch.tokens.len(), logit_rows: batch.logit_rows.len(), recording: None })
    }

    fn embedding(&self, step: &Step, table: &Matrix, out: &mut Buffer) -> Result<()> {
        embedding::embedding(self.isa, &self.pool, step, table, out)
    }

    fn rms_norm(
        &self,
        rows: usize,
        width: usize,
        residual: &mut Buffer,
        delta: Option<&Buffer>,
        weight: &Vector,
        eps: f32,
        out: &mut Buffer,
    ) -> Result<()> {
        rms_norm::rms_norm(self.isa, &self.pool, rows, width, residual, delta, weight, eps, out)
    }

    fn matmul(&self, rows: usize, x: &Buffer, weight: &Matrix, out: &mut Buffer) -> Result<()> {
        matmul::matmul(self.isa, &self.pool, &mut self.scratch().matmul, rows, x, weight, out)
    }

    fn matmul_add(&self, rows: usize, x: &Buffer, weight: &Matrix, residual: &mut Buffer) -> Result<()> {
        matmul::matmul_add(self.isa, &self.pool, &mut self.scratch().matmul, rows, x, weight, residual)
    }

    fn gated_matmul(
        &self,
        rows: usize,
        x: &Buffer,
        weight: &GatedMatrix,
        activation: Activation,
        out: &mut Buffer,
    ) -> Result<()> {
        let scratch = &mut self.scratch().matmul;
        matmul::gated_matmul(self.isa, &self.pool, scratch, rows, x, weight, activation, out)
    }

    fn rotary_kv_write(&self, step: &Step, args: RotaryKvWrite<'_, Self>) -> Result<()> {
        rotary_kv_write::rotary_kv_write(self.isa, &self.pool, step, args)
    }

    fn attention(&self, step: &Step, args: Attention<'_, Self>) -> Result<()> {
        attention::attention(self.isa, &self.pool, &mut self.scratch().attention, step, args)
    }

    fn gather_rows(&self, step: &Step, rows: Range<usize>, width: usize, x: &Buffer, out: &mut Buffer) -> Result<()> {
        gather_rows::gather_rows(&self.pool, step, rows, width, x, out)
    }

    fn copy_pages(&self, cache: &mut Cache, pairs: &[[u32; 2]]) -> Result<()> {
        page_copy::page_copy(&self.pool, cache, pairs)
    }

    fn read_pages(&self, cache: &mut Cache, pages: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        pages.iter().try_for_each(|&page| cache.read_page(page, &mut bytes))?;
        Ok(bytes)
    }

    fn write_pages(&self, cache: &mut Cache, pages: &[u32], from: &[u8]) -> Result<()> {
        let bytes = cache.shape().page_bytes();
        if from.len() != pages.len() * bytes {
            let expected = format!("{bytes} bytes for each of {} pages", pages.len());
            return Err(Error::operator("cache", "pages", expected, from.len()));
        }
        pages.iter().zip(from.chunks(bytes.max(1))).try_for_each(|(&page, from)| cache.write_page(page, from))
    }

    fn write_floats(&self, x: &mut Buffer, start: usize, values: &[f32]) -> Result<()> {
        x.floats_mut("write_floats", start, values.len())?.copy_from_slice(values);
        Ok(())
    }

    fn edit_row(&self, x: &mut Buffer, row: usize, width: usize, edit: &mut dyn FnMut(&mut [f32])) -> Result<()> {
        edit(x.floats_mut("edit_row", row.saturating_mul(width), width)?);
        Ok(())
    }

    fn sample(&self, step: &mut Step, rows: Range<usize>, vocab: usize, logits: &mut Buffer) -> Result<()> {
        sample::sample(self.isa, &self.pool, &mut self.scratch().sample, step, rows, vocab, logits)
    }

    fn sampled(&self, step: &mut Step) -> Result<Vec<Result<Sampled>>> {
        Ok(std::mem::take(&mut step.sampled))
    }

    fn target_logprobs(&self, step: &mut Step, rows: Range<usize>, vocab: usize, logits: &Buffer) -> Result<()> {
        target_logprobs::target_logprobs(self.isa, &self.pool, step, rows, vocab, logits)
    }

    fn scored(&self, step: &mut Step) -> Result<Vec<f32>> {
        Ok(std::mem::take(&mut step.scored))
    }

    fn record(&self, _work: impl FnOnce() -> Result<()>) -> Result<Infallible> {
        Err(Error::operator("record", "device", "one that records work", "the CPU, whose steps never ask for it"))
    }

    fn replay(&self, recording: &Infallible) -> Result<()> {
        match *recording {}
    }
}
