//! The one decoder: a forward pass over a flat batch, written against [`Ops`].

use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{Attention, Batch, CacheShape, Ops, QkNorm, RotaryKvWrite, Rows, SampleRow, Sampled};

use super::checkpoint::Checkpoint;
use super::spec::ArchSpec;
use super::weights::Weights;

/// A model on a device, whichever the device is.
pub trait Forward: Send {
    /// What runs it, for people.
    fn describe(&self) -> String;

    /// Runs one step: writes the batch's keys and values, leaves the last hidden states ready for
    /// [`sample`](Self::sample) or [`target_logprobs`](Self::target_logprobs).
    fn run(&mut self, batch: &Batch) -> Result<()>;

    /// Chooses a token after each of the batch's `logit_rows`; `rows` has one entry for each.
    fn sample(&mut self, rows: &[SampleRow<'_>]) -> Result<Vec<Sampled>>;

    /// Log-probability of `targets[i]` after `logit_rows[i]`.
    fn target_logprobs(&mut self, targets: &[u32]) -> Result<Vec<f32>>;
}

/// Sizes that a decoder allocates for once, at its start.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of one step.
    pub batch_tokens: usize,
    pub cache: CacheShape,
}

/// Bytes of logits that exist at a time. A vocabulary is wide: the rows of a whole step would take hundreds of megabytes.
const LOGIT_BYTES: usize = 64 << 20;

/// [`Forward`] on any [`Ops`].
pub struct Decoder<O: Ops> {
    ops: O,
    spec: ArchSpec,
    weights: Weights<O>,
    cache: O::Cache,
    step: O::Step,
    activations: Activations<O>,
    /// Rows that the logits buffer holds.
    logit_rows: usize,
    /// The last layer's output has not been added to the residual stream yet.
    pending: bool,
}

/// `[tokens, …]` buffers, reused by every layer of every step.
struct Activations<O: Ops> {
    residual: O::Buffer,
    /// What a sublayer adds to the residual stream; the next norm adds it.
    delta: O::Buffer,
    normed: O::Buffer,
    qkv: O::Buffer,
    query: O::Buffer,
    attended: O::Buffer,
    gate_up: O::Buffer,
    gated: O::Buffer,
    logits: O::Buffer,
}

impl<O: Ops> Decoder<O> {
    /// # Errors
    /// The checkpoint lacks a tensor or has one of another shape; the device has no room.
    pub fn load(ops: O, spec: &ArchSpec, checkpoint: &Checkpoint, dtype: DType, limits: Limits) -> Result<Self> {
        let weights = Weights::load(&ops, spec, checkpoint)?;
        let wide = ops.wide_dtype(dtype);
        let tokens = limits.batch_tokens;
        let heads = spec.heads * spec.head_dim;
        let logit_rows = (LOGIT_BYTES / DType::F32.size() / spec.vocab_size).clamp(1, tokens);
        let activations = Activations {
            residual: ops.buffer(wide, tokens * spec.hidden_size)?,
            delta: ops.buffer(wide, tokens * spec.hidden_size)?,
            normed: ops.buffer(dtype, tokens * spec.hidden_size)?,
            qkv: ops.buffer(wide, tokens * (heads + 2 * spec.kv_heads * spec.head_dim))?,
            query: ops.buffer(dtype, tokens * heads)?,
            attended: ops.buffer(dtype, tokens * heads)?,
            gate_up: ops.buffer(wide, tokens * 2 * spec.intermediate_size)?,
            gated: ops.buffer(dtype, tokens * spec.intermediate_size)?,
            logits: ops.buffer(DType::F32, logit_rows * spec.vocab_size)?,
        };
        let cache = ops.cache(limits.cache)?;
        let step = ops.step()?;
        Ok(Self { ops, spec: spec.clone(), weights, cache, step, activations, logit_rows, pending: false })
    }

