//! Log-probabilities of the tokens of an answer, in the forms of the two endpoints.

use burrstone::text::Tokenizer;
use serde::Serialize;

use super::Endpoint;

/// A token and its log-probability; the first of a text has none.
#[derive(Clone, Copy, Debug)]
pub struct Scored {
    pub id: u32,
    pub logprob: Option<f32>,
}

/// The text of a choice and, where they are asked for, its tokens.
#[derive(Clone)]
pub struct Transcript<'a> {
    pub text: String,
    tokenizer: Option<&'a Tokenizer>,
    /// The token before the next one, which says how it joins.
    last: Option<u32>,
    tokens: Vec<Token>,
    /// Characters of the text before the next token.
    offset: usize,
}

#[derive(Clone)]
struct Token {
    text: String,
    logprob: Option<f32>,
    offset: usize,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Logprobs {
    Completions { tokens: Vec<String>, token_logprobs: Vec<Option<f32>>, top_logprobs: (), text_offset: Vec<usize> },
    Chat { content: Vec<TokenLogprob> },
}

#[derive(Debug, Serialize)]
pub struct TokenLogprob {
    token: String,
    logprob: Option<f32>,
    /// Null for a token that is a part of a character.
    bytes: Option<Vec<u8>>,
    top_logprobs: [(); 0],
}

impl<'a> Transcript<'a> {
    /// An empty one after the token `last`. Without a tokenizer, tokens are named by their ids.
    pub fn new(tokenizer: Option<&'a Tokenizer>, last: Option<u32>) -> Self {
        Self { text: String::new(), tokenizer, last, tokens: Vec::new(), offset: 0 }
    }

    pub fn push(&mut self, Scored { id, logprob }: Scored) {
        let text = match self.tokenizer {
            Some(tokenizer) => joined(tokenizer, self.last, id),
            None => format!("token_id:{id}"),
        };
        let shown = self.tokenizer.is_some_and(|tokenizer| !decoded(tokenizer, &[id], true).is_empty());
        let length = if shown { text.chars().count() } else { 0 };
        self.tokens.push(Token { text, logprob, offset: self.offset });
        self.offset += length;
        self.last = Some(id);
    }

    pub fn logprobs(&self, endpoint: Endpoint) -> Logprobs {
        let tokens = self.tokens.iter();
        match endpoint {
            Endpoint::Completions => Logprobs::Completions {
                tokens: tokens.clone().map(|token| token.text.clone()).collect(),
                token_logprobs: tokens.clone().map(|token| token.logprob).collect(),
                top_logprobs: (),
                text_offset: tokens.map(|token| token.offset).collect(),
            },
            Endpoint::ChatCompletions => Logprobs::Chat {
                content: tokens
                    .map(|Token { text, logprob, .. }| TokenLogprob {
                        token: text.clone(),
                        logprob: *logprob,
                        bytes: (!text.contains(char::REPLACEMENT_CHARACTER)).then(|| text.as_bytes().to_vec()),
                        top_logprobs: [],
                    })
                    .collect(),
            },
        }
    }
}

/// What a token adds after another one: some decoders drop a space at the start of a text.
fn joined(tokenizer: &Tokenizer, last: Option<u32>, id: u32) -> String {
    let last = last.filter(|&last| tokenizer.id_to_token(last).is_some());
    let before = last.map(|last| decoded(tokenizer, &[last], false)).unwrap_or_default();
    let both: Vec<u32> = last.into_iter().chain([id]).collect();
    match decoded(tokenizer, &both, false).strip_prefix(&before) {
        Some(text) => text.to_owned(),
        None => decoded(tokenizer, &[id], false),
    }
}

/// The text of some tokens; ids that the tokenizer does not have leave none.
fn decoded(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    tokenizer.decode(ids, skip_special).unwrap_or_default()
}
