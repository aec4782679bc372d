//! The input of a decoder that knows byte tokens (`<0x41>`), with each run of them cut into characters.

use super::bytes::{Run, Utf8, fallback_byte, fallback_token};

/// What a decoder sees of one token, or of the byte tokens of one character.
#[derive(Clone, Debug)]
pub(super) enum Part {
    Token(String),
    Char(char),
    /// A byte that is part of no character.
    Invalid,
}

impl Part {
    pub fn decoder_tokens(&self) -> Vec<String> {
        match self {
            Self::Token(token) => vec![token.clone()],
            // As byte tokens, since a decoder may rewrite the characters of other tokens.
            Self::Char(c) => c.encode_utf8(&mut [0; 4]).bytes().map(fallback_token).collect(),
            Self::Invalid => vec![char::REPLACEMENT_CHARACTER.to_string()],
        }
    }
}

/// Cuts runs of byte tokens into characters as they arrive. A byte that is part of no character becomes U+FFFD, as in
/// the decoder `ByteFallback`. That decoder turns every byte of a run to U+FFFD when one of them is invalid; here whole
/// characters stay, since a stream shows them before the invalid byte arrives.
#[derive(Clone, Debug, Default)]
pub(super) struct ByteRuns(Utf8);

impl ByteRuns {
    pub fn push(&mut self, token: String) -> Vec<Part> {
        match fallback_byte(&token) {
            Some(byte) => parts(self.0.push(&[byte])),
            None => {
                let mut parts = self.finish();
                parts.push(Part::Token(token));
                parts
            }
        }
    }

    /// What is left of a run that has ended.
    pub fn finish(&mut self) -> Vec<Part> {
        parts(self.0.finish())
    }

    /// See [`Utf8::begin`].
    pub fn begin(&mut self) {
        self.0.begin();
    }
}

fn parts(runs: impl IntoIterator<Item = Run>) -> Vec<Part> {
    let parts_of = |run| match run {
        Run::Text(text) => text.chars().map(Part::Char).collect(),
        Run::Invalid { bytes, earlier } => vec![Part::Invalid; bytes - earlier],
    };
    runs.into_iter().flat_map(parts_of).collect()
}
