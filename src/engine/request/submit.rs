//! Turns a [`Request`] into scheduler jobs.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::engine::Engine;
use crate::engine::sampling::{
    BadWords, Constraint, Detector, DryPenalty, Guide, NgramBan, Resolved, Rules, SequenceBias,
};
use crate::engine::scheduler::{NegativePrompt, Submission};
use crate::engine::step::{Command, Job, Kind, channel};
use crate::error::{Error, Result};
use crate::ops::TokenHistory;
use crate::text::{DecodeStream, StopMatcher};

use super::{Generation, Guidance, Prompt, Request};

impl Engine {
    /// Asks for `n` continuations of one prompt, which is computed once. They draw with seeds that follow one another,
    /// from the request's own.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate); `n` is 0, or more than run at a time.
    pub fn generate_several(&self, request: Request, n: usize) -> Result<Vec<Generation>> {
        let at = Instant::now();
        let (vocab, context) = (self.0.spec.vocab_size, self.0.report.context);
        let mut sampling = request.sampling.resolve(&self.0.generation_config, vocab, context)?;
        self.suppress(&mut sampling);
        let prompt = self.prompt("prompt", request.prompt)?;
        let limit = self.0.report.max_sequences;
        if !(1..=limit).contains(&n) {
            return Err(Error::request("n", format!("1 to {limit}, as many as run at a time"), n));
        }
        if request.max_tokens == Some(0) {
            return Err(Error::request("max_tokens", "at least 1", 0));
        }
        let stop_token_ids = self.token_ids("stop_token_ids", request.stop_token_ids)?;
        let guidance = request.guidance.map(|guidance| self.guidance(guidance, &prompt)).transpose()?.flatten();
        let (scale, negative) = guidance.unzip();
        let longest = negative.as_ref().map_or(0, Vec::len).max(prompt.len());
        let defaults = &self.0.generation_config;
        let asked = request.max_tokens.or(defaults.max_tokens(prompt.len())).unwrap_or(usize::MAX);
        if asked == 0 {
            let expected = format!(
                "fewer than {} tokens, the max_length of generation_config.json, or a max_tokens beside it",
                defaults.max_length.unwrap_or(0)
            );
            return Err(Error::request("prompt", expected, format_args!("{} tokens", prompt.len())));
        }
        // The last token is never fed back, so it needs no room of its own.
        let max_tokens = asked.min(context + 1 - longest);
        let min_tokens = match request.min_tokens {
            None => defaults.min_tokens(prompt.len()).min(max_tokens),
            Some(tokens) if tokens <= max_tokens => tokens,
            Some(tokens) => {
                let expected = format!("at most {max_tokens}, as many as may be generated");
                return Err(Error::request("min_tokens", expected, tokens));
            }
        };
        let stop = if request.stop.is_empty() { &defaults.stop_strings } else { &request.stop };
        let text = match &self.0.tokenizer {
            None if stop.is_empty() => None,
            _ => Some(self.text(&prompt, stop, request.constraint.is_some())?),
        };
        let detector =
            request.repetition_detection.map(|detection| detection.check().map(|()| Detector::new(detection)));
        let detector = detector.transpose()?;
        let bad_words = Arc::new(BadWords::new(&request.sampling, vocab, || self.tokenizer())?);
        let sequence_bias = Arc::new(SequenceBias::new(defaults, vocab));
        let dry = request.sampling.dry.as_ref().filter(|dry| dry.multiplier > 0.0);
        // Without a tokenizer there are no texts that could break anything.
        let dry = dry.map(|dry| DryPenalty::new(dry, self.0.tokenizer.as_ref(), &prompt)).transpose()?;
        let ngram = Some(sampling.no_repeat_ngram_size).filter(|&ngram| ngram > 0);
        let ngram_ban = ngram.map(|ngram| NgramBan::new(ngram, &prompt));
        let mut guide = request.constraint.map(|constraint| self.guide(&constraint, &sampling)).transpose()?;
        let is_known = |token: &&u32| (**token as usize) < self.0.spec.vocab_size;
        let eos = defaults.eos.iter().filter(|_| !request.ignore_eos);
        let end_tokens: Vec<u32> = eos.chain(&stop_token_ids).filter(is_known).copied().collect();
        let not_first: Vec<u32> = defaults.begin_suppress_tokens.iter().filter(is_known).copied().collect();
        // One beyond all time is none.
        let deadline = request.deadline.and_then(|after| at.checked_add(after));
        let (mut jobs, mut generations) = (Vec::new(), Vec::new());
        for i in 0..n {
            let key = self.0.requests.fetch_add(1, Ordering::Relaxed);
            let (consumer, events) = channel();
            let more = i + 1 < n;
            let rules = Box::new(Rules {
                guide: if more { guide.as_ref().map(Guide::fork) } else { guide.take() },
                bad_words: Arc::clone(&bad_words),
                sequence_bias: Arc::clone(&sequence_bias),
                dry: dry.clone(),
                history: sampling.is_penalized().then(|| TokenHistory::new(&prompt, &[])),
                ngram_ban: ngram_ban.clone(),
                detector: detector.clone(),
                sampling: Resolved { seed: sampling.seed.wrapping_add(i as u64), ..sampling.clone() },
                max_tokens,
                min_tokens,
                end_tokens: end_tokens.clone(),
                not_first: not_first.clone(),
                guidance: scale,
                processors: request.logits_processors.clone(),
            });
            jobs.push(Job { key, kind: Kind::Generate { rules, consumer } });
            generations.push(Generation::new(Arc::clone(&self.0), key, events, prompt.clone(), text.clone()));
        }
        // A negative goes with one sequence: each has its own then, whose prompts the cache has.
        let several = if negative.is_some() { jobs.into_iter().map(|job| vec![job]).collect() } else { vec![jobs] };
        // Without its deadline, which is of the step loop's clock: see `Command::Submit`.
        let submission = Submission {
            salt: self.salt(request.cache_salt, prompt.len(), max_tokens),
            negative: negative
                .map(|prompt| NegativePrompt { salt: self.salt(request.cache_salt, prompt.len(), max_tokens), prompt }),
            priority: request.priority,
            ..Submission::new(prompt, max_tokens)
        };
        for jobs in several {
            let submission = Submission { branches: jobs.len(), ..submission.clone() };
            self.0.send(Command::Submit { at, deadline, submission, jobs });
        }
        Ok(generations)
    }

