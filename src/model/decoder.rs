//! The one decoder: a forward pass over a flat batch, written against [`Ops`].

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::device::Counters;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{
    Attention, Batch, CacheShape, KernelLimits, LogitEdits, Ops, PageMoves, QkNorm, Rates, RecordingKey, RotaryKvWrite,
    Sampled, Scoring, StepShape,
};

use super::checkpoint::Checkpoint;
use super::precision::WeightPrecision;
use super::rope_table::RopeTable;
use super::spec::ArchSpec;
use super::weights::{Layer, Weights};

/// A model on a device, independent of the device's type.
pub trait Forward: Send {
    /// Name of the device, for people.
    fn describe(&self) -> String;

    /// Launches, replays and copies so far; zero on the CPU.
    fn counters(&self) -> Counters;

    /// Waits for all work; fails if the device is unusable.
    fn check(&self) -> Result<()>;

    /// Whether an error of [`check`](Self::check) lasts until the process ends.
    fn fails_for_good(&self) -> bool;

    /// The device's peak rates, measured now.
    fn rates(&self) -> Result<Rates>;

    /// Bytes of weights that every decoded token reads.
    fn weight_bytes(&self) -> u64;

    /// Copies KV pages to host memory, then others back. A host slot may be read any number of times after it was
    /// written.
    fn move_pages(&mut self, moves: &PageMoves) -> Result<()>;

    /// Time to copy a KV page back from host memory.
    fn fetch_time(&mut self) -> Result<Duration>;

    /// Copies KV pages, `[from, to]` each. No page is written twice, or both read and written.
    fn copy_pages(&mut self, pairs: &[[u32; 2]]) -> Result<()>;

    /// Whether [`run`](Self::run) and [`sample`](Self::sample) return before their work is done.
    fn overlaps(&self) -> bool;

    /// Prepares the part of the next step that does not depend on its tokens and samples: see [`Batch::layout`].
    fn prepare(&mut self, batch: &Batch) -> Result<()>;

    /// Starts a step: writes the batch's keys and values.
    fn run(&mut self, batch: &Batch) -> Result<()>;

    /// Starts a step that samples a token for each of the batch's `samples`, after the host has edited some rows of
    /// logits.
    fn sample(&mut self, batch: &Batch, edits: LogitEdits<'_>) -> Result<()>;

    /// Waits for the tokens of the last step started by [`sample`](Self::sample); an inner error belongs to its row alone.
    fn sampled(&mut self) -> Result<Vec<Result<Sampled>>>;

    /// Runs a step and returns log-probabilities of the batch's `targets`.
    fn target_logprobs(&mut self, batch: &Batch) -> Result<Vec<f32>>;
}

/// Sizes of a decoder's buffers, which are allocated once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of one step.
    pub batch_tokens: usize,
    pub cache: CacheShape,
}

/// Pages that are moved between device and host at a time: this bounds the buffers in between.
const MOVED_PAGES: usize = 16;

/// Bytes of the logits buffer. Vocabularies are wide: the rows of a whole step would take hundreds of megabytes.
const LOGIT_BYTES: usize = 64 << 20;

impl Limits {
    /// Upper bound of activations and rotary factors in bytes: all in f32.
    pub fn activation_bytes(&self, spec: &ArchSpec) -> u64 {
        let heads = spec.heads * spec.head_dim;
        let qkv = heads + 2 * spec.kv_heads * spec.head_dim;
        let of_token = 3 * spec.hidden_size + 3 * heads + qkv + spec.intermediate_size;
        let logits = self.logit_rows(spec) * spec.vocab_size;
        let rope = spec.rope.table(spec.context).table_rows() * spec.rope.rotary_dim;
        ((self.batch_tokens * of_token + logits + rope) * DType::F32.size()) as u64
    }

    /// Rows of logits computed at once.
    fn logit_rows(&self, spec: &ArchSpec) -> usize {
        (LOGIT_BYTES / DType::F32.size() / spec.vocab_size).clamp(1, self.batch_tokens)
    }
}

