//! Burrstone: an LLM inference engine.

pub mod device;
mod dtype;
mod error;
pub mod model;
pub mod ops;
pub mod text;

pub use dtype::DType;
pub use error::{Error, Result};
