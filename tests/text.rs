//! Between text and token ids: streams against whole decodes, stop strings against a naive search, where templates are
//! found. What `transformers` makes of texts and templates is in `golden`.
#![cfg(feature = "engine")]

#[path = "text/chat.rs"]
mod chat;
#[path = "text/stop.rs"]
mod stop;
#[path = "text/tokenizer.rs"]
mod tokenizer;
