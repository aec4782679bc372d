//! Bodies of requests, and the engine's requests that they ask for.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use burrstone::text::Message;
use burrstone::{Constraint, Dry, Guidance, Prompt, RepetitionDetection, Request, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::constraint::{ResponseFormat, Schema, StructuredOutputs, one};
use super::{Endpoint, neutral, refused};

/// What a body asks for.
pub struct Asked {
    pub prompts: Vec<Prompt>,
    /// Of each prompt, in its place.
    pub request: Request,
    /// Continuations of each prompt.
    pub n: usize,
    /// Whether the answer has the log-probabilities of its tokens.
    pub logprobs: bool,
    /// Whether the answer begins with the prompt.
    pub echo: bool,
    /// Whether the answer is the prompt alone.
    pub only_echo: bool,
}

/// The body of either endpoint.
#[derive(Deserialize)]
struct Body {
    /// Of chat completions.
    messages: Option<Vec<Turn>>,
    /// Of completions.
    prompt: Option<Prompts>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    min_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    /// -1 keeps all, as 0 does.
    top_k: Option<i64>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    no_repeat_ngram_size: Option<usize>,
    /// 0 by default, which does nothing.
    dry_multiplier: Option<f32>,
    dry_base: Option<f32>,
    dry_allowed_length: Option<usize>,
    dry_penalty_last_n: Option<usize>,
    dry_sequence_breakers: Option<Vec<String>>,
    bad_words: Option<Vec<String>>,
    /// By token id.
    logit_bias: Option<BTreeMap<u32, f32>>,
    /// OpenAI's may be negative.
    seed: Option<i128>,
    n: Option<usize>,
    best_of: Option<usize>,
    stop: Option<Stop>,
    stop_token_ids: Option<Vec<u32>>,
    logprobs: Option<Value>,
    top_logprobs: Option<Value>,
    echo: Option<bool>,
    add_special_tokens: Option<bool>,
    cache_salt: Option<String>,
    repetition_detection: Option<Detection>,
    response_format: Option<ResponseFormat>,
    structured_outputs: Option<StructuredOutputs>,
    guided_json: Option<Schema>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    guidance_scale: Option<f32>,
    negative_prompt: Option<Text>,
    ignore_eos: Option<bool>,
    priority: Option<i32>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: Content,
    name: Option<String>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or a list of text parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    _kind: PartKind,
    text: String,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PartKind {
    Text,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or a list of token ids")]
enum Text {
    Text(String),
    Tokens(Vec<u32>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text, a list of token ids, or a list of such prompts")]
enum Prompts {
    One(Text),
    Several(Vec<Text>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// As vLLM has it: a largest size of 0 finds nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Detection {
    #[serde(default)]
    max_pattern_size: usize,
    #[serde(default)]
    min_pattern_size: usize,
    #[serde(default)]
    min_count: usize,
}

impl Asked {
    /// # Errors
    /// The body is not a request of this endpoint, or has a field that would change the answer and is not supported.
    pub fn read(endpoint: Endpoint, body: &Value) -> Result<Self> {
        let body: Body = serde_path_to_error::deserialize(body).map_err(|error| {
            let place = match error.path().to_string() {
                path if path == "." => "body".to_owned(),
                path => path,
            };
            let text = error.into_inner().to_string();
            let (found, expected) = text.rsplit_once(", expected ").unwrap_or((&text, "a request"));
            let found = found.trim_start_matches("invalid type: ").trim_start_matches("invalid value: ");
            refused(place, expected, found)
        })?;
        neutral::check("", &body.others, neutral::BODY)?;
        body.read(endpoint)
    }
}

impl Body {
    fn read(self, endpoint: Endpoint) -> Result<Asked> {
        let logprobs = self.logprobs(endpoint)?;
        self.check_special_tokens(endpoint)?;
        let n = self.n.unwrap_or(1);
        if let Some(best_of) = self.best_of.filter(|best_of| *best_of != n) {
            return Err(refused("best_of", format!("n, which is {n}: all that is generated is returned"), best_of));
        }
        let echo = self.echo.unwrap_or(false);
        if echo && endpoint == Endpoint::ChatCompletions {
            return Err(refused("echo", "false or null in a chat", true));
        }
        let prompts = match (endpoint, self.messages, self.prompt) {
            (Endpoint::ChatCompletions, Some(turns), None) => {
                let turns = turns.into_iter().enumerate();
                let messages = turns.map(|(index, turn)| turn.message(&format!("messages[{index}].")));
                vec![Prompt::Messages(messages.collect::<Result<_>>()?)]
            }
            (Endpoint::Completions, None, Some(Prompts::One(text))) => vec![text.prompt()],
            (Endpoint::Completions, None, Some(Prompts::Several(texts))) if !texts.is_empty() => {
                texts.into_iter().map(Text::prompt).collect()
            }
            (Endpoint::ChatCompletions, ..) => {
                return Err(refused("messages", "a conversation, and no prompt", "none, or a prompt"));
            }
            (Endpoint::Completions, ..) => {
                return Err(refused("prompt", "a text or token ids, and no messages", "none, or messages"));
            }
        };
        let mut request = Request::text("");
        // OpenAI's completions generate 16 tokens by default, chats as many as there is room for.
        let default = (endpoint == Endpoint::Completions).then_some(16);
        request.max_tokens = self.max_completion_tokens.or(self.max_tokens).or(default);
        request.min_tokens = self.min_tokens;
        request.guidance = match (self.guidance_scale, self.negative_prompt) {
            (None, Some(_)) => return Err(refused("guidance_scale", "a number, with negative_prompt", "none")),
            (scale, negative) => scale.map(|scale| Guidance { scale, negative_prompt: negative.map(Text::prompt) }),
        };
        request.ignore_eos = self.ignore_eos.unwrap_or(false);
        request.priority = self.priority.unwrap_or(0);
        request.cache_salt = self.cache_salt.as_deref().map_or(0, hash);
        request.stop = match self.stop {
            None => Vec::new(),
            Some(Stop::One(text)) => vec![text],
            Some(Stop::Several(texts)) => texts,
        };
        request.stop_token_ids = self.stop_token_ids.unwrap_or_default();
        request.repetition_detection = self.repetition_detection.and_then(Detection::read);
        request.constraint = one(
            "response_format",
            [
                self.response_format.and_then(ResponseFormat::constraint),
                self.structured_outputs.unwrap_or_default().constraint("structured_outputs")?,
                self.guided_json.map(|schema| schema.read("guided_json")).transpose()?,
                self.guided_regex.map(Constraint::Regex),
                self.guided_choice.map(Constraint::Choice),
                self.guided_grammar.map(Constraint::Grammar),
            ],
        )?;
        let sampling = &mut request.sampling;
        let dry = Dry::default();
        sampling.dry = Some(Dry {
            multiplier: self.dry_multiplier.unwrap_or(0.0),
            base: self.dry_base.unwrap_or(dry.base),
            allowed_length: self.dry_allowed_length.unwrap_or(dry.allowed_length),
            last_n: self.dry_penalty_last_n.unwrap_or(dry.last_n),
            sequence_breakers: self.dry_sequence_breakers.unwrap_or(dry.sequence_breakers),
        });
        sampling.typical_p = self.typical_p;
        sampling.no_repeat_ngram_size = self.no_repeat_ngram_size;
        sampling.bad_words = self.bad_words.unwrap_or_default();
        (sampling.temperature, sampling.top_p, sampling.min_p) = (self.temperature, self.top_p, self.min_p);
        sampling.top_k = self.top_k.map(top_k).transpose()?;
        sampling.seed = self.seed.map(seed).transpose()?;
        sampling.repetition_penalty = self.repetition_penalty;
        sampling.presence_penalty = self.presence_penalty.unwrap_or(0.0);
        sampling.frequency_penalty = self.frequency_penalty.unwrap_or(0.0);
        sampling.logit_bias = self.logit_bias.into_iter().flatten().collect();
        let only_echo = echo && request.max_tokens == Some(0);
        Ok(Asked { prompts, request, n, logprobs, echo, only_echo })
    }

    /// Whether log-probabilities are asked for: a number for completions, a flag for chats.
    fn logprobs(&self, endpoint: Endpoint) -> Result<bool> {
        const OWN: &str = "only those of the chosen tokens are given";
        if let Some(top) = self.top_logprobs.as_ref().filter(|top| **top != 0) {
            return Err(refused("top_logprobs", format!("0 or null: {OWN}"), top));
        }
        match (endpoint, &self.logprobs) {
            (_, None | Some(Value::Bool(false))) => Ok(false),
            (Endpoint::ChatCompletions, Some(Value::Bool(true))) => Ok(true),
            (Endpoint::Completions, Some(top)) if *top == 0 => Ok(true),
            (Endpoint::ChatCompletions, Some(other)) => Err(refused("logprobs", "true, false or null", other)),
            (Endpoint::Completions, Some(other)) => Err(refused("logprobs", format!("0 or null: {OWN}"), other)),
        }
    }

    /// Texts get the tokenizer's special tokens; chats do not, whose templates write them.
    fn check_special_tokens(&self, endpoint: Endpoint) -> Result<()> {
        let own = endpoint == Endpoint::Completions;
        match self.add_special_tokens {
            Some(other) if other != own => Err(refused("add_special_tokens", format!("{own} or null"), other)),
            _ => Ok(()),
        }
    }
}

fn top_k(k: i64) -> Result<usize> {
    match usize::try_from(k) {
        Ok(k) => Ok(k),
        Err(_) if k == -1 => Ok(0),
        Err(_) => Err(refused("top_k", "-1 or a whole number from 0 up", k)),
    }
}

/// A seed in 64 bits, whether it was meant as signed or not.
fn seed(seed: i128) -> Result<u64> {
    let unsigned = u64::try_from(seed).ok().or_else(|| i64::try_from(seed).ok().map(i64::cast_unsigned));
    unsigned.ok_or_else(|| refused("seed", "a whole number of 64 bits", seed))
}

fn hash(salt: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    salt.hash(&mut hasher);
    hasher.finish()
}

impl Detection {
    fn read(self) -> Option<RepetitionDetection> {
        let Self { max_pattern_size, min_pattern_size, min_count } = self;
        let min_pattern_size = min_pattern_size.max(1);
        (max_pattern_size > 0).then_some(RepetitionDetection { min_pattern_size, max_pattern_size, min_count })
    }
}

impl Text {
    fn prompt(self) -> Prompt {
        match self {
            Self::Text(text) => Prompt::Text(text),
            Self::Tokens(tokens) => Prompt::Tokens(tokens),
        }
    }
}

impl Turn {
    /// The message; `place` is where it is in the body.
    fn message(self, place: &str) -> Result<Message> {
        neutral::check(place, &self.others, neutral::MESSAGE)?;
        let content = match self.content {
            Content::Text(text) => text,
            Content::Parts(parts) => {
                let part = |part: Part| {
                    neutral::check(&format!("{place}content."), &part.others, neutral::PART).map(|()| part.text)
                };
                parts.into_iter().map(part).collect::<Result<String>>()?
            }
        };
        Ok(Message { name: self.name, ..Message::new(self.role, content) })
    }
}
