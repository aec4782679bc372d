//! A device's queue of work: memory, launches, graphs.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::driver::{DeviceInfo, Driver, Launch, Recording};
use super::tensor::{TensorMap, TmaBoxes};
use crate::error::{Error, Result};

/// A device with one queue of work. Clones share the queue.
#[derive(Clone)]
pub struct Stream(Arc<Inner>);

struct Inner {
    driver: Box<dyn Driver>,
    counts: Counts,
    /// Whether a graph is being captured.
    capturing: AtomicBool,
    /// The number of live graphs.
    graphs: AtomicUsize,
    /// Memory dropped while live graphs may use it: freed with the last of them.
    deferred: Mutex<Vec<(u64, usize)>>,
    /// Allocations before the end of the last capture; later ones are in no graph.
    captured: AtomicU64,
}

/// Counts of a stream's operations since its creation. Captured work is counted at the capture, not at each replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Kernels launched individually.
    pub launches: u64,
    /// Graphs replayed.
    pub replays: u64,
    /// Copies from the host to the device.
    pub uploads: u64,
    /// Copies from the device to the host.
    pub downloads: u64,
    /// Allocations of device memory.
    pub allocations: u64,
    /// Times the host waited for the device within a step.
    pub syncs: u64,
    /// Times the host waited for the results of a step.
    pub waits: u64,
}

#[derive(Default)]
struct Counts {
    launches: AtomicU64,
    replays: AtomicU64,
    uploads: AtomicU64,
    downloads: AtomicU64,
    allocations: AtomicU64,
    syncs: AtomicU64,
    waits: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Stream {
    pub(super) fn new(driver: Box<dyn Driver>) -> Self {
        Self(Arc::new(Inner {
            driver,
            counts: Counts::default(),
            capturing: AtomicBool::new(false),
            graphs: AtomicUsize::new(0),
            deferred: Mutex::default(),
            captured: AtomicU64::new(0),
        }))
    }

    pub(super) fn driver(&self) -> &dyn Driver {
        &*self.0.driver
    }

    /// The device's properties.
    pub fn info(&self) -> &DeviceInfo {
        self.driver().info()
    }

    /// Compute capability: 90 is sm_90.
    pub fn arch(&self) -> u32 {
        self.info().arch
    }

    /// Bytes of free device memory.
    ///
    /// # Errors
    /// The device failed.
    pub fn free_bytes(&self) -> Result<u64> {
        self.driver().free_bytes()
    }

    /// Whether a kernel fault makes the device unusable for the rest of the process.
    pub(crate) fn fails_for_good(&self) -> bool {
        self.driver().fails_for_good()
    }

    /// Counts of operations so far.
    pub fn counters(&self) -> Counters {
        let counts = &self.0.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            launches: read(&counts.launches),
            replays: read(&counts.replays),
            uploads: read(&counts.uploads),
            downloads: read(&counts.downloads),
            allocations: read(&counts.allocations),
            syncs: read(&counts.syncs),
            waits: read(&counts.waits),
        }
    }

    /// Bytes that hold anything: their address, and how many allocations came before.
    pub(super) fn allocate(&self, bytes: usize) -> Result<(u64, u64)> {
        self.not_capturing("an allocation")?;
        let number = self.0.counts.allocations.fetch_add(1, Ordering::Relaxed);
        Ok((self.driver().allocate(bytes)?, number))
    }

    /// `number`: allocations before this one.
    pub(super) fn release(&self, address: u64, bytes: usize, number: u64) {
        let mut deferred = self.0.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        let replayed = self.0.graphs.load(Ordering::Acquire) > 0 && number < self.0.captured.load(Ordering::Acquire);
        if replayed || self.0.capturing.load(Ordering::Acquire) {
            deferred.push((address, bytes));
        } else {
            self.driver().release(address, bytes);
        }
    }

    pub(super) fn upload(&self, address: u64, data: &[u8]) -> Result<()> {
        // Each replay would upload the bytes of the capture again.
        self.not_capturing("an upload")?;
        count(&self.0.counts.uploads);
        self.driver().upload(address, data)
    }

    pub(super) fn download(&self, address: u64, data: &mut [u8]) -> Result<()> {
        self.not_capturing("a synchronization")?;
        count(&self.0.counts.syncs);
        count(&self.0.counts.downloads);
        self.driver().download(address, data)
    }

    /// # Safety
    /// As [`Driver::copy_to_host`].
    pub(super) unsafe fn copy_to_host(&self, address: u64, to: *mut u8, bytes: usize) -> Result<()> {
        count(&self.0.counts.downloads);
        // SAFETY: guaranteed by the caller.
        unsafe { self.driver().copy_to_host(address, to, bytes) }
    }

