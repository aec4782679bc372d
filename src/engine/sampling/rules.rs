//! The sampling state of one sequence: how its next token is chosen, and when it ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::engine::scheduler::View;
use crate::error::Result;
use crate::ops::{Mask, SampleRow, TokenHistory};

use super::repetition::ban;
use super::{BadWords, Detector, DryPenalty, FinishReason, Guide, LogitsProcessor, NgramBan, Resolved, SequenceBias};

pub struct Rules {
    pub sampling: Resolved,
    pub bad_words: Arc<BadWords>,
    pub sequence_bias: Arc<SequenceBias>,
    pub dry: Option<DryPenalty>,
    /// `None` where no penalty needs it.
    pub history: Option<TokenHistory>,
    pub ngram_ban: Option<NgramBan>,
    pub detector: Option<Detector>,
    pub max_tokens: usize,
    pub min_tokens: usize,
    /// End tokens, within the vocabulary.
    pub end_tokens: Vec<u32>,
    /// Tokens that may not come first.
    pub not_first: Vec<u32>,
    pub guide: Option<Guide>,
    /// The guidance scale, where the sequence has a negative prompt.
    pub guidance: Option<f32>,
    pub processors: Vec<LogitsProcessor>,
}

impl Rules {
    /// The sampling row of the token after those of `view`.
    pub fn row(&self, view: View<'_>) -> SampleRow {
        SampleRow {
            temperature: self.sampling.temperature,
            top_k: self.sampling.top_k,
            top_p: self.sampling.top_p,
            min_p: self.sampling.min_p,
            typical_p: self.sampling.typical_p,
            repetition_penalty: self.sampling.repetition_penalty,
            presence_penalty: self.sampling.presence_penalty,
            frequency_penalty: self.sampling.frequency_penalty,
            history: self.history.clone(),
            logit_bias: self.biases(view),
            mask: self.mask().cloned(),
            seed: self.sampling.seed,
            position: view.tokens.len() as u64,
        }
    }

    /// The mask of the next token, where the sequence has a constraint.
    pub fn mask(&self) -> Option<&Mask> {
        self.guide.as_ref().map(Guide::mask)
    }

    fn biases(&self, view: View<'_>) -> Vec<(u32, f32)> {
        let generated = view.tokens.len() - view.prompt_len;
        let banned =
            [(generated < self.min_tokens).then_some(&self.end_tokens), (generated == 0).then_some(&self.not_first)];
        let mut banned = banned.into_iter().flatten().flatten().peekable();
        let stateless = self.bad_words.is_empty() && self.sequence_bias.is_empty();
        if banned.peek().is_none() && stateless && self.dry.is_none() && self.ngram_ban.is_none() {
            return self.sampling.logit_bias.clone();
        }
        let mut biases = BTreeMap::new();
        for &(token, bias) in &self.sampling.logit_bias {
            *biases.entry(token).or_default() += bias;
        }
        if let Some(dry) = &self.dry {
            dry.apply(view.tokens, &mut biases);
        }
        self.sequence_bias.apply(view.tokens, &mut biases);
        self.bad_words.apply(view.tokens, view.prompt_len, &mut biases);
        if let Some(ngram_ban) = &self.ngram_ban {
            ngram_ban.banned().iter().for_each(|&token| ban(&mut biases, token));
        }
        banned.for_each(|&token| ban(&mut biases, token));
        biases.into_iter().collect()
    }

    pub fn is_end(&self, token: u32) -> bool {
        self.end_tokens.contains(&token)
    }

    /// Adds the token after those that were `generated` so far. Returns why the sequence ends with it, if it does; the
    /// constraint's part is known later, see [`advanced`](Self::advanced).
    ///
    /// # Errors
    /// The constraint cannot be run.
    pub fn take(&mut self, token: u32, generated: &[u32]) -> Result<Option<FinishReason>> {
        if let Some(guide) = &mut self.guide {
            guide.advance(token)?;
        }
        self.history.iter().for_each(|history| history.push(token));
        self.dry.iter_mut().for_each(|dry| dry.push(token));
        self.ngram_ban.iter_mut().for_each(|ngram_ban| ngram_ban.push(token));
        let circles = self.detector.as_mut().is_some_and(|detector| detector.take(generated, token));
        let count = generated.len() + 1;
        Ok(if self.is_end(token) {
            Some(FinishReason::Stop)
        } else if count == self.max_tokens {
            Some(FinishReason::Length)
        } else {
            (circles && count >= self.min_tokens).then_some(FinishReason::Repetition)
        })
    }

    /// Whether the constraint ends the sequence with the token that was taken last. `None` where that is not known
    /// before the deadline.
    ///
    /// # Errors
    /// The constraint has no mask for the token, or does not go on after it.
    pub fn advanced(&mut self, deadline: Instant) -> Option<Result<bool>> {
        self.guide.as_mut().map_or(Some(Ok(false)), |guide| guide.advanced(deadline))
    }
}
