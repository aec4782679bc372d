//! Runs the program as a user does.
#![cfg(all(feature = "cli", feature = "builtin-model"))]

#[path = "cli/batch.rs"]
mod batch;
#[path = "cli/batch_fields.rs"]
mod batch_fields;
#[path = "cli/batch_files.rs"]
mod batch_files;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/chat.rs"]
mod chat;
#[path = "golden/checkpoint.rs"]
#[allow(dead_code, reason = "only the checkpoints are used, not the expected results")]
mod checkpoint;
#[path = "cli/constraint.rs"]
mod constraint;
#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/generate.rs"]
mod generate;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/inspect.rs"]
mod inspect;
#[path = "cli/score.rs"]
mod score;
#[path = "cli/simulate.rs"]
mod simulate;
#[path = "cli/support.rs"]
mod support;
