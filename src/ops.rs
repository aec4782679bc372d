//! What a forward pass may ask of a device. The decoder is written once against [`Ops`]; every device implements it
//! kernel by kernel, under the same names.
//!
//! Conventions. Activations are dense row-major `[tokens, features]` arrays in [`Ops::Buffer`]s that are allocated once
//! and reused; a buffer may be longer than what a call uses. Weights keep the dtype they are stored in. A *batch* is
//! the description of one step: it is prepared on the host, uploaded once, and read by every kernel of the step.
//!
//! Same bits in any company: every output element is reduced in an order that depends on its own inputs alone, never
//! on the number of tokens in the batch, on how a prompt was cut into chunks, or on the number of threads.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::device::{Bytes, Counters};
use crate::dtype::DType;
use crate::error::{Error, Result};

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

/// The shape of the paged KV cache: `layers × 2 × [pages, kv_heads, page_size, head_dim]`.
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
    /// Bytes that one token takes over all layers.
    pub fn bytes_per_token(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * self.dtype.size()
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> usize {
        self.pages * self.page_size * self.bytes_per_token()
    }
}

/// One sequence's share of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First token of the sequence in the flat batch.
    pub start: usize,
    /// Tokens of the sequence in this batch, at least one.
    pub len: usize,
    /// Tokens in the cache once this batch is written; the last query sits at position `kv_len - 1`.
    pub kv_len: usize,
    /// First entry of the sequence in [`Batch::page_table`]; entry `p / page_size` holds position `p`.
    pub pages: usize,
}

/// One step: a flat list of tokens of one or several sequences, prefill chunks and decodes alike, and what is wanted
/// of it.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids, `[tokens]`.
    pub tokens: Vec<u32>,
    /// Position of each token in its sequence, `[tokens]`.
    pub positions: Vec<u32>,
    /// Where each token's key and value go: `page * page_size + position % page_size`, `[tokens]`.
    pub slots: Vec<u32>,
    /// Rotary factors of each token, `[tokens, 2, rotary_dim / 2]`: cosines, then sines, already scaled.
    pub rope: Vec<f32>,
    pub spans: Vec<Span>,
    pub page_table: Vec<u32>,
    /// Tokens whose next-token logits are wanted, as indices into the batch, ascending.
    pub logit_rows: Vec<u32>,
    /// How the token after each of `logit_rows` is chosen; empty where none is.
    pub samples: Vec<SampleRow>,
    /// Tokens whose log-probability after each of `logit_rows` is wanted; empty where it is not.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Spans lie one after another and cover all tokens; positions count up to `kv_len - 1`; no two tokens share a slot.
    ///
    /// # Errors
    /// They do not, or fields do not belong together.
    pub(crate) fn check(&self) -> Result<()> {
        const OP: &str = "upload";
        let tokens = self.tokens.len();
        for (field, len) in [("positions", self.positions.len()), ("slots", self.slots.len())] {
            if len != tokens {
                return Err(Error::operator(OP, field, format!("{tokens} entries"), len));
            }
        }
        if !self.rope.len().is_multiple_of(2 * tokens.max(1)) {
            let expected = format!("cosines and sines for {tokens} tokens");
            return Err(Error::operator(OP, "rope", expected, format!("{} factors", self.rope.len())));
        }
        let mut end = 0usize;
        for (i, span) in self.spans.iter().enumerate() {
            let next = span.start.checked_add(span.len);
            if span.start != end || span.len == 0 || span.kv_len < span.len || next.is_none_or(|next| next > tokens) {
                let expected = format!("tokens from {end}, at least one, no more than kv_len or {tokens} in all");
                return Err(Error::operator(OP, "spans", expected, format!("{span:?} as span {i}")));
            }
            let first = span.kv_len - span.len;
            let positions = &self.positions[span.start..span.start + span.len];
            if let Some(at) = (0..span.len).find(|&at| positions[at] as usize != first + at) {
                let found = format!("{} at token {}", positions[at], span.start + at);
                return Err(Error::operator(OP, "positions", first + at, found));
            }
            end = span.start + span.len;
        }
        if end != tokens {
            return Err(Error::operator(OP, "spans", format!("all of {tokens} tokens"), format!("{end} covered")));
        }
        if let Some(&row) = self.logit_rows.iter().find(|&&row| row as usize >= tokens) {
            return Err(Error::operator(OP, "logit_rows", format!("below {tokens}"), row));
        }
        for (field, len) in [("samples", self.samples.len()), ("targets", self.targets.len())] {
            if len > self.logit_rows.len() {
                let expected = format!("at most one for each of {} logit rows", self.logit_rows.len());
                return Err(Error::operator(OP, field, expected, len));
            }
        }
        let mut order = self.slots.clone();
        order.sort_unstable();
        if let Some(pair) = order.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::operator(OP, "slots", "one token each", format!("slot {} twice", pair[0])));
        }
        Ok(())
    }
}

