//! The one decoder: a forward pass over a flat batch, written against [`Ops`].

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{Attention, Batch, CacheShape, Ops, QkNorm, RotaryKvWrite, SampleRow, Sampled};

use super::checkpoint::Checkpoint;
use super::spec::ArchSpec;
use super::weights::{Layer, Weights};

/// A model on a device, whichever the device is.
pub trait Forward: Send {
    /// What runs it, for people.
    fn describe(&self) -> String;

    /// Runs one step up to the last attention: writes the batch's keys and values. What follows is the work of
    /// [`sample`](Self::sample) and [`target_logprobs`](Self::target_logprobs), for the tokens that they ask for.
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
}

/// Buffers that are reused by every layer of every step.
struct Activations<O: Ops> {
    /// Of all tokens.
    stream: Stream<O>,
    /// Of tokens whose logits are wanted: after the last attention only they count.
    wanted: Stream<O>,
    work: Work<O>,
    qkv: O::Buffer,
    query: O::Buffer,
    logits: O::Buffer,
}

/// What the second half of a layer begins with, a row for each token.
struct Stream<O: Ops> {
    residual: O::Buffer,
    attended: O::Buffer,
}

/// Room for the second half of a layer, a row for each token.
struct Work<O: Ops> {
    /// What a sublayer adds to the residual stream; the next norm adds it.
    delta: O::Buffer,
    normed: O::Buffer,
    gate_up: O::Buffer,
    gated: O::Buffer,
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
        let stream = |rows: usize| -> Result<Stream<O>> {
            let residual = ops.buffer(wide, rows * spec.hidden_size)?;
            Ok(Stream { residual, attended: ops.buffer(dtype, rows * heads)? })
        };
        let activations = Activations {
            stream: stream(tokens)?,
            wanted: stream(logit_rows)?,
            work: Work {
                delta: ops.buffer(wide, tokens * spec.hidden_size)?,
                normed: ops.buffer(dtype, tokens * spec.hidden_size)?,
                gate_up: ops.buffer(wide, tokens * 2 * spec.intermediate_size)?,
                gated: ops.buffer(dtype, tokens * spec.intermediate_size)?,
            },
            qkv: ops.buffer(wide, tokens * (heads + 2 * spec.kv_heads * spec.head_dim))?,
            query: ops.buffer(dtype, tokens * heads)?,
            logits: ops.buffer(DType::F32, logit_rows * spec.vocab_size)?,
        };
        let cache = ops.cache(limits.cache)?;
        let step = ops.step()?;
        Ok(Self { ops, spec: spec.clone(), weights, cache, step, activations, logit_rows })
    }

    /// The second half of a layer, after attention, for `rows` rows. Its result is left in `work.delta`.
    fn finish_layer(
        ops: &O,
        spec: &ArchSpec,
        layer: &Layer<O>,
        rows: usize,
        stream: &mut Stream<O>,
        work: &mut Work<O>,
    ) -> Result<()> {
        let (hidden, inner, eps) = (spec.hidden_size, spec.intermediate_size, spec.norm_eps);
        let Work { delta, normed, gate_up, gated } = work;
        ops.matmul(rows, &stream.attended, &layer.output, delta)?;
        ops.rms_norm(rows, hidden, &mut stream.residual, Some(delta), &layer.mlp_norm, eps, normed)?;
        ops.matmul(rows, normed, &layer.gate_up, gate_up)?;
        ops.act_mul(rows, inner, spec.activation, gate_up, gated)?;
        ops.matmul(rows, gated, &layer.down, delta)
    }

    /// Logits after `logit_rows[start..end]`, into the logits buffer: the last layer's second half and the head.
    fn logits(&mut self, start: usize, end: usize) -> Result<()> {
        let Self { ops, spec, weights, step, activations: a, .. } = self;
        let (rows, hidden, heads) = (end - start, spec.hidden_size, spec.heads * spec.head_dim);
        let layer = weights.layers.last().ok_or_else(|| Error::operator("logits", "layers", "at least one", 0))?;
        ops.gather_rows(step, start..end, hidden, &a.stream.residual, &mut a.wanted.residual)?;
        ops.gather_rows(step, start..end, heads, &a.stream.attended, &mut a.wanted.attended)?;
        Self::finish_layer(ops, spec, layer, rows, &mut a.wanted, &mut a.work)?;
        let (residual, delta, normed) = (&mut a.wanted.residual, Some(&a.work.delta), &mut a.work.normed);
        ops.rms_norm(rows, hidden, residual, delta, &weights.final_norm, spec.norm_eps, normed)?;
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        ops.matmul(rows, normed, head, &mut a.logits)
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
        let Self { ops, spec, weights, cache, step, activations: a, .. } = self;
        let tokens = batch.tokens.len();
        let hidden = spec.hidden_size;
        ops.upload(batch, step)?;
        ops.embedding(step, &weights.embedding, &mut a.stream.residual)?;
        for (index, layer) in weights.layers.iter().enumerate() {
            let delta = (index > 0).then_some(&a.work.delta);
            let (residual, normed) = (&mut a.stream.residual, &mut a.work.normed);
            ops.rms_norm(tokens, hidden, residual, delta, &layer.attention_norm, spec.norm_eps, normed)?;
            ops.matmul(tokens, normed, &layer.qkv, &mut a.qkv)?;
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
                    out: &mut a.stream.attended,
                    heads: spec.heads,
                    scale: spec.attention_scale,
                    window: spec.windows[index],
                },
            )?;
            // After the last attention only tokens count whose logits are wanted: see `logits`.
            if index + 1 < weights.layers.len() {
                Self::finish_layer(ops, spec, layer, tokens, &mut a.stream, &mut a.work)?;
            }
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