    /// Logits after `logit_rows[start..end]`, into the logits buffer.
    fn logits(&mut self, start: usize, end: usize) -> Result<()> {
        let Self { ops, spec, weights, step, activations: a, pending, .. } = self;
        let delta = std::mem::take(pending).then_some(&a.delta);
        let rows = Rows::Logits { start, end };
        let hidden = spec.hidden_size;
        ops.rms_norm(step, rows, hidden, &mut a.residual, delta, &weights.final_norm, spec.norm_eps, &mut a.normed)?;
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        ops.matmul(end - start, &a.normed, head, &mut a.logits)
    }

    /// Calls `read` with the logits of each group of rows that the logits buffer holds.
    fn by_group<T>(
        &mut self,
        rows: usize,
        mut read: impl FnMut(&mut Self, std::ops::Range<usize>) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let mut all = Vec::with_capacity(rows);
        for start in (0..rows).step_by(self.logit_rows) {
            let end = rows.min(start + self.logit_rows);
            self.logits(start, end)?;
            all.extend(read(self, start..end)?);
        }
        Ok(all)
    }
}

impl<O: Ops> Forward for Decoder<O> {
    fn describe(&self) -> String {
        self.ops.describe()
    }

    fn run(&mut self, batch: &Batch) -> Result<()> {
        let Self { ops, spec, weights, cache, step, activations: a, pending, .. } = self;
        let tokens = batch.tokens.len();
        let hidden = spec.hidden_size;
        ops.upload(batch, step)?;
        ops.embedding(step, &weights.embedding, &mut a.residual)?;
        *pending = false;
        for (index, layer) in weights.layers.iter().enumerate() {
            let delta = std::mem::replace(pending, true).then_some(&a.delta);
            let (residual, normed) = (&mut a.residual, &mut a.normed);
            ops.rms_norm(step, Rows::All, hidden, residual, delta, &layer.attention_norm, spec.norm_eps, normed)?;
            ops.matmul(tokens, &a.normed, &layer.qkv, &mut a.qkv)?;
            ops.rotary_kv_write(
                step,
                RotaryKvWrite {
                    qkv: &a.qkv,
                    query: &mut a.query,
                    cache,
                    layer: index,
                    heads: spec.heads,
                    kv_heads: spec.kv_heads,
                    head_dim: spec.head_dim,
                    rotary_dim: spec.rope.rotary_dim,
                    qk_norm: layer.qk_norm.as_ref().map(|(query, key)| QkNorm { query, key, eps: spec.norm_eps }),
                },
            )?;
            ops.attention(
                step,
                Attention {
                    query: &a.query,
                    cache,
                    layer: index,
                    out: &mut a.attended,
                    heads: spec.heads,
                    scale: spec.attention_scale,
                    window: spec.windows[index],
                },
            )?;
            ops.matmul(tokens, &a.attended, &layer.output, &mut a.delta)?;
            let (residual, normed) = (&mut a.residual, &mut a.normed);
            ops.rms_norm(step, Rows::All, hidden, residual, Some(&a.delta), &layer.mlp_norm, spec.norm_eps, normed)?;
            ops.matmul(tokens, &a.normed, &layer.gate_up, &mut a.gate_up)?;
            ops.act_mul(tokens, spec.intermediate_size, spec.activation, &a.gate_up, &mut a.gated)?;
            ops.matmul(tokens, &a.gated, &layer.down, &mut a.delta)?;
        }
        Ok(())
    }

    fn sample(&mut self, rows: &[SampleRow<'_>]) -> Result<Vec<Sampled>> {
        self.by_group(rows.len(), |this, group| {
            this.ops.sample(this.spec.vocab_size, &mut this.activations.logits, &rows[group])
        })
    }

    fn target_logprobs(&mut self, targets: &[u32]) -> Result<Vec<f32>> {
        self.by_group(targets.len(), |this, group| {
            this.ops.target_logprobs(this.spec.vocab_size, &this.activations.logits, &targets[group])
        })
    }
}