impl Batch {
    /// What indices lead to is there: a device that is not the CPU could only fault.
    ///
    /// # Errors
    /// A token is not in a vocabulary of `vocab`, a slot or a page not in the cache; a row of `samples` makes no sense.
    pub(crate) fn check_within(&self, vocab: usize, cache: &CacheShape) -> Result<()> {
        const OP: &str = "upload";
        let outside = |ids: &[u32], limit: usize| ids.iter().copied().find(|&id| id as usize >= limit);
        let slots = cache.pages * cache.page_size;
        for (field, ids, limit) in [
            ("tokens", &self.tokens, vocab),
            ("targets", &self.targets, vocab),
            ("slots", &self.slots, slots),
            ("page_table", &self.page_table, cache.pages),
        ] {
            if let Some(id) = outside(ids, limit) {
                return Err(Error::operator(OP, field, format!("below {limit}"), id));
            }
        }
        for (i, span) in self.spans.iter().enumerate() {
            let end = span.pages.checked_add(span.kv_len.div_ceil(cache.page_size));
            if end.is_none_or(|end| end > self.page_table.len()) {
                let expected = format!("pages within a table of {}", self.page_table.len());
                return Err(Error::operator(OP, "spans", expected, format!("{span:?} as span {i}")));
            }
        }
        self.samples.iter().try_for_each(|row| row.check(vocab))
    }
}

/// What a device makes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Rows that kernels over tokens run for: the batch's tokens, and perhaps rows that only pad it.
    pub tokens: usize,
    /// Rows that kernels over logits run for.
    pub logit_rows: usize,
    /// Steps with one key do the same work on the same addresses: recorded once, it can be replayed. `None` where
    /// there is nothing to gain.
    pub recording: Option<RecordingKey>,
}

/// See [`StepShape::recording`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordingKey {
    /// Sequences that the recorded work has room for.
    pub bucket: usize,
    /// Counts how often the step's addresses have changed; recordings of earlier ones are of no use any more.
    pub generation: u64,
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
    /// Per-head RMS norm of queries and keys before the rotation: gains of `[head_dim]` and epsilon.
    pub qk_norm: Option<QkNorm<'a, O>>,
}

/// Gains of the per-head norm of queries and keys.
pub struct QkNorm<'a, O: Ops> {
    pub query: &'a O::Vector,
    pub key: &'a O::Vector,
    pub eps: f32,
}

/// Arguments of [`Ops::attention`].
pub struct Attention<'a, O: Ops> {
    /// `[tokens, heads, head_dim]`.
    pub query: &'a O::Buffer,
    /// Keys and values, those of this batch included.
    pub cache: &'a O::Cache,
    pub layer: usize,
    /// `[tokens, heads, head_dim]`.
    pub out: &'a mut O::Buffer,
    pub heads: usize,
    /// Scores are multiplied by this before the softmax.
    pub scale: f32,
    /// A query at position `p` sees positions `p - window + 1 ..= p`; `None` sees all up to `p`.
    pub window: Option<usize>,
}

/// How the next token of one row is chosen.
#[derive(Clone, Debug)]
pub struct SampleRow {
    /// 0 takes the most likely token (the lowest id among equals).
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// Smallest set of most likely tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens below this fraction of the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in `history`; 1 does nothing.
    pub repetition_penalty: f32,
    /// Is subtracted once from the logit of every generated token; 0 does nothing.
    pub presence_penalty: f32,
    /// Is subtracted from the logit of every generated token as often as it was generated; 0 does nothing.
    pub frequency_penalty: f32,
    /// Prompt and generated tokens so far; may be empty where no penalty asks for them.
    pub history: Vec<u32>,
    /// So many tokens of `history` are the prompt's; the rest were generated.
    pub prompt_len: usize,
    /// Token ids and what is added to their logits after the penalties; −∞ bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Token ids that may not be chosen.
    pub banned: Vec<u32>,
    /// Bit `t % 32` of word `t / 32` is set where token `t` may be chosen: `⌈vocab / 32⌉` words. Without it all may.
    pub mask: Option<Vec<u32>>,
    pub seed: u64,
    /// Position of the new token in its sequence. The draw is a function of `(seed, position)` alone.
    pub position: u64,
}