    /// Bans the checkpoint's `suppress_tokens`, but for those to which the request gives a bias of its own.
    fn suppress(&self, sampling: &mut Resolved) {
        let own: HashSet<u32> = sampling.logit_bias.iter().map(|(token, _)| *token).collect();
        let suppressed = self.0.generation_config.suppress_tokens.iter();
        let suppressed = suppressed.filter(|token| (**token as usize) < self.0.spec.vocab_size && !own.contains(token));
        sampling.logit_bias.extend(suppressed.map(|&token| (token, f32::NEG_INFINITY)));
    }

    /// Decodes what follows the prompt, and looks for stop texts in it.
    fn text(&self, prompt: &[u32], stop: &[String], constrained: bool) -> Result<(DecodeStream, StopMatcher)> {
        let tokenizer = self.tokenizer()?;
        let stream = tokenizer.decode_stream(true).continuing(prompt)?;
        // A constraint is told what tokens are within a text.
        let stream = if constrained { stream.within_text()? } else { stream };
        Ok((stream, StopMatcher::new(stop)?.with_special(|text| tokenizer.spells_special(text))))
    }

    fn token_ids(&self, field: &str, ids: Vec<u32>) -> Result<Vec<u32>> {
        let vocab = self.0.spec.vocab_size;
        match ids.iter().find(|id| **id as usize >= vocab) {
            Some(id) => Err(Error::request(field, format!("token ids below {vocab}, the vocabulary's size"), id)),
            None => Ok(ids),
        }
    }

    /// Scale and tokens of a guidance that changes anything.
    fn guidance(&self, guidance: Guidance, prompt: &[u32]) -> Result<Option<(f32, Vec<u32>)>> {
        let Guidance { scale, negative_prompt } = guidance;
        if !(scale.is_finite() && scale >= 0.0) {
            return Err(Error::request("guidance_scale", "a number from 0 up", scale));
        }
        if self.0.report.max_sequences < 2 {
            return Err(Error::request("guidance_scale", "an engine of two sequences at a time", "one of one"));
        }
        let negative = match negative_prompt {
            Some(prompt) => self.prompt("negative_prompt", prompt)?,
            None => prompt.last().copied().into_iter().collect(),
        };
        Ok((scale != 1.0).then_some((scale, negative)))
    }

    fn guide(&self, constraint: &Constraint, sampling: &Resolved) -> Result<Guide> {
        let state = self.constraint(constraint)?;
        // A caller's own code may be slow: it does not hold up the grammars of others.
        let masks = if matches!(constraint, Constraint::Custom(_)) { None } else { Some(self.0.masks.clone()) };
        Guide::new(state, self.0.spec.vocab_size, sampling.banned().collect(), masks)
    }

    /// Keeps prompts apart in the cache that have not the same keys for the same tokens.
    pub(in crate::engine) fn salt(&self, of_request: u64, prompt_len: usize, max_tokens: usize) -> u64 {
        let stretch = self.0.spec.rope.stretch(prompt_len, prompt_len.saturating_add(max_tokens));
        let mut hasher = DefaultHasher::new();
        (of_request, stretch).hash(&mut hasher);
        hasher.finish()
    }

    /// The tokens of a request's `field`, checked.
    fn prompt(&self, field: &str, prompt: Prompt) -> Result<Vec<u32>> {
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) if text.is_empty() => return Err(Error::request(field, "a text", "an empty one")),
            Prompt::Text(text) => self.tokenizer()?.encode(&text, true)?,
            Prompt::Messages(messages) => {
                let text = self.chat_template()?.render(&messages, true, &Default::default())?;
                // Templates write the special tokens themselves.
                self.tokenizer()?.encode(&text, false)?
            }
        };
        self.check_tokens(field, &tokens)?;
        Ok(tokens)
    }

    pub(in crate::engine) fn check_tokens(&self, field: &str, tokens: &[u32]) -> Result<()> {
        let context = self.0.report.context;
        if tokens.is_empty() {
            return Err(Error::request(field, "at least one token", "none"));
        }
        if tokens.len() > context {
            let expected = format_args!("at most {context} tokens, the context").to_string();
            return Err(Error::request(field, expected, format_args!("{} tokens", tokens.len())));
        }
        let vocab = self.0.spec.vocab_size;
        match tokens.iter().position(|&token| token as usize >= vocab) {
            Some(at) => Err(Error::request(
                format!("{field}: token {at}"),
                format_args!("an id below {vocab}, the vocabulary's size"),
                tokens[at],
            )),
            None => Ok(()),
        }
    }
}
