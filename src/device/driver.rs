//! What a stream asks of the machinery below it: the CUDA driver, or the simulator.

use std::fmt;
use std::time::Duration;

use super::tensor::{Boxes, TensorMap};
use super::variant::Variant;
use crate::error::Result;

/// What a device is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// `cuda:0` or `sim`: as a device is asked for.
    pub device: String,
    /// The product's name; for the simulator what it stands in for.
    pub name: String,
    /// Compute capability: 90 is sm_90.
    pub arch: u32,
    /// Streaming multiprocessors.
    pub processors: u32,
    pub memory_bytes: u64,
}

/// A kernel to run.
pub struct Launch<'a> {
    pub variant: &'static Variant,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Neighbours along x that run together and reach each other's shared memory, a divisor of the grid; 1 where no blocks
    /// do. Clusters come with Hopper.
    pub cluster: u32,
    /// The kernel's argument struct.
    pub args: &'a [u8],
    /// The problem, for errors.
    pub shape: &'a dyn fmt::Display,
}

/// A device with one queue of work. Methods that say *enqueue* may return before the work is done; work is done in the
/// order in which it was enqueued.
pub(super) trait Driver: Send + Sync {
    fn info(&self) -> &DeviceInfo;

    /// Whether the device is of no use to this process once a kernel has faulted.
    fn fails_for_good(&self) -> bool;

    /// Bytes of memory that are free.
    fn free_bytes(&self) -> Result<u64>;

    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back once the work enqueued so far is done.
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
    /// `memory` comes from [`allocate_host`](Self::allocate_host) of this driver with `bytes`, and nobody uses it.
    unsafe fn release_host(&self, memory: *mut u8, bytes: usize);

    /// Enqueues a copy to page-locked memory of the host.
    ///
    /// # Safety
    /// `to` has room for `bytes` and is not read before the copy is done, nor given back.
    unsafe fn copy_to_host(&self, address: u64, to: *mut u8, bytes: usize) -> Result<()>;

    /// What a kernel is told of a tensor that it copies in boxes. Only Hopper copies so.
    fn tensor_map(&self, boxes: &Boxes<'_>) -> Result<TensorMap>;

    /// Enqueues a kernel.
    ///
    /// # Safety
    /// The arguments' addresses are those of memory of this device that is as large as the kernel's contract for the
    /// argument struct says.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// What libraries enqueue their work on, of a GPU.
    #[cfg(feature = "cuda")]
    fn cuda_stream(&self) -> Option<&std::sync::Arc<cudarc::driver::CudaStream>> {
        None
    }

    /// Waits until everything enqueued so far is done.
    fn wait(&self) -> Result<()>;

    /// Enqueues a mark of the time.
    fn mark(&self) -> Result<Box<dyn Mark>>;

    /// From here on, what is enqueued is recorded and not done.
    fn begin_capture(&self) -> Result<()>;

    /// What was recorded; ends the recording in any case.
    fn end_capture(&self) -> Result<Box<dyn Recording>>;

    /// What the simulator counted since the last call.
    #[cfg(feature = "sim")]
    fn take_launch_stats(&self) -> Vec<(&'static str, super::sim::LaunchStats)> {
        Vec::new()
    }
}

/// A point in the queue of work, and in time.
pub(super) trait Mark: std::any::Any {
    /// The time from this mark to a later one of the same driver; both have been passed.
    fn until(&self, end: &dyn Mark) -> Result<Duration>;
}

/// Recorded work.
pub(super) trait Recording: Send {
    /// Enqueues it once more, on the stream that recorded it.
    fn replay(&self) -> Result<()>;
}
