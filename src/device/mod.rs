//! Memory that is not the Rust allocator's. Today: files mapped for reading. The CUDA driver and the simulator
//! (streams, modules, events, graph capture) move in beside it.

mod bytes;
#[cfg(feature = "sim")]
pub mod sim;

pub use bytes::Bytes;
