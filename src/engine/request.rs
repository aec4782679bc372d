//! What callers ask for, and what they get back.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::model::GenerationConfig;
use crate::text::Message;

/// What to continue.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Prompt {
    /// Plain text; the tokenizer adds what it adds in front (a begin token, for some models).
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
    /// A conversation, rendered by the model's chat template.
    Messages(Vec<Message>),
}

/// A generation request. Everything but the prompt has a default.
///
/// ```
/// use burrstone::Request;
/// let request = Request::text("In the beginning").max_tokens(32).temperature(0.8).seed(7).stop("\n");
/// # assert_eq!(request.stop, ["\n"]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub prompt: Prompt,
    pub sampling: Sampling,
    /// Tokens to generate at most; `None` goes on to the end of the context.
    pub max_tokens: Option<usize>,
    /// Until so many tokens are generated, the model's end tokens may not be chosen; a stop text still ends it.
    pub min_tokens: usize,
    /// Texts that end the generation; they are not part of the output.
    pub stop: Vec<String>,
    /// Go on past the model's end tokens.
    pub ignore_eos: bool,
    /// Requests of a higher one are begun first; waiting makes up for a lower one in time.
    pub priority: i32,
    /// Ends it so long after it was asked for, with what was generated until then.
    pub deadline: Option<Duration>,
    /// What is cached of prompts is shared among requests of one salt: give each tenant its own.
    pub cache_salt: u64,
}

/// How tokens are chosen. `None` takes what the checkpoint's `generation_config.json` says, and where that is silent
/// too, greedy choice without filters. A filter (`top_p`, `top_k`, `min_p`) without a temperature samples at 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token.
    pub temperature: Option<f32>,
    /// Keeps the smallest set of most likely tokens that reaches this probability, in (0, 1].
    pub top_p: Option<f32>,
    /// Keeps this many most likely tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Drops tokens less likely than this fraction of the most likely one, in [0, 1].
    pub min_p: Option<f32>,
    /// Makes tokens that occurred before less likely; 1 does nothing.
    pub repetition_penalty: Option<f32>,
    /// Is subtracted once from the logit of every token that was generated, from -2 to 2; 0 does nothing.
    pub presence_penalty: f32,
    /// Is subtracted from the logit of a token as often as it was generated, from -2 to 2; 0 does nothing.
    pub frequency_penalty: f32,
    /// Token ids and what is added to their logits, after the penalties; -∞ bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Draws are a function of the seed and the position; `None` takes one at random.
    pub seed: Option<u64>,
}

impl Request {
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Prompt::Text(text.into()))
    }

    pub fn tokens(tokens: Vec<u32>) -> Self {
        Self::new(Prompt::Tokens(tokens))
    }

    pub fn messages(messages: Vec<Message>) -> Self {
        Self::new(Prompt::Messages(messages))
    }

    fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            sampling: Sampling::default(),
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            ignore_eos: false,
            priority: 0,
            deadline: None,
            cache_salt: 0,
        }
    }

    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    pub fn min_tokens(mut self, tokens: usize) -> Self {
        self.min_tokens = tokens;
        self
    }

    pub fn temperature(mut self, temperature: f32) -> Self {
        self.sampling.temperature = Some(temperature);
        self
    }

    pub fn top_p(mut self, top_p: f32) -> Self {
        self.sampling.top_p = Some(top_p);
        self
    }

    pub fn top_k(mut self, top_k: usize) -> Self {
        self.sampling.top_k = Some(top_k);
        self
    }

    pub fn min_p(mut self, min_p: f32) -> Self {
        self.sampling.min_p = Some(min_p);
        self
    }

    pub fn repetition_penalty(mut self, penalty: f32) -> Self {
        self.sampling.repetition_penalty = Some(penalty);
        self
    }

    pub fn presence_penalty(mut self, penalty: f32) -> Self {
        self.sampling.presence_penalty = penalty;
        self
    }

    pub fn frequency_penalty(mut self, penalty: f32) -> Self {
        self.sampling.frequency_penalty = penalty;
        self
    }

    /// Adds `bias` to a token's logit.
    pub fn logit_bias(mut self, token: u32, bias: f32) -> Self {
        self.sampling.logit_bias.push((token, bias));
        self
    }

    pub fn seed(mut self, seed: u64) -> Self {
        self.sampling.seed = Some(seed);
        self
    }

    /// Adds a text that ends the generation.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }

    pub fn ignore_eos(mut self, ignore: bool) -> Self {
        self.ignore_eos = ignore;
        self
    }

    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    pub fn cache_salt(mut self, salt: u64) -> Self {
        self.cache_salt = salt;
        self
    }
}

/// [`Sampling`] with every question answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resolved {
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: usize,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
}

