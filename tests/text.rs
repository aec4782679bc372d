//! Text and token ids: streams against whole decodes, stop strings against a naive search, the text of generations, where
//! templates are found. What `transformers` makes of texts and templates is in `golden`.
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