/// Implements [`Forward`] on any [`Ops`].
pub struct Decoder<O: Ops> {
    ops: Arc<O>,
    spec: ArchSpec,
    weights: Weights<O>,
    rope: RopeTable<O>,
    cache: O::Cache,
    /// KV pages in host memory.
    host: Vec<Vec<u8>>,
    cache_shape: CacheShape,
    step: O::Step,
    activations: Activations<O>,
    /// Dtype of the activations.
    dtype: DType,
    /// Rows that the logits buffer holds.
    logit_rows: usize,
    /// Recorded decode steps, ready for replay.
    recordings: HashMap<RecordingKey, O::Recording>,
    /// The layout of the batch that was prepared last.
    prepared: u64,
}

/// Buffers that are reused by every layer of every step.
struct Activations<O: Ops> {
    /// Of all tokens.
    stream: Stream<O>,
    /// Only tokens whose logits are wanted: others are not needed after the last attention.
    wanted: Stream<O>,
    work: Work<O>,
    qkv: O::Buffer,
    query: O::Buffer,
    logits: O::Buffer,
}

/// Input of a layer's second half, one row per token.
struct Stream<O: Ops> {
    residual: O::Buffer,
    attended: O::Buffer,
}

/// Buffers of a layer's second half, one row per token.
struct Work<O: Ops> {
    normed: O::Buffer,
    gated: O::Buffer,
}

impl<O: Ops> Decoder<O> {
    /// # Errors
    /// The model is larger than the device's kernels support; the checkpoint lacks a tensor or has one of another shape; device
    /// memory is short.
    pub fn load(
        ops: O,
        spec: &ArchSpec,
        checkpoint: &Checkpoint,
        precision: WeightPrecision,
        dtype: DType,
        limits: Limits,
    ) -> Result<Self> {
        let KernelLimits { head_dim, vocab } = ops.limits();
        for (field, most, found) in [("head_dim", head_dim, spec.head_dim), ("vocab_size", vocab, spec.vocab_size)] {
            if found > most {
                let expected = format!("at most {most} on {}", ops.describe());
                return Err(Error::checkpoint(&checkpoint.path("config.json"), field, expected, found));
            }
        }
        let weights = Weights::load(&ops, spec, checkpoint, precision)?;
        let wide = ops.wide_dtype(dtype);
        let tokens = limits.batch_tokens;
        let heads = spec.heads * spec.head_dim;
        let logit_rows = limits.logit_rows(spec);
        let stream = |rows: usize| -> Result<Stream<O>> {
            let residual = ops.buffer(wide, rows * spec.hidden_size)?;
            Ok(Stream { residual, attended: ops.buffer(dtype, rows * heads)? })
        };
        let activations = Activations {
            stream: stream(tokens)?,
            wanted: stream(logit_rows)?,
            work: Work {
                normed: ops.buffer(dtype, tokens * spec.hidden_size)?,
                gated: ops.buffer(dtype, tokens * spec.intermediate_size)?,
            },
            qkv: ops.buffer(wide, tokens * (heads + 2 * spec.kv_heads * spec.head_dim))?,
            query: ops.buffer(dtype, tokens * heads)?,
            logits: ops.buffer(DType::F32, logit_rows * spec.vocab_size)?,
        };
        let rope = RopeTable::new(&ops, spec.rope.table(spec.context), spec.rope.rotary_dim)?;
        let cache = ops.cache(limits.cache)?;
        let step = ops.step()?;
        Ok(Self {
            ops: Arc::new(ops),
            spec: spec.clone(),
            weights,
            rope,
            cache,
            host: Vec::new(),
            cache_shape: limits.cache,
            step,
            activations,
            dtype,
            logit_rows,
            recordings: HashMap::new(),
            prepared: 0,
        })
    }

    /// The second half of a layer, after attention, for `rows` rows.
    fn finish_layer(
        ops: &O,
        spec: &ArchSpec,
        layer: &Layer<O>,
        rows: usize,
        stream: &mut Stream<O>,
        work: &mut Work<O>,
    ) -> Result<()> {
        let (hidden, eps) = (spec.hidden_size, spec.norm_eps);
        let Work { normed, gated } = work;
        ops.matmul_add(rows, &stream.attended, &layer.output, &mut stream.residual)?;
        ops.rms_norm(rows, hidden, &mut stream.residual, None, &layer.mlp_norm, eps, normed)?;
        ops.gated_matmul(rows, normed, &layer.gate_up, spec.activation, gated)?;
        ops.matmul_add(rows, gated, &layer.down, &mut stream.residual)
    }