impl Sampling {
    /// For a vocabulary of so many tokens.
    ///
    /// # Errors
    /// A value outside its range.
    pub(super) fn resolve(&self, defaults: &GenerationConfig, vocab: usize) -> Result<Resolved> {
        let sampled_by_default = defaults.do_sample == Some(true);
        let filtered = self.top_p.is_some() || self.top_k.is_some() || self.min_p.is_some();
        let temperature = match self.temperature {
            Some(temperature) => temperature,
            None if sampled_by_default => defaults.temperature.unwrap_or(1.0),
            None if filtered => 1.0,
            None => 0.0,
        };
        // A checkpoint that says not to sample has no opinion on how to.
        let default = |value: Option<f32>| value.filter(|_| sampled_by_default);
        let resolved = Resolved {
            temperature,
            top_p: self.top_p.or(default(defaults.top_p)).unwrap_or(1.0),
            top_k: self.top_k.or(defaults.top_k.filter(|_| sampled_by_default)).unwrap_or(0),
            min_p: self.min_p.or(default(defaults.min_p)).unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: match self.seed {
                Some(seed) => seed,
                None => getrandom::u64()
                    .map_err(|cause| Error::request("seed", "a number, as the system has none at random", cause))?,
            },
        };
        let check = |field: &str, value: f32, good: bool, expected: &str| {
            if good { Ok(()) } else { Err(Error::request(field, expected, value)) }
        };
        let r = &resolved;
        check("temperature", r.temperature, r.temperature.is_finite() && r.temperature >= 0.0, "a number from 0 up")?;
        check("top_p", r.top_p, r.top_p > 0.0 && r.top_p <= 1.0, "a number above 0, at most 1")?;
        check("min_p", r.min_p, (0.0..=1.0).contains(&r.min_p), "a number from 0 to 1")?;
        let penalty = r.repetition_penalty;
        check("repetition_penalty", penalty, penalty.is_finite() && penalty > 0.0, "a number above 0")?;
        for (field, penalty) in [("presence_penalty", r.presence_penalty), ("frequency_penalty", r.frequency_penalty)] {
            check(field, penalty, (-2.0..=2.0).contains(&penalty), "a number from -2 to 2")?;
        }
        for &(token, bias) in &r.logit_bias {
            check("logit_bias", bias, bias < f32::INFINITY, "finite numbers or -infinity")?;
            if token as usize >= vocab {
                return Err(Error::request("logit_bias", format!("token ids below {vocab}"), token));
            }
        }
        Ok(resolved)
    }
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    /// Text that became certain with this token: empty while a character or a stop text is still open.
    pub text: String,
    /// Natural logarithm of the model's probability for this token, before temperature, penalties and filters.
    pub logprob: f32,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// An end token or a stop text.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// Its deadline passed.
    Deadline,
}

impl std::fmt::Display for FinishReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Deadline => "deadline",
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
}

/// Seconds since the request was begun, the time before that in the queue not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Up to and including the first token.
    pub prefill_s: f64,
    /// All later tokens.
    pub decode_s: f64,
}

/// How likely a text is.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    pub token_ids: Vec<u32>,
    /// Log-probability of each token given those before it; `None` for the first.
    pub logprobs: Vec<Option<f32>>,
    /// `exp(-mean logprob)`; `None` for a single token, which nothing predicts.
    pub perplexity: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: usize = 100;

    fn sampled() -> GenerationConfig {
        GenerationConfig {
            do_sample: Some(true),
            temperature: Some(0.6),
            top_p: Some(0.9),
            top_k: Some(20),
            ..GenerationConfig::default()
        }
    }

    #[test]
    fn the_checkpoint_decides_where_the_caller_does_not() {
        let r = Sampling::default().resolve(&sampled(), VOCAB).unwrap();
        assert_eq!((r.temperature, r.top_p, r.top_k), (0.6, 0.9, 20));
        let r = Sampling { top_k: Some(0), temperature: Some(0.0), ..Sampling::default() }
            .resolve(&sampled(), VOCAB)
            .unwrap();
        assert_eq!((r.temperature, r.top_p, r.top_k), (0.0, 0.9, 0));
    }

    #[test]
    fn greedy_unless_someone_asks_to_sample() {
        let silent = GenerationConfig { do_sample: Some(false), ..sampled() };
        let r = Sampling::default().resolve(&silent, VOCAB).unwrap();
        assert_eq!((r.temperature, r.top_p, r.top_k), (0.0, 1.0, 0));
        let r = Sampling { top_p: Some(0.5), ..Sampling::default() }.resolve(&silent, VOCAB).unwrap();
        assert_eq!((r.temperature, r.top_p), (1.0, 0.5));
    }

    #[test]
    fn seeds_are_taken_or_drawn() {
        let given = Sampling { seed: Some(7), ..Sampling::default() };
        assert_eq!(given.resolve(&sampled(), VOCAB).unwrap().seed, 7);
        let draw = || Sampling::default().resolve(&sampled(), VOCAB).unwrap().seed;
        assert_ne!(draw(), draw());
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let cases = [
            (Sampling { temperature: Some(-1.0), ..Sampling::default() }, "temperature"),
            (Sampling { temperature: Some(f32::NAN), ..Sampling::default() }, "temperature"),
            (Sampling { top_p: Some(0.0), ..Sampling::default() }, "top_p"),
            (Sampling { top_p: Some(1.1), ..Sampling::default() }, "top_p"),
            (Sampling { min_p: Some(2.0), ..Sampling::default() }, "min_p"),
            (Sampling { repetition_penalty: Some(0.0), ..Sampling::default() }, "repetition_penalty"),
            (Sampling { presence_penalty: 2.5, ..Sampling::default() }, "presence_penalty"),
            (Sampling { frequency_penalty: f32::NAN, ..Sampling::default() }, "frequency_penalty"),
            (Sampling { logit_bias: vec![(3, f32::NAN)], ..Sampling::default() }, "logit_bias"),
            (Sampling { logit_bias: vec![(VOCAB as u32, 1.0)], ..Sampling::default() }, "logit_bias"),
        ];
        for (sampling, field) in cases {
            let error = sampling.resolve(&sampled(), VOCAB).unwrap_err();
            assert!(error.is_input() && error.to_string().starts_with(field), "{error}");
        }
    }
}
