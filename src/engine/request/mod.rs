//! Requests and what they return: prompts, options, generated tokens, scores.

mod generation;
mod submit;

use std::time::Duration;

use crate::error::Result;
use crate::text::Message;

use super::sampling::{Constraint, Dry, LogitsContext, LogitsProcessor, RepetitionDetection, Sampling};

pub use generation::{Generation, TokenStream};

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
    /// Tokens to generate at most; `None` takes the checkpoint's limit, or else the end of the context.
    pub max_tokens: Option<usize>,
    /// Until so many tokens are generated, end tokens and stop tokens are not chosen; a stop text still ends it, and so
    /// does a constraint after which only they may come. `None` takes the checkpoint's minimum, 0 where it has none.
    pub min_tokens: Option<usize>,
    /// Texts that end the generation; they are not part of the output. One that spells a special token, which leaves no
    /// text, matches that token. Without any, those of the checkpoint's `generation_config.json`.
    pub stop: Vec<String>,
    /// Tokens that end the generation, besides the model's end tokens; they are not part of the text.
    pub stop_token_ids: Vec<u32>,
    pub repetition_detection: Option<RepetitionDetection>,
    /// What the text must look like. What ends it may be an end token even where those are ignored.
    pub constraint: Option<Constraint>,
    pub guidance: Option<Guidance>,
    /// In this order.
    pub logits_processors: Vec<LogitsProcessor>,
    /// Go on past the model's end tokens, though not past `stop_token_ids`.
    pub ignore_eos: bool,
    /// Requests of a higher one are begun first; waiting makes up for a lower one in time.
    pub priority: i32,
    /// Ends it so long after it was asked for, with what was generated until then.
    pub deadline: Option<Duration>,
    /// What is cached of prompts is shared among requests of one salt: give each tenant its own.
    pub cache_salt: u64,
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
            min_tokens: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            repetition_detection: None,
            constraint: None,
            guidance: None,
            logits_processors: Vec::new(),
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
        self.min_tokens = Some(tokens);
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

    pub fn typical_p(mut self, typical_p: f32) -> Self {
        self.sampling.typical_p = Some(typical_p);
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

    pub fn no_repeat_ngram_size(mut self, tokens: usize) -> Self {
        self.sampling.no_repeat_ngram_size = Some(tokens);
        self
    }

    pub fn dry(mut self, dry: Dry) -> Self {
        self.sampling.dry = Some(dry);
        self
    }

    /// Adds a text that is not generated.
    pub fn bad_word(mut self, text: impl Into<String>) -> Self {
        self.sampling.bad_words.push(text.into());
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

    /// Adds a token that ends the generation.
    pub fn stop_token(mut self, id: u32) -> Self {
        self.stop_token_ids.push(id);
        self
    }

    pub fn repetition_detection(mut self, detection: RepetitionDetection) -> Self {
        self.repetition_detection = Some(detection);
        self
    }

    pub fn constraint(mut self, constraint: Constraint) -> Self {
        self.constraint = Some(constraint);
        self
    }

    pub fn guidance(mut self, guidance: Guidance) -> Self {
        self.guidance = Some(guidance);
        self
    }

    /// Adds a function that changes logits: see [`LogitsProcessor`].
    pub fn logits_processor(
        mut self,
        process: impl Fn(LogitsContext<'_>, &mut [f32]) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.logits_processors.push(LogitsProcessor::new(process));
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

/// Classifier-free guidance: away from what another prompt would be continued with. With `p` the model's
/// log-probabilities after the prompt, and `q` those after the negative prompt and the same generated tokens, tokens are
/// chosen by `q + scale · (p - q)`. (Sanchez, Fan, Spangher, Levi, Ammanamanchi and Biderman: Stay on topic with
/// Classifier-Free Guidance, 2023.)
///
/// Such a request computes both, and counts as two where sequences are counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    /// From 0 up; 1 changes nothing, more keeps away from the negative prompt.
    pub scale: f32,
    /// `None` for the prompt's last token alone.
    pub negative_prompt: Option<Prompt>,
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