    fn upload(&mut self, batch: &Batch) -> Result<StepShape> {
        batch.check_tokens(self.spec.vocab_size)?;
        if batch.layout == 0 || batch.layout != self.prepared {
            self.check_places(batch)?;
        }
        self.rope.reach(&self.ops, batch)?;
        self.ops.upload(batch, &mut self.step)
    }

    fn check_places(&self, batch: &Batch) -> Result<()> {
        batch.check_places(&self.cache_shape)?;
        self.rope.check(batch)
    }

    /// All layers up to the last attention, for the uploaded step.
    fn layers(&mut self, tokens: usize) -> Result<()> {
        let Self { ops, spec, weights, rope, cache, step, activations: a, .. } = self;
        let hidden = spec.hidden_size;
        ops.embedding(step, &weights.embedding, &mut a.stream.residual)?;
        for (index, layer) in weights.layers.iter().enumerate() {
            let (residual, normed) = (&mut a.stream.residual, &mut a.work.normed);
            ops.rms_norm(tokens, hidden, residual, None, &layer.attention_norm, spec.norm_eps, normed)?;
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
                    rope: rope.view(),
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
                    scoring: Scoring { window: spec.windows[index], ..Scoring::scaled(spec.attention_scale) },
                },
            )?;
            // After the last attention only tokens with wanted logits are needed: see `logits`.
            if index + 1 < weights.layers.len() {
                Self::finish_layer(ops, spec, layer, tokens, &mut a.stream, &mut a.work)?;
            }
        }
        Ok(())
    }

    /// Logits after `logit_rows[start..end]`, into the logits buffer: the last layer's second half and the head.
    fn logits(&mut self, rows: Range<usize>) -> Result<()> {
        let Self { ops, spec, weights, step, activations: a, .. } = self;
        let (len, hidden, heads) = (rows.len(), spec.hidden_size, spec.heads * spec.head_dim);
        let layer = weights.layers.last().ok_or_else(|| Error::operator("logits", "layers", "at least one", 0))?;
        ops.gather_rows(step, rows.clone(), hidden, &a.stream.residual, &mut a.wanted.residual)?;
        ops.gather_rows(step, rows, heads, &a.stream.attended, &mut a.wanted.attended)?;
        Self::finish_layer(ops, spec, layer, len, &mut a.wanted, &mut a.work)?;
        let (residual, normed) = (&mut a.wanted.residual, &mut a.work.normed);
        ops.rms_norm(len, hidden, residual, None, &weights.final_norm, spec.norm_eps, normed)?;
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        ops.matmul(len, normed, head, &mut a.logits)
    }

    /// The uploaded step from its first kernel to its last. Logits are computed in groups of rows that fit their
    /// buffer.
    fn forward(&mut self, shape: StepShape, mut read: impl Read<O>) -> Result<()> {
        self.layers(shape.tokens)?;
        for start in (0..shape.logit_rows).step_by(self.logit_rows) {
            let rows = start..shape.logit_rows.min(start + self.logit_rows);
            self.logits(rows.clone())?;
            read(&self.ops, &mut self.step, rows, self.spec.vocab_size, &mut self.activations.logits)?;
        }
        Ok(())
    }

    /// A step that samples tokens. Where recording pays, a step's work is recorded when its key is first seen, and
    /// replayed afterwards.
    fn choose(&mut self, shape: StepShape) -> Result<()> {
        let Some(key) = shape.recording else {
            return self.forward(shape, O::sample);
        };
        if let Some(recording) = self.recordings.get(&key) {
            return self.ops.replay(recording);
        }
        self.recordings.retain(|old, _| old.generation == key.generation);
        // Runs once before recording: the first launch may load code, which is not allowed while recording.
        self.forward(shape, O::sample)?;
        let ops = Arc::clone(&self.ops);
        let recording = ops.record(|| self.forward(shape, O::sample))?;
        self.recordings.insert(key, recording);
        Ok(())
    }

    /// A step whose logits are edited on the host, which cannot be recorded.
    fn choose_edited(&mut self, shape: StepShape, edits: LogitEdits<'_>) -> Result<()> {
        self.forward(shape, |ops, step, rows, vocab, logits| {
            for &row in edits.rows.iter().filter(|row| rows.contains(row)) {
                ops.edit_row(logits, row - rows.start, vocab, &mut |logits| (edits.edit)(row, logits))?;
            }
            ops.sample(step, rows, vocab, logits)
        })
    }
}

