//! The generator on a small repository of its own, `tests/tree`.

mod device;
mod host;
#[cfg(feature = "cli")]
mod program;
mod support;
