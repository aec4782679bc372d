//! The operators of a forward pass: the trait [`Ops`], which each device implements, and its arguments. The decoder is
//! written once against this trait.
//!
//! Activations are dense row-major `[tokens, features]` arrays in [`Ops::Buffer`]s, which are allocated once and
//! reused; a buffer may be longer than what a call uses. Weights keep the dtype that they are stored in. A [`Batch`]
//! describes one step: it is built on the host, uploaded once, and read by every kernel of the step.
//!
//! Results are batch invariant: every output element is reduced in an order that depends on its own inputs alone, not
//! on the number of tokens in the batch, the chunks of a prompt, or the number of threads.

mod attention;
mod batch;
mod cache;
mod history;
mod mask;
mod page_table;
mod pages;
mod rotary;
mod sampling;
mod weight;

use std::ops::Range;

use crate::device::Counters;
use crate::dtype::DType;
use crate::error::Result;

pub use attention::{Attention, AttentionMask, Scoring};
pub use batch::{Batch, RecordingKey, Span, StepShape};
pub use cache::CacheShape;
pub use history::TokenHistory;
pub use mask::{Mask, MaskPromise};
pub use page_table::PageTable;
pub(crate) use page_table::PageTableMark;
pub use pages::PageMoves;
pub(crate) use pages::check_page_copies;
pub use rotary::{QkNorm, RopeTable, RotaryKvWrite};
pub use sampling::{LogitEdits, SampleRow, Sampled};
pub(crate) use weight::check_gated;
#[cfg(feature = "engine")]
pub(crate) use weight::e4m3;
pub use weight::{ActivationBits, Code, CodedWeight, LinearPart, Scales, Weight, WeightView, Zeros};

/// The activation of a gated feed-forward layer: `activation(gate) * up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    Silu,
    /// `gelu(x) ≈ 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `0.5 x (1 + erf(x / √2))`.
    Gelu,
}

/// The largest sizes that a device's kernels take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLimits {
    /// Elements of an attention head.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
}

/// A device's peak rates.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Memory bandwidth, in 10⁹ bytes per second.
    pub gb_s: f64,
    /// Multiplications and additions in matrix products, in 10⁹ per second.
    pub gflop_s: f64,
}

