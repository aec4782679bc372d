//! Sampling rows: how the next token of each sequence is sampled.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::history::TokenHistory;
use super::mask::Mask;
use crate::error::{Error, Result};

/// How the next token of one row is sampled. The steps are, in this order: penalties, biases, the mask, temperature,
/// top-k, top-p, min-p, typical-p, the draw. As in `transformers`, each filter is applied to what those before it left.
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
    /// Keeps the tokens whose surprise `-ln p` is nearest to its mean, as many as reach this probability, and any that
    /// are as near as the last of them. 1 keeps all. (Meister, Pimentel, Wiher and Cotterell: Locally Typical Sampling,
    /// 2022.)
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens in `history`; 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every generated token; 0 does nothing.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time that it was generated; 0 does nothing.
    pub frequency_penalty: f32,
    /// Prompt and generated tokens so far; may be `None` where no penalty needs them.
    pub history: Option<TokenHistory>,
    /// Added to the logits of these tokens after the penalties; −∞ bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Allowed tokens; `None` allows all.
    pub mask: Option<Mask>,
    pub seed: u64,
    /// Position of the new token in its sequence. The draw is a function of `(seed, position)` alone.
    pub position: u64,
}

impl SampleRow {
    /// Greedy sampling without penalties, biases or mask.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        typical_p: 1.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        history: None,
        logit_bias: Vec::new(),
        mask: None,
        seed: 0,
        position: 0,
    };

    /// Waits for the mask.
    ///
    /// # Errors
    /// A field is out of its range, or not for a vocabulary of `vocab`.
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
        if !(self.typical_p > 0.0 && self.typical_p <= 1.0) {
            return wrong("typical_p", "above 0, at most 1", self.typical_p);
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
        let highest = self.history.as_ref().and_then(TokenHistory::highest);
        if let Some(token) = highest.filter(|&token| token as usize >= vocab) {
            return Err(Error::operator("sample", "history", format!("ids below {vocab}"), token));
        }
        let words = vocab.div_ceil(32);
        match self.mask.as_ref().map_or(0, |mask| mask.words().len()) {
            0 => Ok(()),
            found if found == words => Ok(()),
            found => Err(Error::operator("sample", "mask", format!("{words} words"), found)),
        }
    }

    /// Calls `visit` with each distinct token of the history and how often it was generated; with none where no penalty
    /// is set.
    pub(crate) fn visit_penalized(&self, visit: impl FnMut(u32, u32)) {
        let is_neutral =
            self.repetition_penalty == 1.0 && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0;
        if let Some(history) = self.history.as_ref().filter(|_| !is_neutral) {
            history.visit(visit);
        }
    }

    /// The random draw: a number in [0, 1) that depends on the seed and the position alone.
    pub(crate) fn uniform(&self) -> f64 {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&self.position.to_le_bytes());
        let bits = ChaCha8Rng::from_seed(key).next_u64() >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

/// Rows of logits that the host edits before tokens are sampled.
pub struct LogitEdits<'a> {
    /// Indices into the batch's `logit_rows`, ascending.
    pub rows: &'a [usize],
    /// Called for each of `rows`, in order, with its logits, `[vocab]`.
    pub edit: &'a mut dyn FnMut(usize, &mut [f32]),
}

/// A chosen token with its log-probability under the model, before temperature, penalties and filters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    pub token: u32,
    pub logprob: f32,
}
