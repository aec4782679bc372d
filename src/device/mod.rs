//! Memory that is not the Rust allocator's. Today: files mapped for reading. The CUDA driver and the simulator
//! (streams, modules, events, graph capture) move in beside it.

mod bytes;

pub use bytes::Bytes;
