//! The batch: the description of one step that is uploaded to the device.

use super::sampling::SampleRow;
use super::{AttentionMask, CacheShape, PageTable};
use crate::error::{Error, Result};

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

/// One step: a flat list of tokens of one or several sequences, prefill chunks and decodes alike, and which results are
/// needed.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Identifies everything but the contents of `tokens` and `samples`: batches with the same number differ in these
    /// alone. 0 is no number.
    pub layout: u64,
    /// Token ids, `[tokens]`.
    pub tokens: Vec<u32>,
    /// Where each token's key and value go: `page * page_size + position % page_size`, `[tokens]`.
    pub slots: Vec<u32>,
    /// The row of each token's rotary factors, `[tokens]`: its position, for the model's table; or the length of the
    /// table plus the token's index, for `rope`.
    pub rope_rows: Vec<u32>,
    /// Rotary factors that are not in the table, `[tokens, 2, rotary_dim / 2]`: cosines, then sines, already scaled.
    /// Empty where no token needs any.
    pub rope: Vec<f32>,
    pub spans: Vec<Span>,
    pub page_table: PageTable,
    /// Attention masks, `[tokens]`; empty where all are causal.
    pub masks: Vec<AttentionMask>,
    /// Tokens whose next-token logits are needed, as indices into the batch, ascending.
    pub logit_rows: Vec<u32>,
    /// How the token after each of `logit_rows` is sampled; empty where none is.
    pub samples: Vec<SampleRow>,
    /// The tokens after each of `logit_rows` whose log-probabilities are needed; empty where none is.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Checks that spans follow one another and cover all tokens, and that no two tokens share a slot.
    ///
    /// # Errors
    /// They do not, or fields do not belong together.
    pub(crate) fn check(&self) -> Result<()> {
        const OP: &str = "upload";
        let tokens = self.tokens.len();
        if !self.rope.len().is_multiple_of(tokens.max(1)) {
            let expected = format!("cosines and sines for {tokens} tokens");
            return Err(Error::operator(OP, "rope", expected, format!("{} factors", self.rope.len())));
        }
        for (field, len) in [("slots", self.slots.len()), ("rope_rows", self.rope_rows.len())] {
            if len != tokens {
                return Err(Error::operator(OP, field, format!("{tokens} entries"), len));
            }
        }
        let mut end = 0usize;
        for (i, span) in self.spans.iter().enumerate() {
            let next = span.start.checked_add(span.len);
            if span.start != end || span.len == 0 || span.kv_len < span.len || next.is_none_or(|next| next > tokens) {
                let expected = format!("tokens from {end}, at least one, no more than kv_len or {tokens} in all");
                return Err(Error::operator(OP, "spans", expected, format!("{span:?} as span {i}")));
            }
            if !self.masks.is_empty() {
                let Some(masks) = self.masks.get(span.start..span.start + span.len) else {
                    return Err(Error::operator(OP, "masks", format!("none or {tokens} entries"), self.masks.len()));
                };
                AttentionMask::check(OP, span.start, span.kv_len, masks)?;
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
    /// Whether any sequence uses tree attention.
    pub(crate) fn has_trees(&self) -> bool {
        self.masks.iter().any(|mask| matches!(mask, AttentionMask::Branch(_)))
    }

    /// Checks that tokens are in a vocabulary of `vocab`: a GPU would fault.
    ///
    /// # Errors
    /// One is not.
    #[cfg_attr(not(feature = "engine"), allow(dead_code, reason = "called by the decoder"))]
    pub(crate) fn check_tokens(&self, vocab: usize) -> Result<()> {
        check_below("tokens", &self.tokens, vocab)?;
        check_below("targets", &self.targets, vocab)
    }

    /// Checks that rotary factors are in a table of `table` rows or in `rope`.
    ///
    /// # Errors
    /// One is not; `rope` is of another shape.
    pub(crate) fn check_rope(&self, table: usize, rotary_dim: usize) -> Result<()> {
        let all = self.tokens.len() * rotary_dim;
        if !self.rope.is_empty() && self.rope.len() != all {
            let expected = format!("none or {all} factors");
            return Err(Error::operator("upload", "rope", expected, self.rope.len()));
        }
        let rows = if self.rope.is_empty() { 0 } else { self.tokens.len() };
        if rotary_dim == 0 { Ok(()) } else { check_below("rope_rows", &self.rope_rows, table + rows) }
    }

    /// Checks that slots and pages are in the cache.
    ///
    /// # Errors
    /// One is not there.
    #[cfg_attr(not(feature = "engine"), allow(dead_code, reason = "called by the decoder"))]
    pub(crate) fn check_places(&self, cache: &CacheShape) -> Result<()> {
        const OP: &str = "upload";
        check_below("slots", &self.slots, cache.pages * cache.page_size)?;
        if let Some(page) = self.page_table.highest().filter(|&page| page as usize >= cache.pages) {
            return Err(Error::operator(OP, "page_table", format!("below {}", cache.pages), page));
        }
        for (i, span) in self.spans.iter().enumerate() {
            let end = span.pages.checked_add(span.kv_len.div_ceil(cache.page_size));
            if end.is_none_or(|end| end > self.page_table.len()) {
                let expected = format!("pages within a table of {}", self.page_table.len());
                return Err(Error::operator(OP, "spans", expected, format!("{span:?} as span {i}")));
            }
        }
        Ok(())
    }
}

fn check_below(field: &'static str, ids: &[u32], limit: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= limit) {
        Some(id) => Err(Error::operator("upload", field, format!("below {limit}"), id)),
        None => Ok(()),
    }
}

/// The shape of an uploaded batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Rows of kernels over tokens: the batch's tokens and padding.
    pub tokens: usize,
    /// Rows of kernels over logits, with padding.
    pub logit_rows: usize,
    /// Steps with the same key do the same work on the same addresses, so that it can be recorded once and replayed.
    /// `None` where that gains nothing.
    pub recording: Option<RecordingKey>,
}

/// See [`StepShape::recording`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordingKey {
    /// The number of sequences, with padding.
    pub bucket: usize,
    /// Whether it reads [rotary factors of the batch](Batch::rope).
    pub has_rope: bool,
    /// Counts how often the step's addresses have changed: earlier recordings are invalid.
    pub generation: u64,
}