/// A device as the decoder sees it. Calls may return before their work is done; reading results waits for it.
pub trait Ops: Send + Sync + Sized + 'static {
    /// Activations on the device.
    type Buffer: Send;
    /// A linear layer's weight `[n, k]`, with an optional bias `[n]`.
    type Matrix: Send + Sync;
    /// Gate and up projections `[width, k]` of a gated feed-forward layer, with optional biases `[width]`.
    type GatedMatrix: Send + Sync;
    /// A gain, `[n]`.
    type Vector: Send + Sync;
    /// The paged KV cache of all layers.
    type Cache: Send;
    /// A batch on the device.
    type Step: Send;
    /// Recorded work.
    type Recording: Send;

    /// A description of the device: instruction set and threads, or the GPU's name.
    fn describe(&self) -> String;

    /// The largest sizes that its kernels take: larger models are refused when they are loaded.
    fn limits(&self) -> KernelLimits;

    /// Launches, replays and copies so far; zeros on the CPU.
    fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Whether calls return before their work is done.
    fn overlaps(&self) -> bool {
        false
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// The device has failed and is unusable.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Whether a failure that [`check`](Self::check) finds lasts until the process ends. It does on a GPU: a fault of a
    /// kernel breaks the process's CUDA context, and every context it gets afterwards is the same one.
    fn fails_for_good(&self) -> bool {
        false
    }

    /// The device's peak rates now, with activations of this dtype. Benchmarks compare with them.
    fn rates(&self, activations: DType) -> Result<Rates>;

    /// The dtype of matrix products and of the residual stream when activations are `activation`.
    fn wide_dtype(&self, activation: DType) -> DType;

    /// A linear layer from blocks of rows `[n_i, k]` stacked along `n`, such as query, key and value projections. Every
    /// block may be stored in a way of its own.
    fn matrix(&self, parts: Vec<LinearPart>) -> Result<Self::Matrix>;

    /// A matrix that only [`embedding`](Self::embedding) reads.
    fn table(&self, weight: Weight) -> Result<Self::Matrix> {
        self.matrix(vec![LinearPart { weight, bias: None }])
    }

    /// A gated layer's first half from its gate and up projections, `[width, k]` each.
    fn gated_matrix(&self, parts: Vec<LinearPart>) -> Result<Self::GatedMatrix>;

    fn vector(&self, weight: WeightView) -> Result<Self::Vector>;

    /// A vector that every device keeps in f32: [`Scoring::slopes`] and [`Scoring::sinks`].
    fn floats(&self, values: &[f32]) -> Result<Self::Vector>;

    /// Allocates `len` elements.
    fn buffer(&self, dtype: DType, len: usize) -> Result<Self::Buffer>;

    fn cache(&self, shape: CacheShape) -> Result<Self::Cache>;

    /// An empty step, to be filled by [`Ops::upload`].
    fn step(&self) -> Result<Self::Step>;

    /// Does the part of the next [`upload`](Self::upload) that does not depend on tokens and samples, whose number is
    /// known. The batch needs a [`layout`](Batch::layout).
    fn prepare(&self, _batch: &Batch, _step: &mut Self::Step) -> Result<()> {
        Ok(())
    }

    /// Copies a batch to the device, in one copy at most.
    fn upload(&self, batch: &Batch, step: &mut Self::Step) -> Result<StepShape>;

    /// `out[t] = table[tokens[t]]`.
    fn embedding(&self, step: &Self::Step, table: &Self::Matrix, out: &mut Self::Buffer) -> Result<()>;

    /// `residual += delta` (where given), then `out = residual / rms(residual) * weight`, for the first `rows` rows of
    /// all: `[rows, width]`.
    #[allow(clippy::too_many_arguments)]
    fn rms_norm(
        &self,
        rows: usize,
        width: usize,
        residual: &mut Self::Buffer,
        delta: Option<&Self::Buffer>,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `out = x · weightᵀ + bias` for the first `rows` rows: `[rows, k] → [rows, n]`.
    fn matmul(&self, rows: usize, x: &Self::Buffer, weight: &Self::Matrix, out: &mut Self::Buffer) -> Result<()>;

    /// `residual += x · weightᵀ + bias` for the first `rows` rows of all, `[rows, n]`: the bits of
    /// [`matmul`](Self::matmul) in [`Ops::wide_dtype`], added as [`rms_norm`](Self::rms_norm) adds its delta.
    fn matmul_add(
        &self,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::Matrix,
        residual: &mut Self::Buffer,
    ) -> Result<()>;

    /// `out = activation(gate) * up` for the first `rows` rows: `[rows, k] → [rows, width]`. `gate` and `up` are the
    /// products of `x` with the two projections, as [`matmul`](Self::matmul) gives them in [`Ops::wide_dtype`].
    fn gated_matmul(
        &self,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::GatedMatrix,
        activation: Activation,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Norms (where asked) and rotates queries and keys; writes keys and values to their slots in the cache.
    fn rotary_kv_write(&self, step: &Self::Step, args: RotaryKvWrite<'_, Self>) -> Result<()>;

    /// Softmax attention of each query over what it sees of its sequence in the paged cache, grouped heads included.
    fn attention(&self, step: &Self::Step, args: Attention<'_, Self>) -> Result<()>;

    /// `out[i] = x[logit_rows[start + i]]` for the step's `logit_rows[rows]`, `rows` being `start..end`: rows of
    /// `width` elements, `[tokens, width] → [end - start, width]`, both of one dtype.
    fn gather_rows(
        &self,
        step: &Self::Step,
        rows: Range<usize>,
        width: usize,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Copies pages of the cache, `[from, to]` each, in every layer. No page may be written twice, or both read and
    /// written.
    fn copy_pages(&self, cache: &mut Self::Cache, pairs: &[[u32; 2]]) -> Result<()>;

    /// Reads pages of the cache, of every layer and with their scales: one after another, in the device's own byte
    /// order. Few copies are made for many pages.
    fn read_pages(&self, cache: &mut Self::Cache, pages: &[u32]) -> Result<Vec<u8>>;

    /// Writes what [`read_pages`](Self::read_pages) returned, to the same pages or to others. No page may be written
    /// twice.
    fn write_pages(&self, cache: &mut Self::Cache, pages: &[u32], from: &[u8]) -> Result<()>;

    /// Writes elements `start` and on of an f32 buffer.
    fn write_floats(&self, x: &mut Self::Buffer, start: usize, values: &[f32]) -> Result<()>;

    /// Lets the host change row `row` of an f32 `[rows, width]`, after all work so far.
    fn edit_row(&self, x: &mut Self::Buffer, row: usize, width: usize, edit: &mut dyn FnMut(&mut [f32])) -> Result<()>;

    /// Samples a token with each of the step's `samples[rows]` from `logits: [rows, vocab]`, f32, which penalties may
    /// modify. [`sampled`](Self::sampled) reads the results.
    fn sample(&self, step: &mut Self::Step, rows: Range<usize>, vocab: usize, logits: &mut Self::Buffer) -> Result<()>;

    /// Waits for the step; the tokens chosen by its `samples`, in order. An inner error is its row's: the row is out of
    /// range, its logits are not finite, or no token is left.
    ///
    /// # Errors
    /// The step failed.
    fn sampled(&self, step: &mut Self::Step) -> Result<Vec<Result<Sampled>>>;

    /// `log softmax(logits[i])[target]` for each of the step's `targets[rows]` and `logits: [rows, vocab]`, f32.
    /// [`scored`](Self::scored) reads the results.
    fn target_logprobs(
        &self,
        step: &mut Self::Step,
        rows: Range<usize>,
        vocab: usize,
        logits: &Self::Buffer,
    ) -> Result<()>;

    /// Waits for the step; the log-probabilities of its `targets`, in order.
    fn scored(&self, step: &mut Self::Step) -> Result<Vec<f32>>;

    /// Records the work that `work` enqueues, instead of doing it.
    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Self::Recording>;

    /// Repeats recorded work on the current contents of the buffers.
    fn replay(&self, recording: &Self::Recording) -> Result<()>;
}