/// Consumes the logits of some rows: [`Ops::sample`] or [`Ops::target_logprobs`].
trait Read<O: Ops>: FnMut(&O, &mut O::Step, Range<usize>, usize, &mut O::Buffer) -> Result<()> {}

impl<O: Ops, F: FnMut(&O, &mut O::Step, Range<usize>, usize, &mut O::Buffer) -> Result<()>> Read<O> for F {}

impl<O: Ops> Forward for Decoder<O> {
    fn describe(&self) -> String {
        self.ops.describe()
    }

    fn counters(&self) -> Counters {
        self.ops.counters()
    }

    fn check(&self) -> Result<()> {
        self.ops.check()
    }

    fn fails_for_good(&self) -> bool {
        self.ops.fails_for_good()
    }

    fn rates(&self) -> Result<Rates> {
        self.ops.rates(self.dtype)
    }

    fn weight_bytes(&self) -> u64 {
        self.weights.read_bytes
    }

    fn move_pages(&mut self, moves: &PageMoves) -> Result<()> {
        let Self { ops, cache, host, cache_shape, .. } = self;
        let bytes = cache_shape.page_bytes();
        for moves in moves.to_host.chunks(MOVED_PAGES) {
            let pages: Vec<u32> = moves.iter().map(|&[page, _]| page).collect();
            let read = ops.read_pages(cache, &pages)?;
            for (&[_, place], page) in moves.iter().zip(read.chunks(bytes.max(1))) {
                let place = place as usize;
                host.resize_with(host.len().max(place + 1), Vec::new);
                host[place].clear();
                host[place].extend_from_slice(page);
            }
        }
        for moves in moves.from_host.chunks(MOVED_PAGES) {
            let pages: Vec<u32> = moves.iter().map(|&[_, page]| page).collect();
            let mut from = Vec::with_capacity(pages.len() * bytes);
            for &[place, _] in moves {
                let missing = || Error::operator("move_pages", "from_host", "a place that was written", place);
                from.extend_from_slice(host.get(place as usize).ok_or_else(missing)?);
            }
            ops.write_pages(cache, &pages, &from)?;
        }
        Ok(())
    }

    fn fetch_time(&mut self) -> Result<Duration> {
        let Self { ops, cache, cache_shape, .. } = self;
        let pages: Vec<u32> = (0..cache_shape.pages.min(MOVED_PAGES) as u32).collect();
        let bytes = ops.read_pages(cache, &pages)?;
        let mut shortest = Duration::MAX;
        for _ in 0..5 {
            ops.check()?;
            let start = Instant::now();
            ops.write_pages(cache, &pages, &bytes)?;
            ops.check()?;
            shortest = shortest.min(start.elapsed());
        }
        Ok(shortest / (pages.len() as u32).max(1))
    }

    fn copy_pages(&mut self, pairs: &[[u32; 2]]) -> Result<()> {
        self.ops.copy_pages(&mut self.cache, pairs)
    }

    fn overlaps(&self) -> bool {
        self.ops.overlaps()
    }

    fn prepare(&mut self, batch: &Batch) -> Result<()> {
        self.check_places(batch)?;
        self.ops.prepare(batch, &mut self.step)?;
        self.prepared = batch.layout;
        Ok(())
    }

    fn run(&mut self, batch: &Batch) -> Result<()> {
        let shape = self.upload(batch)?;
        self.layers(shape.tokens)
    }

    fn sample(&mut self, batch: &Batch, edits: LogitEdits<'_>) -> Result<()> {
        let shape = self.upload(batch)?;
        if edits.rows.is_empty() { self.choose(shape) } else { self.choose_edited(shape, edits) }
    }

    fn sampled(&mut self) -> Result<Vec<Result<Sampled>>> {
        self.ops.sampled(&mut self.step)
    }

    fn target_logprobs(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let shape = self.upload(batch)?;
        self.forward(shape, |ops, step, rows, vocab, logits| ops.target_logprobs(step, rows, vocab, logits))?;
        self.ops.scored(&mut self.step)
    }
}
