//! Text and token ids: streaming against whole decodes, stop strings against a naive search, the text of generations,
//! the search for templates. `golden` compares tokenizers and templates with `transformers`.
#![cfg(feature = "engine")]

#[path = "text/chat.rs"]
mod chat;
#[cfg(feature = "builtin-model")]
#[path = "text/generation.rs"]
mod generation;
#[path = "text/stop.rs"]
mod stop;
#[path = "text/tokenizer.rs"]
mod tokenizer;
