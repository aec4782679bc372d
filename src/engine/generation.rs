//! One request on its way: an iterator of tokens.

use std::sync::Arc;
use std::time::Instant;

use crate::error::Result;
use crate::ops::SampleRow;
use crate::text::{DecodeStream, StopMatcher};

use super::Inner;
use super::pages::Sequence;
use super::request::{FinishReason, Resolved, Timings, Token, Usage};

/// Tokens as they are generated. Ends after the last one, or after an error. Dropping it gives its memory back.
///
/// Several generations of one engine may be open at once; each call of `next` does one step of its own.
pub struct Generation {
    engine: Arc<Inner>,
    sequence: Sequence,
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    max_tokens: usize,
    min_tokens: usize,
    ignore_eos: bool,
    sampling: Resolved,
    /// `None` where the checkpoint has no tokenizer: tokens then come without text.
    text: Option<(DecodeStream, StopMatcher)>,
    finish_reason: Option<FinishReason>,
    failed: bool,
    timings: Timings,
}

impl Generation {
    pub(super) fn new(
        engine: Arc<Inner>,
        prompt: Vec<u32>,
        max_tokens: usize,
        min_tokens: usize,
        ignore_eos: bool,
        sampling: Resolved,
        text: Option<(DecodeStream, StopMatcher)>,
    ) -> Self {
        Self {
            engine,
            sequence: Sequence::default(),
            prompt_tokens: prompt.len(),
            tokens: prompt,
            max_tokens,
            min_tokens,
            ignore_eos,
            sampling,
            text,
            finish_reason: None,
            failed: false,
            timings: Timings::default(),
        }
    }

    /// Why it ended; `None` while it goes on, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    pub fn usage(&self) -> Usage {
        Usage { prompt_tokens: self.prompt_tokens, completion_tokens: self.tokens.len() - self.prompt_tokens }
    }

    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// The prompt as the model sees it.
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.tokens[..self.prompt_tokens]
    }

    fn step(&mut self) -> Result<Token> {
        let started = Instant::now();
        let history = if self.sampling.repetition_penalty == 1.0 { Vec::new() } else { self.tokens.clone() };
        let may_end = self.ignore_eos || self.tokens.len() - self.prompt_tokens >= self.min_tokens;
        let row = SampleRow {
            temperature: self.sampling.temperature,
            top_k: self.sampling.top_k,
            top_p: self.sampling.top_p,
            min_p: self.sampling.min_p,
            repetition_penalty: self.sampling.repetition_penalty,
            history,
            banned: if may_end { Vec::new() } else { self.engine.generation_config.eos.clone() },
            prompt_len: self.prompt_tokens,
            seed: self.sampling.seed,
            position: self.tokens.len() as u64,
            ..SampleRow::GREEDY
        };
        let new = &self.tokens[self.sequence.len..];
        let sampled = self.engine.runner().extend(&mut self.sequence, new, row)?;
        let first = self.tokens.len() == self.prompt_tokens;
        self.tokens.push(sampled.token);
        let text = self.advance_text(sampled.token)?;
        let spent = started.elapsed().as_secs_f64();
        if first {
            self.timings.prefill_s = spent;
        } else {
            self.timings.decode_s += spent;
        }
        Ok(Token { id: sampled.token, text, logprob: sampled.logprob })
    }

    /// Decides whether this token is the last, and which text is certain now.
    fn advance_text(&mut self, token: u32) -> Result<String> {
        let ended = !self.ignore_eos && self.engine.generation_config.eos.contains(&token);
        let full = self.tokens.len() - self.prompt_tokens == self.max_tokens;
        let mut text = String::new();
        let mut stopped = false;
        if let Some((decoder, matcher)) = &mut self.text {
            let mut piece = if ended { String::new() } else { decoder.push(token)? };
            if ended || full {
                piece += &decoder.finish()?;
            }
            let matched = matcher.push(&piece);
            text = matched.text;
            stopped = matched.stopped;
            if (ended || full) && !stopped {
                text += &matcher.finish();
            }
        }
        if ended || stopped {
            self.finish_reason = Some(FinishReason::Stop);
        } else if full {
            self.finish_reason = Some(FinishReason::Length);
        }
        Ok(text)
    }
}

impl Iterator for Generation {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        if self.finish_reason.is_some() || self.failed {
            return None;
        }
        let token = self.step();
        self.failed = token.is_err();
        if self.finish_reason.is_some() || self.failed {
            self.engine.runner().pool.release(&mut self.sequence);
        }
        Some(token)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.engine.runner().pool.release(&mut self.sequence);
    }
}
