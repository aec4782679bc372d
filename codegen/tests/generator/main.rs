//! Tests the generator on a small repository, `tests/tree`.

mod device;
mod host;
#[cfg(feature = "cli")]
mod program;
mod support;
