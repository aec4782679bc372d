//! OpenAI's completions and chat completions, with vLLM's additions: from the body of a request to that of its answer.

mod constraint;
mod logprobs;
mod neutral;
mod request;
mod response;

use std::time::{SystemTime, UNIX_EPOCH};

use burrstone::{Engine, Error, Prompt, Result, Score};
use serde_json::Value;

use logprobs::{Scored, Transcript};
use request::Asked;
use response::{Choice, Content};

pub use response::{Completion, Failure, Usage};

/// The status codes that answers have.
pub const STATUS_CODES: [u16; 4] = [200, 400, 429, 500];

/// Which of the two kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Completions,
    ChatCompletions,
}

impl Endpoint {
    /// # Errors
    /// There is no such endpoint.
    pub fn of_url(url: &str) -> Result<Self> {
        match url {
            "/v1/completions" => Ok(Self::Completions),
            "/v1/chat/completions" => Ok(Self::ChatCompletions),
            url => Err(refused("url", "/v1/chat/completions or /v1/completions", url)),
        }
    }
}

/// Answers the body of a request, and waits for the end. `id` makes that of the answer.
///
/// # Errors
/// The body is not a request, asks for something that is not supported, or the engine refuses it.
pub fn complete(engine: &Engine, endpoint: Endpoint, id: &str, body: &Value) -> Result<Completion> {
    let asked = Asked::read(endpoint, body)?;
    let most = engine.report().max_sequences;
    if !(1..=most).contains(&asked.n) {
        return Err(refused("n", format!("1 to {most}, as many as run at a time"), asked.n));
    }
    let mut runs = Vec::new();
    for prompt in &asked.prompts {
        let generations = match asked.only_echo {
            true => Vec::new(),
            false => {
                let request = burrstone::Request { prompt: prompt.clone(), ..asked.request.clone() };
                engine.generate_several(request, asked.n)?
            }
        };
        runs.push((prompt, generations));
    }
    let (mut choices, mut usage) = (Vec::new(), Usage::default());
    for (prompt, mut generations) in runs {
        let prompt_tokens = match generations.first() {
            Some(generation) => generation.prompt_tokens().to_vec(),
            None => encoded(engine, prompt)?,
        };
        let mut begun = Transcript::new(engine.tokenizer().ok(), prompt_tokens.last().copied());
        if asked.echo {
            begun = echoed(engine, prompt, &prompt_tokens, asked.logprobs)?;
        }
        let mut cached_tokens = 0;
        for _ in 0..asked.n {
            let mut transcript = begun.clone();
            let mut finish_reason = Some("length".to_owned());
            if !generations.is_empty() {
                let mut generation = generations.remove(0);
                for token in generation.by_ref() {
                    let token = token?;
                    transcript.text += &token.text;
                    if asked.logprobs {
                        transcript.push(Scored { id: token.id, logprob: Some(token.logprob) });
                    }
                }
                cached_tokens = generation.receipt().cached_tokens;
                usage.completion_tokens += generation.usage().completion_tokens;
                finish_reason = generation.finish_reason().map(|reason| reason.to_string());
            }
            let logprobs = asked.logprobs.then(|| transcript.logprobs(endpoint));
            let content = Content::new(endpoint, transcript.text);
            choices.push(Choice { index: choices.len(), content, logprobs, finish_reason });
        }
        usage.add_prompt(prompt_tokens.len(), cached_tokens);
    }
    let (prefix, object) = match endpoint {
        Endpoint::Completions => ("cmpl", "text_completion"),
        Endpoint::ChatCompletions => ("chatcmpl", "chat.completion"),
    };
    Ok(Completion {
        id: format!("{prefix}-{id}"),
        object,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: engine.report().model.clone(),
        choices,
        usage: usage.with_total(),
    })
}

/// The tokens of a prompt that is only echoed.
fn encoded(engine: &Engine, prompt: &Prompt) -> Result<Vec<u32>> {
    match prompt {
        Prompt::Text(text) => engine.tokenizer()?.encode(text, true),
        Prompt::Tokens(tokens) => Ok(tokens.clone()),
        _ => Err(refused("echo", "a prompt of text or tokens", "messages")),
    }
}

/// A prompt as the beginning of an answer.
fn echoed<'a>(engine: &'a Engine, prompt: &Prompt, tokens: &[u32], scored: bool) -> Result<Transcript<'a>> {
    let mut transcript = Transcript::new(engine.tokenizer().ok(), None);
    if scored {
        let Score { token_ids, logprobs, .. } = engine.score(tokens)?;
        token_ids.into_iter().zip(logprobs).for_each(|(id, logprob)| transcript.push(Scored { id, logprob }));
    }
    transcript.text = match prompt {
        Prompt::Text(text) => text.clone(),
        _ => {
            let mut stream = engine.tokenizer()?.decode_stream(true);
            let mut text = tokens.iter().map(|&token| stream.push(token)).collect::<Result<String>>()?;
            text += &stream.finish()?;
            text
        }
    };
    Ok(transcript)
}

/// Status and body of the answer to a request that failed.
pub fn failure(error: &Error) -> (u16, Failure) {
    let (status, kind) = match error {
        error if error.is_input() => (400, "invalid_request_error"),
        Error::Busy { .. } => (429, "overloaded"),
        _ => (500, "server_error"),
    };
    (status, Failure::new(kind, error.to_string()))
}

fn refused(field: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Error {
    Error::Request { field: field.into(), expected: expected.into(), found: found.to_string() }
}
