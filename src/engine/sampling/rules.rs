//! How one sequence's tokens are chosen, and when it ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::scheduler::View;
use crate::error::Result;
use crate::ops::SampleRow;

use super::repetition::ban;
use super::{Detector, FinishReason, Guide, LogitsProcessor, Repetition, Resolved, Stretches};

pub struct Rules {
    pub sampling: Resolved,
    pub repetition: Arc<Repetition>,
    pub stretches: Option<Stretches>,
    pub detector: Option<Detector>,
    pub max_tokens: usize,
    pub min_tokens: usize,
    /// Tokens that end it.
    pub end_tokens: Vec<u32>,
    /// Tokens that are not the first.
    pub not_first: Vec<u32>,
    pub guide: Option<Guide>,
    /// The scale of the contrast that the sequence has.
    pub guidance: Option<f32>,
    pub processors: Vec<LogitsProcessor>,
}

impl Rules {
    /// How the token after those of `view` is chosen.
    pub fn row(&self, view: View<'_>) -> SampleRow {
        let Resolved { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        let penalized = repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0;
        SampleRow {
            temperature: self.sampling.temperature,
            top_k: self.sampling.top_k,
            top_p: self.sampling.top_p,
            min_p: self.sampling.min_p,
            typical_p: self.sampling.typical_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            history: if penalized { view.tokens.to_vec() } else { Vec::new() },
            prompt_len: view.prompt_len,
            logit_bias: self.biases(view),
            mask: self.guide.as_ref().map(Guide::mask),
            seed: self.sampling.seed,
            position: view.tokens.len() as u64,
        }
    }

    fn biases(&self, view: View<'_>) -> Vec<(u32, f32)> {
        let generated = view.tokens.len() - view.prompt_len;
        let banned =
            [(generated < self.min_tokens).then_some(&self.end_tokens), (generated == 0).then_some(&self.not_first)];
        let mut banned = banned.into_iter().flatten().flatten().peekable();
        if banned.peek().is_none() && self.repetition.is_none() && self.stretches.is_none() {
            return self.sampling.logit_bias.clone();
        }
        let mut biases = BTreeMap::new();
        for &(token, bias) in &self.sampling.logit_bias {
            *biases.entry(token).or_default() += bias;
        }
        self.repetition.apply(view.tokens, view.prompt_len, &mut biases);
        if let Some(stretches) = &self.stretches {
            stretches.followers().iter().for_each(|&token| ban(&mut biases, token));
        }
        banned.for_each(|&token| ban(&mut biases, token));
        biases.into_iter().collect()
    }

    pub fn is_end(&self, token: u32) -> bool {
        self.end_tokens.contains(&token)
    }

    /// Takes the token after those that were `generated` so far, and says why the sequence ends with it, if it does.
    ///
    /// # Errors
    /// The constraint does not go on.
    pub fn take(&mut self, token: u32, generated: &[u32]) -> Result<Option<FinishReason>> {
        let fulfilled = match &mut self.guide {
            Some(guide) => guide.advance(token)?,
            None => false,
        };
        self.stretches.iter_mut().for_each(|stretches| stretches.push(token));
        let circles = self.detector.as_mut().is_some_and(|detector| detector.take(generated, token));
        let count = generated.len() + 1;
        Ok(if fulfilled || self.is_end(token) {
            Some(FinishReason::Stop)
        } else if count == self.max_tokens {
            Some(FinishReason::Length)
        } else {
            (circles && count >= self.min_tokens).then_some(FinishReason::Repetition)
        })
    }
}