impl SampleRow {
    /// The most likely token, changed by nothing.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        history: Vec::new(),
        prompt_len: 0,
        logit_bias: Vec::new(),
        banned: Vec::new(),
        mask: None,
        seed: 0,
        position: 0,
    };

    /// # Errors
    /// A field is out of its range, or names what is no token of a vocabulary of `vocab`.
    pub(crate) fn check(&self, vocab: usize) -> Result<()> {
        let wrong = |field, expected: &str, found: f32| Err(Error::operator("sample", field, expected, found));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong("temperature", "a finite number from 0", self.temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p", "above 0, at most 1", self.top_p);
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return wrong("min_p", "0 to 1", self.min_p);
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return wrong("repetition_penalty", "a finite number above 0", self.repetition_penalty);
        }
        for (field, penalty) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if !(-2.0..=2.0).contains(&penalty) {
                return wrong(field, "-2 to 2", penalty);
            }
        }
        if let Some((_, bias)) = self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            return wrong("logit_bias", "finite numbers or -infinity", *bias);
        }
        if let Some((token, _)) = self.logit_bias.iter().find(|(token, _)| *token as usize >= vocab) {
            return Err(Error::operator("sample", "logit_bias", format!("ids below {vocab}"), token));
        }
        let words = vocab.div_ceil(32);
        if let Some(mask) = self.mask.as_ref().filter(|mask| mask.len() != words) {
            return Err(Error::operator("sample", "mask", format!("{words} words"), mask.len()));
        }
        match self.history.iter().find(|&&token| token as usize >= vocab) {
            Some(token) => Err(Error::operator("sample", "history", format!("ids below {vocab}"), token)),
            None => Ok(()),
        }
    }

    /// Each token of the history once, by id, with how often it was generated; none where no penalty asks.
    pub(crate) fn penalized(&self) -> Vec<(u32, u32)> {
        if self.repetition_penalty == 1.0 && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0 {
            return Vec::new();
        }
        let generated = |(i, &token): (usize, &u32)| (token, u32::from(i >= self.prompt_len));
        let mut tokens: Vec<(u32, u32)> = self.history.iter().enumerate().map(generated).collect();
        tokens.sort_unstable();
        let same = tokens.chunk_by(|a, b| a.0 == b.0);
        same.map(|same| (same[0].0, same.iter().map(|(_, generated)| generated).sum())).collect()
    }

    /// The draw: a number in [0, 1) that depends on the seed and the position alone.
    pub(crate) fn uniform(&self) -> f64 {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&self.position.to_le_bytes());
        let bits = ChaCha8Rng::from_seed(key).next_u64() >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

/// A chosen token with its log-probability under the model, before temperature, penalties and filters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    pub token: u32,
    pub logprob: f32,
}

/// Fails unless copies of pages, `[from, to]` each, can be done in any order: all of `pages`, none written twice, none
/// both read and written.
pub(crate) fn check_page_copies(pages: usize, pairs: &[[u32; 2]]) -> Result<()> {
    const OP: &str = "page_copy";
    let mut written: Vec<u32> = pairs.iter().map(|&[_, to]| to).collect();
    written.sort_unstable();
    if let Some(twice) = written.windows(2).find(|two| two[0] == two[1]) {
        return Err(Error::operator(OP, "pairs", "each page written once", format!("page {} twice", twice[0])));
    }
    for &[from, to] in pairs {
        if let Some(page) = [from, to].into_iter().find(|&page| page as usize >= pages) {
            return Err(Error::operator(OP, "pairs", format!("pages below {pages}"), page));
        }
        if written.binary_search(&from).is_ok() {
            return Err(Error::operator(OP, "pairs", "pages read or written", format!("page {from} both")));
        }
    }
    Ok(())
}

/// A device as the decoder sees it. Calls may return before the work is done; reads of results wait.
pub trait Ops: Send + Sync + Sized + 'static {
    /// Activations on the device.
    type Buffer: Send;
    /// A linear layer's weight `[n, k]`, with an optional bias `[n]`.
    type Matrix: Send + Sync;
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

    /// The dtype in which matrix products and the residual stream are kept when activations are `activation`.
    fn wide_dtype(&self, activation: DType) -> DType;

    /// A linear layer from row blocks `[n_i, k]` stacked along `n` (query, key and value projections, say), with one
    /// bias per block or none.
    fn matrix(&self, blocks: Vec<WeightView>, biases: Vec<WeightView>) -> Result<Self::Matrix>;

    fn vector(&self, weight: WeightView) -> Result<Self::Vector>;

    /// Room for `len` elements.
    fn buffer(&self, dtype: DType, len: usize) -> Result<Self::Buffer>;

    fn cache(&self, shape: CacheShape) -> Result<Self::Cache>;

    /// An empty step, to be filled by [`Ops::upload`].
    fn step(&self) -> Result<Self::Step>;

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

    /// Norms (where asked) and rotates queries and keys; writes keys and values to their slots in the cache.
    fn rotary_kv_write(&self, step: &Self::Step, args: RotaryKvWrite<'_, Self>) -> Result<()>;

    /// Causal softmax attention of each query over its sequence in the paged cache, grouped heads included.
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

    /// `out[t, i] = activation(gate_up[t, i]) * gate_up[t, width + i]`: `[rows, 2 · width] → [rows, width]`.
    fn act_mul(
        &self,
        rows: usize,
        width: usize,
        activation: Activation,
        gate_up: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<()>;

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
