//! Bodies of answers.

use serde::Serialize;

use super::Endpoint;
use super::logprobs::Logprobs;

#[derive(Debug, Serialize)]
pub struct Completion {
    pub id: String,
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub choices: Vec<Choice>,
    pub usage: Usage,
}

#[derive(Debug, Serialize)]
pub struct Choice {
    pub index: usize,
    #[serde(flatten)]
    pub content: Content,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    Text(String),
    Message(Message),
}

#[derive(Debug, Serialize)]
pub struct Message {
    role: &'static str,
    content: String,
}

impl Content {
    pub fn new(endpoint: Endpoint, text: String) -> Self {
        match endpoint {
            Endpoint::Completions => Self::Text(text),
            Endpoint::ChatCompletions => Self::Message(Message { role: "assistant", content: text }),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokens,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct PromptTokens {
    cached_tokens: usize,
}

impl Usage {
    pub fn cached_tokens(&self) -> usize {
        self.prompt_tokens_details.cached_tokens
    }

    /// A prompt counts once, however many continuations it has.
    pub fn add_prompt(&mut self, tokens: usize, cached: usize) {
        self.prompt_tokens += tokens;
        self.prompt_tokens_details.cached_tokens += cached;
    }

    pub fn with_total(self) -> Self {
        Self { total_tokens: self.prompt_tokens + self.completion_tokens, ..self }
    }
}

/// The body of the answer to a request that failed.
#[derive(Debug, Serialize)]
pub struct Failure {
    error: FailureDetails,
}

#[derive(Debug, Serialize)]
struct FailureDetails {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
}

impl Failure {
    pub fn new(kind: &'static str, message: String) -> Self {
        Self { error: FailureDetails { message, kind } }
    }
}
