//! Agreement with `transformers`, whose answers the scripts in `tests/golden` wrote down: log-probabilities and greedy
//! tokens, token ids of texts, rendered conversations.
#![cfg(feature = "engine")]

#[path = "golden/chat_templates.rs"]
mod chat_templates;
#[path = "golden/checkpoint.rs"]
mod checkpoint;
#[path = "golden/guidance.rs"]
mod guidance;
#[path = "golden/models.rs"]
mod models;
#[cfg(feature = "sim")]
mod simulator;
#[path = "golden/tokenizers.rs"]
mod tokenizers;
