//! What a forward pass may ask of a device. The decoder is written once against [`Ops`]; every device implements it
//! kernel by kernel, under the same names.
//!
//! Conventions. Activations are dense row-major `[tokens, features]` arrays in [`Ops::Buffer`]s that are allocated once
//! and reused; a buffer may be longer than what a call uses. Weights keep the dtype they are stored in. A *batch* is
//! the description of one step: it is prepared on the host, uploaded once, and read by every kernel of the step.
//!
//! Same bits in any company: every output element is reduced in an order that depends on its own inputs alone, never
//! on the number of tokens in the batch, on how a prompt was cut into chunks, or on the number of threads.

mod attention;
mod batch;
mod mask;
mod page_table;
mod pages;
mod sampling;

use std::ops::Range;

use crate::device::{Bytes, Counters};
use crate::dtype::DType;
use crate::error::{Error, Result};

pub use attention::{Attention, AttentionMask, Scoring};
pub use batch::{Batch, RecordingKey, Span, StepShape};
pub use mask::{Mask, MaskPromise};
pub use page_table::PageTable;
pub(crate) use page_table::PageTableMark;
pub use pages::PageMoves;
pub(crate) use pages::check_page_copies;
pub use sampling::{LogitEdits, SampleRow, Sampled};

/// A tensor as a checkpoint stores it: row-major, little-endian, not necessarily aligned.
#[derive(Clone, Debug)]
pub struct WeightView {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub data: Bytes,
}

impl WeightView {
    /// Elements of the shape.
    ///
    /// # Errors
    /// The data are not of the shape and the dtype.
    pub(crate) fn elements(&self, op: &'static str) -> Result<usize> {
        let elements = self.shape.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
        let bytes = elements.and_then(|n| n.checked_mul(self.dtype.size()));
        match (elements, bytes) {
            (Some(elements), Some(bytes)) if bytes == self.data.len() => Ok(elements),
            _ => {
                let expected = format!("the bytes of {:?} in {}", self.shape, self.dtype);
                Err(Error::operator(op, "data", expected, format!("{} bytes in {}", self.data.len(), self.name)))
            }
        }
    }
}

/// Fails unless `blocks` are a gate and an up projection of one shape.
pub(crate) fn check_gated(blocks: &[WeightView]) -> Result<()> {
    match blocks {
        [gate, up] if gate.shape == up.shape => Ok(()),
        _ => {
            let found: Vec<String> = blocks.iter().map(|block| format!("{:?}", block.shape)).collect();
            Err(Error::operator("gated_matrix", "blocks", "gate and up, of one shape", found.join(" and ")))
        }
    }
}

/// The shape of the paged KV cache: `layers × 2 × [pages, kv_heads, page_size, head_dim]`.
///
/// Numbers of f32, bf16, f16, e4m3 and e5m2 are stored as they are, rounded to the nearest (the fp8 scale of a layer is
/// 1; beyond the largest they are the largest). i8 has a scale of f32 for each head of each token, keys and values apart:
/// the largest magnitude has the code 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    pub layers: usize,
    pub pages: usize,
    /// Tokens per page, a power of two.
    pub page_size: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub dtype: DType,
}

impl CacheShape {
    /// Whether each head of each token has a scale of its own, an f32 for its key and one for its value.
    pub fn has_scales(&self) -> bool {
        self.dtype == DType::I8
    }

    /// Bytes that one token takes over all layers.
    pub fn bytes_per_token(&self) -> usize {
        let scale = if self.has_scales() { DType::F32.size() } else { 0 };
        2 * self.layers * self.kv_heads * (self.head_dim * self.dtype.size() + scale)
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> usize {
        self.pages * self.page_size * self.bytes_per_token()
    }
}

/// How two halves of a gated feed-forward layer meet: `activation(gate) * up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    Silu,
    /// `gelu(x) ≈ 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `0.5 x (1 + erf(x / √2))`.
    Gelu,
}

/// Arguments of [`Ops::rotary_kv_write`].
pub struct RotaryKvWrite<'a, O: Ops> {
    /// `[tokens, (heads + 2 · kv_heads) · head_dim]`: queries, keys, values.
    pub qkv: &'a O::Buffer,
    /// Rotated queries, `[tokens, heads, head_dim]`.
    pub query: &'a mut O::Buffer,
    pub cache: &'a mut O::Cache,
    pub layer: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Leading dimensions of a head that rotate; element `i` pairs with `i + rotary_dim / 2`.
    pub rotary_dim: usize,
    pub rope: RopeTable<'a, O>,
    /// Per-head RMS norm of queries and keys before the rotation: gains of `[head_dim]` and epsilon.
    pub qk_norm: Option<QkNorm<'a, O>>,
}

/// Rotary factors by position; those that it lacks come with [the batch](Batch::rope).
pub struct RopeTable<'a, O: Ops> {
    /// f32 `[rows, 2, rotary_dim / 2]`: cosines, then sines, already scaled.
    pub factors: &'a O::Buffer,
    pub rows: usize,
}

