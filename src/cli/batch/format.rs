//! OpenAI's batch format: a request a line, an answer a line.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use burrstone::text::Message;
use burrstone::{Constraint, Dry, Engine, Error, Guidance, Prompt, RepetitionDetection, Request};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::constraint::{ResponseFormat, Schema, Structured, one};

/// A line of the input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    pub custom_id: String,
    #[serde(default)]
    method: Option<String>,
    url: String,
    body: Value,
}

/// The body of either endpoint. What is not here is refused, not ignored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// Of `/v1/chat/completions`.
    messages: Option<Vec<Turn>>,
    /// Of `/v1/completions`.
    prompt: Option<Text>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    min_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    no_repeat_ngram_size: Option<usize>,
    /// 0 where it is not said, which does nothing.
    dry_multiplier: Option<f32>,
    dry_base: Option<f32>,
    dry_allowed_length: Option<usize>,
    dry_sequence_breakers: Option<Vec<String>>,
    bad_words: Option<Vec<String>>,
    /// By token id.
    logit_bias: Option<BTreeMap<u32, f32>>,
    seed: Option<u64>,
    n: Option<usize>,
    stop: Option<Stop>,
    stop_token_ids: Option<Vec<u32>>,
    repetition_detection: Option<Detection>,
    response_format: Option<ResponseFormat>,
    structured_outputs: Option<Structured>,
    guided_json: Option<Schema>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    guidance_scale: Option<f32>,
    negative_prompt: Option<Text>,
    ignore_eos: Option<bool>,
    priority: Option<i32>,
    /// The model is the one that is loaded, whatever this says.
    #[serde(rename = "model")]
    _model: Option<String>,
    /// For the sender's own use.
    #[serde(rename = "user")]
    _user: Option<String>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: String,
    content: Content,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    Text { text: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Text(String),
    Tokens(Vec<u32>),
}

#[derive(Deserialize)]
#[serde(untagged)]
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

/// A line of the output.
#[derive(Serialize)]
pub struct Answer {
    id: String,
    custom_id: String,
    response: Response,
    error: Value,
    #[serde(skip)]
    pub usage: Usage,
}

#[derive(Serialize)]
struct Response {
    status_code: u16,
    request_id: String,
    body: Value,
}

#[derive(Clone, Copy, Default)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub completion_tokens: usize,
}

/// Which request a line of the output answers; `None` for a line that answers none.
pub fn answered(line: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(line).ok()?;
    value.get("response")?;
    Some(value.get("custom_id")?.as_str()?.to_owned())
}

impl Answer {
    pub fn succeeded(&self) -> bool {
        self.response.status_code == 200
    }
}

impl Ask {
    /// A line of the input; else what is wrong with it.
    pub fn parse(line: &str) -> Result<Self, String> {
        let ask: Self = serde_json::from_str(line).map_err(|e| e.to_string())?;
        match ask.method.as_deref() {
            None | Some("POST") => Ok(ask),
            Some(method) => Err(format!("method {method:?}, and not POST")),
        }
    }

    /// Asks, and waits for the end.
    pub fn answer(&self, engine: &Engine) -> Answer {
        let (status_code, body, usage) = match self.complete(engine) {
            Ok((body, usage)) => (200, body, usage),
            Err(error) => {
                let (status, kind) = match &error {
                    error if error.is_input() => (400, "invalid_request_error"),
                    Error::Busy { .. } => (429, "overloaded"),
                    _ => (500, "server_error"),
                };
                (status, json!({"error": {"message": error.to_string(), "type": kind}}), Usage::default())
            }
        };
        Answer {
            id: format!("batch_req_{}", self.custom_id),
            custom_id: self.custom_id.clone(),
            response: Response { status_code, request_id: self.custom_id.clone(), body },
            error: Value::Null,
            usage,
        }
    }

