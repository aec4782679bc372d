//! The backend of a stream: the CUDA driver, or the simulator.

use std::fmt;
use std::time::Duration;

use super::tensor::{TensorMap, TmaBoxes};
use super::variant::Variant;
use crate::error::Result;

/// Properties of a device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// `cuda:0` or `sim`, as in `--device`.
    pub device: String,
    /// The product's name, or for the simulator the simulated architecture.
    pub name: String,
    /// Compute capability: 90 is sm_90.
    pub arch: u32,
    /// Streaming multiprocessors.
    pub sms: u32,
    pub memory_bytes: u64,
}

/// A kernel launch.
pub struct Launch<'a> {
    pub variant: &'static Variant,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Blocks of a cluster, neighbours along x that run together and access each other's shared memory: a divisor of
    /// the grid; 1 without clusters. Needs Hopper.
    pub cluster: u32,
    /// The kernel's argument struct.
    pub args: &'a [u8],
    /// The problem, for error messages.
    pub shape: &'a dyn fmt::Display,
}

/// A device with one queue of work. Methods that *enqueue* may return before the work is done; work is done in order.
pub(super) trait Driver: Send + Sync {
    fn info(&self) -> &DeviceInfo;

    /// Whether a kernel fault makes the device unusable for the rest of the process.
    fn fails_for_good(&self) -> bool;

    /// Bytes of free memory.
    fn free_bytes(&self) -> Result<u64>;

    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Frees memory once the work enqueued so far is done.
    fn release(&self, address: u64, bytes: usize);

    /// Enqueues zeros.
    fn clear(&self, address: u64, bytes: usize) -> Result<()>;

    /// Enqueues a copy of `data`, which may change once this returns.
    fn upload(&self, address: u64, data: &[u8]) -> Result<()>;

    /// Reads memory once the work enqueued so far is done.
    fn download(&self, address: u64, data: &mut [u8]) -> Result<()>;

    /// Page-locked memory of the host, zeroed.
    fn allocate_host(&self, bytes: usize) -> Result<*mut u8>;

    /// # Safety
    /// `memory` comes from [`allocate_host`](Self::allocate_host) of this driver with `bytes`, and nothing uses it any
    /// more.
    unsafe fn release_host(&self, memory: *mut u8, bytes: usize);

    /// Enqueues a copy to page-locked memory of the host.
    ///
    /// # Safety
    /// `to` has room for `bytes`, and is neither read nor freed before the copy is done.
    unsafe fn copy_to_host(&self, address: u64, to: *mut u8, bytes: usize) -> Result<()>;

    /// The tensor map for a TMA copy of these boxes. Needs Hopper.
    fn tensor_map(&self, boxes: &TmaBoxes<'_>) -> Result<TensorMap>;

    /// Enqueues a kernel.
    ///
    /// # Safety
    /// The addresses in the arguments are memory of this device, as large as the contract of the kernel's argument
    /// struct requires.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// The CUDA stream on which libraries enqueue their work; `None` on the simulator.
    #[cfg(feature = "cuda")]
    fn cuda_stream(&self) -> Option<&std::sync::Arc<cudarc::driver::CudaStream>> {
        None
    }

    /// Waits until everything enqueued so far is done.
    fn wait(&self) -> Result<()>;

    /// Enqueues a time mark.
    fn mark(&self) -> Result<Box<dyn Mark>>;

    /// From here on enqueued work is recorded instead of run.
    fn begin_capture(&self) -> Result<()>;

    /// The recorded work. Ends the recording even if it fails.
    fn end_capture(&self) -> Result<Box<dyn Recording>>;

    /// Statistics of the simulator's launches since the last call.
    #[cfg(feature = "sim")]
    fn take_launch_stats(&self) -> Vec<(&'static str, super::sim::LaunchStats)> {
        Vec::new()
    }
}

/// A time mark in the queue of work.
pub(super) trait Mark: std::any::Any {
    /// The time from this mark to a later one of the same driver. Both must have been reached.
    fn until(&self, end: &dyn Mark) -> Result<Duration>;
}

/// Recorded work.
pub(super) trait Recording: Send {
    /// Enqueues it again, on the stream that recorded it.
    fn replay(&self) -> Result<()>;
}