/// Gains of the per-head norm of queries and keys.
pub struct QkNorm<'a, O: Ops> {
    pub query: &'a O::Vector,
    pub key: &'a O::Vector,
    pub eps: f32,
}

/// What a device gives at its best.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes of memory, 10⁹ a second.
    pub gb_s: f64,
    /// Multiplications and additions in matrix products, 10⁹ a second.
    pub gflop_s: f64,
}

/// A device as the decoder sees it. Calls may return before the work is done; reads of results wait.
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

    /// What this is, for people: instruction set, threads.
    fn describe(&self) -> String;

    /// What the device was asked to do so far; nothing is counted on the CPU.
    fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Whether work goes on after the call that asked for it has returned.
    fn overlaps(&self) -> bool {
        false
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// The device has failed, and is of no use any more.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Whether a failure that [`check`](Self::check) finds lasts until the process ends. It does on a GPU: a fault of a kernel
    /// breaks the process's CUDA context, and every context it gets afterwards is the same one.
    fn fails_for_good(&self) -> bool {
        false
    }

    /// What it gives at this moment, at its best, with activations of this dtype: the floors of figures follow from it.
    fn rates(&self, activations: DType) -> Result<Rates>;

    /// The dtype in which matrix products and the residual stream are kept when activations are `activation`.
    fn wide_dtype(&self, activation: DType) -> DType;

    /// A linear layer from row blocks `[n_i, k]` stacked along `n` (query, key and value projections, say), with one
    /// bias per block or none.
    fn matrix(&self, blocks: Vec<WeightView>, biases: Vec<WeightView>) -> Result<Self::Matrix>;

    /// A gated layer's first half from its gate and up projections, `[width, k]` each, with a bias for each or none.
    fn gated_matrix(&self, blocks: Vec<WeightView>, biases: Vec<WeightView>) -> Result<Self::GatedMatrix>;

    fn vector(&self, weight: WeightView) -> Result<Self::Vector>;

    /// Numbers that every device keeps in f32: [`Scoring::slopes`] and [`Scoring::sinks`].
    fn floats(&self, values: &[f32]) -> Result<Self::Vector>;

    /// Room for `len` elements.
    fn buffer(&self, dtype: DType, len: usize) -> Result<Self::Buffer>;

    fn cache(&self, shape: CacheShape) -> Result<Self::Cache>;

    /// An empty step, to be filled by [`Ops::upload`].
    fn step(&self) -> Result<Self::Step>;

    /// Does of the next [`upload`](Self::upload) what it can before tokens and samples are known, for a batch with a
    /// [`layout`](Batch::layout), which has as many of them already.
    fn prepare(&self, _batch: &Batch, _step: &mut Self::Step) -> Result<()> {
        Ok(())
    }

    /// Brings a batch to the device: one copy at most.
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

    /// `residual += x · weightᵀ + bias` for the first `rows` rows of all, `[rows, n]`: the bits of [`matmul`](Self::matmul)
    /// in [`Ops::wide_dtype`], added as [`rms_norm`](Self::rms_norm) adds its delta.
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

    /// `out[i] = x[logit_rows[start + i]]` for the step's `logit_rows[rows]`, `rows` being `start..end`: rows of `width`
    /// elements, `[tokens, width] → [end - start, width]`, both of one dtype.
    fn gather_rows(
        &self,
        step: &Self::Step,
        rows: Range<usize>,
        width: usize,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Copies pages of the cache, `[from, to]` each, in every layer. No page is written twice, or both read and written.
    fn copy_pages(&self, cache: &mut Self::Cache, pairs: &[[u32; 2]]) -> Result<()>;

    /// A page of the cache, of every layer and with its scales, in bytes of the device's own order.
    fn read_page(&self, cache: &Self::Cache, page: u32, to: &mut Vec<u8>) -> Result<()>;

    /// Puts back what [`read_page`](Self::read_page) gave, here or elsewhere in the cache.
    fn write_page(&self, cache: &mut Self::Cache, page: u32, from: &[u8]) -> Result<()>;

    /// Writes elements `start` and on of an f32 buffer.
    fn write_floats(&self, x: &mut Self::Buffer, start: usize, values: &[f32]) -> Result<()>;

    /// Lets the host change row `row` of an f32 `[rows, width]`, after all work so far.
    fn edit_row(&self, x: &mut Self::Buffer, row: usize, width: usize, edit: &mut dyn FnMut(&mut [f32])) -> Result<()>;

    /// Chooses a token by each of the step's `samples[rows]` from `logits: [rows, vocab]`, f32, which penalties may
    /// change. [`sampled`](Self::sampled) reads the results.
    fn sample(&self, step: &mut Self::Step, rows: Range<usize>, vocab: usize, logits: &mut Self::Buffer) -> Result<()>;

    /// Waits for the step; the tokens chosen by its `samples`, in order.
    fn sampled(&self, step: &mut Self::Step) -> Result<Vec<Sampled>>;

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

    /// Records the work that `work` asks for instead of doing it.
    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Self::Recording>;

    /// Does recorded work once more, on what the buffers hold now.
    fn replay(&self, recording: &Self::Recording) -> Result<()>;
}
