//! Between text and token ids: streams against whole decodes, stop strings against a naive search, chat templates
//! against what `transformers` 5 renders.

#[path = "text/chat.rs"]
mod chat;
#[path = "text/stop.rs"]
mod stop;
#[path = "text/tokenizer.rs"]
mod tokenizer;