    fn complete(&self, engine: &Engine) -> burrstone::Result<(Value, Usage)> {
        let refused = |field: &str, expected: &str, found: String| Error::Request {
            field: field.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        let chat = match self.url.as_str() {
            "/v1/chat/completions" => true,
            "/v1/completions" => false,
            url => return Err(refused("url", "/v1/chat/completions or /v1/completions", url.to_owned())),
        };
        let body = Body::deserialize(&self.body).map_err(|e| refused("body", "a request", e.to_string()))?;
        let (request, n) = body.request(chat)?;
        let mut choices = Vec::new();
        let mut usage = Usage::default();
        for (index, mut generation) in engine.generate_several(request, n)?.into_iter().enumerate() {
            let mut text = String::new();
            for token in generation.by_ref() {
                text += &token?.text;
            }
            let (used, receipt) = (generation.usage(), generation.receipt());
            usage.prompt_tokens = used.prompt_tokens;
            usage.cached_tokens = receipt.cached_tokens;
            usage.completion_tokens += used.completion_tokens;
            let finish_reason = generation.finish_reason().map(|reason| reason.to_string());
            choices.push(if chat {
                let message = json!({"role": "assistant", "content": text});
                json!({"index": index, "message": message, "logprobs": null, "finish_reason": finish_reason})
            } else {
                json!({"index": index, "text": text, "logprobs": null, "finish_reason": finish_reason})
            });
        }
        let body = json!({
            "id": format!("{}-{}", if chat { "chatcmpl" } else { "cmpl" }, self.custom_id),
            "object": if chat { "chat.completion" } else { "text_completion" },
            "created": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            "model": engine.report().model,
            "choices": choices,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            },
        });
        Ok((body, usage))
    }
}

impl Body {
    /// The request, and how many continuations of it are wanted.
    fn request(self, chat: bool) -> burrstone::Result<(Request, usize)> {
        let missing = |field: &str, expected: &str| Error::Request {
            field: field.to_owned(),
            expected: expected.to_owned(),
            found: "none, or the other endpoint's".to_owned(),
        };
        let prompt = match (chat, self.messages, self.prompt) {
            (true, Some(turns), None) => Prompt::Messages(turns.into_iter().map(Turn::message).collect()),
            (false, None, Some(text)) => text.prompt(),
            (true, ..) => return Err(missing("messages", "a conversation, and no prompt")),
            (false, ..) => return Err(missing("prompt", "a text or token ids, and no messages")),
        };
        let mut request = Request { prompt, ..Request::text("") };
        // What OpenAI's completions generate where nobody says how much.
        request.max_tokens = self.max_completion_tokens.or(self.max_tokens).or((!chat).then_some(16));
        request.min_tokens = self.min_tokens;
        request.guidance = match (self.guidance_scale, self.negative_prompt) {
            (None, Some(_)) => {
                return Err(Error::Request {
                    field: "guidance_scale".to_owned(),
                    expected: "a number, with negative_prompt".to_owned(),
                    found: "none".to_owned(),
                });
            }
            (scale, negative) => scale.map(|scale| Guidance { scale, negative_prompt: negative.map(Text::prompt) }),
        };
        request.ignore_eos = self.ignore_eos.unwrap_or(false);
        request.priority = self.priority.unwrap_or(0);
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
            sequence_breakers: self.dry_sequence_breakers.unwrap_or(dry.sequence_breakers),
        });
        sampling.typical_p = self.typical_p;
        sampling.no_repeat_ngram_size = self.no_repeat_ngram_size;
        sampling.bad_words = self.bad_words.unwrap_or_default();
        (sampling.temperature, sampling.top_p, sampling.top_k) = (self.temperature, self.top_p, self.top_k);
        (sampling.min_p, sampling.repetition_penalty, sampling.seed) = (self.min_p, self.repetition_penalty, self.seed);
        sampling.presence_penalty = self.presence_penalty.unwrap_or(0.0);
        sampling.frequency_penalty = self.frequency_penalty.unwrap_or(0.0);
        sampling.logit_bias = self.logit_bias.into_iter().flatten().collect();
        Ok((request, self.n.unwrap_or(1)))
    }
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
    fn message(self) -> Message {
        let content = match self.content {
            Content::Text(text) => text,
            Content::Parts(parts) => parts.into_iter().map(|Part::Text { text }| text).collect(),
        };
        Message::new(self.role, content)
    }
}
