//! Agreement with `transformers`, whose answers the scripts in `tests/golden` wrote down: log-probabilities and greedy
//! tokens, token ids of texts, rendered conversations.
#![cfg(feature = "engine")]

#[path = "golden/chat_templates.rs"]
mod chat_templates;
#[path = "golden/checkpoint.rs"]
mod checkpoint;
#[cfg(feature = "sim")]
#[allow(dead_code, reason = "engines choose their variants themselves")]
#[path = "gpu/device.rs"]
mod gpu;
#[path = "golden/guidance.rs"]
mod guidance;
#[path = "golden/models.rs"]
mod models;
#[cfg(feature = "sim")]
mod simulator;
#[cfg(feature = "sim")]
#[path = "slice/mod.rs"]
mod slice;
#[path = "golden/tokenizer_configs.rs"]
mod tokenizer_configs;
#[path = "golden/tokenizers.rs"]
mod tokenizers;
