//! Memory outside the Rust allocator, and its devices: a GPU driven by CUDA, or the simulator.
//!
//! A [`Stream`] is a device with one queue of work: it allocates [`Memory`], runs the launches of
//! [`kernels`](crate::kernels), and captures a [`Graph`] of them.

mod bytes;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg_attr(not(any(feature = "cuda", feature = "sim")), allow(dead_code, reason = "no device in this build"))]
mod driver;
mod gpu_spec;
mod memory;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "sim")]
mod simulated;
mod slice;
#[cfg_attr(not(any(feature = "cuda", feature = "sim")), allow(dead_code, reason = "no device in this build"))]
mod stream;
#[cfg_attr(not(any(feature = "cuda", feature = "sim")), allow(dead_code, reason = "no device in this build"))]
mod tensor;
#[cfg_attr(not(any(feature = "cuda", feature = "sim")), allow(dead_code, reason = "no device in this build"))]
mod variant;

pub use bytes::Bytes;
#[cfg(feature = "cuda")]
pub(crate) use cuda::Product;
#[cfg(feature = "cuda")]
pub use cuda::{CublasLt, Element};
pub use driver::{DeviceInfo, Launch};
pub use gpu_spec::GpuSpec;
pub use memory::{Memory, Readback};
#[cfg(feature = "sim")]
pub use simulated::SimOptions;
pub use slice::{Slice, SliceMut};
pub use stream::{Counters, Graph, Stream};
pub use tensor::{Swizzle, TmaBoxes};
pub use variant::{ARCHS, Cubin, Kernel, Value, Variant};
