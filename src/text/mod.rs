//! Between text and token ids: tokenizers, streams of decoded text, stop strings, chat templates.

mod chat;
mod chat_files;
mod json;
mod stop;
mod stream;
mod tokenizer;
mod vocabulary;

pub use chat::{ChatTemplate, Message};
pub use stop::{StopMatcher, Stopped};
pub use stream::DecodeStream;
pub use tokenizer::Tokenizer;
pub(crate) use vocabulary::Piece;

/// The message of a foreign error on one line.
fn one_line(error: impl std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
