//! Text and token ids: tokenizers, incremental decoding, stop strings, chat templates.
//!
//! From the bottom up: `bytes` and `parts` (what a decoder reads), `tokenizer`, on it `stream` and `vocabulary`; `files`
//! and `special_tokens` (what the files around `tokenizer.json` say), `chat`, and `checkpoint`, which loads tokenizer and
//! chat template from a folder.

mod bytes;
mod chat;
mod checkpoint;
mod files;
mod json;
mod parts;
mod special_tokens;
mod stop;
mod stream;
mod tokenizer;
mod vocabulary;

pub use chat::{ChatTemplate, Message};
pub use stop::{StopMatcher, Stopped};
pub use stream::DecodeStream;
pub(crate) use tokenizer::Piece;
pub use tokenizer::Tokenizer;

/// The message of a foreign error on one line.
fn one_line(error: impl std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