    pub(super) fn wait_for_results(&self) -> Result<()> {
        self.not_capturing("a synchronization")?;
        count(&self.0.counts.waits);
        self.driver().wait()
    }

    /// A tensor map (`CUtensorMap`) for a kernel that copies boxes of a tensor by TMA: on Hopper and the simulator.
    ///
    /// # Errors
    /// The device cannot copy such boxes.
    pub fn tensor_map(&self, boxes: &TmaBoxes<'_>) -> Result<TensorMap> {
        self.driver().tensor_map(boxes)
    }

    /// Waits until everything enqueued so far is done.
    ///
    /// # Errors
    /// The device failed, or a graph is being captured.
    pub fn synchronize(&self) -> Result<()> {
        self.not_capturing("a synchronization")?;
        count(&self.0.counts.syncs);
        self.driver().wait()
    }

    /// The time that the device takes for the work that `work` enqueues: by events on a GPU, by the host's clock on the
    /// simulator.
    ///
    /// # Errors
    /// `work` or the device failed, or a graph is being captured.
    pub fn timed(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
        self.not_capturing("a measurement")?;
        let start = self.driver().mark()?;
        work()?;
        let end = self.driver().mark()?;
        count(&self.0.counts.syncs);
        self.driver().wait()?;
        start.until(&*end)
    }

    /// Enqueues a kernel, which may be your own. The wrappers in [`crate::kernels`] check shapes and call this.
    ///
    /// # Safety
    /// `args` are the bytes of a whole argument struct of the variant, and the addresses in them are memory of this
    /// device, as large as the kernel's contract requires.
    ///
    /// # Errors
    /// The variant was not built for this device; the device failed. The error names kernel, variant and shapes.
    pub unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        count(&self.0.counts.launches);
        // SAFETY: guaranteed by the caller.
        unsafe { self.driver().launch(launch) }
    }

    /// Counts a launch made by a library.
    #[cfg(feature = "cuda")]
    pub(super) fn count_launch(&self) {
        count(&self.0.counts.launches);
    }

    /// Records what `work` enqueues instead of running it. Memory that it uses lives as long as the graph, even if
    /// dropped before.
    ///
    /// # Errors
    /// `work` failed, or did what a graph cannot contain (allocate, upload, wait for the device); another capture is
    /// running.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        if self.0.capturing.swap(true, Ordering::AcqRel) {
            return Err(self.error("a graph is being captured already"));
        }
        let before = self.counters();
        let recording = self.driver().begin_capture().and_then(|()| {
            let done = work();
            // A failed capture is ended too, so that the stream stays usable.
            let recording = self.driver().end_capture();
            done.and(recording)
        });
        let launches = self.counters().launches - before.launches;
        let graph = recording.map(|recording| {
            self.0.captured.store(self.counters().allocations, Ordering::Release);
            self.0.graphs.fetch_add(1, Ordering::AcqRel);
            Graph { stream: self.clone(), recording: Mutex::new(recording), launches }
        });
        self.0.capturing.store(false, Ordering::Release);
        self.release_deferred();
        graph
    }

    /// Frees the memory dropped while there were graphs, once there are none.
    fn release_deferred(&self) {
        let mut deferred = self.0.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.graphs.load(Ordering::Acquire) == 0 {
            for (address, bytes) in deferred.drain(..) {
                self.driver().release(address, bytes);
            }
        }
    }

    pub(super) fn not_capturing(&self, what: &str) -> Result<()> {
        if self.0.capturing.load(Ordering::Acquire) {
            return Err(self.error(format_args!("{what} while a graph is being captured")));
        }
        Ok(())
    }

    fn error(&self, reason: impl ToString) -> Error {
        Error::Device { device: self.info().device.clone(), reason: reason.to_string() }
    }
}

/// Captured work that can be replayed.
pub struct Graph {
    stream: Stream,
    recording: Mutex<Box<dyn Recording>>,
    launches: u64,
}

impl Graph {
    /// The number of kernels in it.
    pub fn launches(&self) -> u64 {
        self.launches
    }

    /// Enqueues the captured work again.
    ///
    /// # Errors
    /// The device failed, or another graph is being captured.
    pub fn replay(&self) -> Result<()> {
        self.stream.not_capturing("a replay")?;
        count(&self.stream.0.counts.replays);
        self.recording.lock().unwrap_or_else(PoisonError::into_inner).replay()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.stream.0.graphs.fetch_sub(1, Ordering::AcqRel);
        self.stream.release_deferred();
    }
}
