//! The simulator as a device: work runs when it is enqueued, or is recorded.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::driver::{DeviceInfo, Driver, Launch, Mark, Recording};
use super::gpu_spec::GpuSpec;
use super::sim::{self, LaunchStats, Simulator};
use super::stream::Stream;
use super::tensor::{TensorMap, TmaBoxes};
use super::variant::{ARCHS, Variant};
use crate::error::{Error, Result};

/// Options of a simulated GPU.
#[derive(Clone, Copy, Debug)]
pub struct SimOptions {
    /// The simulated architecture: one of [`ARCHS`].
    pub arch: u32,
    /// SMs, so that plans are those of a GPU with as many; the simulator runs one block, or cluster, at a time. `None`:
    /// those of the architecture's default GPU.
    pub sms: Option<u32>,
    /// Decides every order that CUDA leaves undefined.
    pub seed: u64,
    pub memory_bytes: u64,
    /// Count the memory accesses of launches, for [`Stream::take_launch_stats`].
    pub count: bool,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self { arch: 80, sms: None, seed: 0, memory_bytes: 16 << 30, count: false }
    }
}

impl Stream {
    /// A simulated GPU.
    ///
    /// # Errors
    /// There is no such architecture.
    pub fn sim(options: SimOptions) -> Result<Self> {
        if !ARCHS.contains(&options.arch) {
            return Err(Error::request("sim-arch", format!("one of {ARCHS:?}"), options.arch));
        }
        let simulator = Simulator::new(options.memory_bytes, options.seed);
        simulator.count_accesses(options.count);
        let info = DeviceInfo {
            device: "sim".to_owned(),
            name: format!("simulated sm_{}", options.arch),
            arch: options.arch,
            sms: options.sms.unwrap_or(GpuSpec::of_arch(options.arch).sms),
            memory_bytes: options.memory_bytes,
        };
        let machine = Machine { simulator, count: options.count, stats: Mutex::default() };
        Ok(Self::new(Box::new(Sim { info, machine: Arc::new(machine), recording: Mutex::default() })))
    }

    /// Statistics of each launch since the last call, by variant, if [`SimOptions::count`] is set.
    pub fn take_launch_stats(&self) -> Vec<(&'static str, LaunchStats)> {
        self.driver().take_launch_stats()
    }
}

struct Sim {
    info: DeviceInfo,
    machine: Arc<Machine>,
    /// The work enqueued since a capture began; `None` outside a capture.
    recording: Mutex<Option<Vec<Work>>>,
}

/// Runs the work; shared with recordings.
struct Machine {
    simulator: Simulator,
    count: bool,
    stats: Mutex<Vec<(&'static str, LaunchStats)>>,
}

/// One enqueued operation.
enum Work {
    Launch { variant: &'static Variant, grid: [u32; 3], cluster: u32, args: Vec<u8>, shape: String },
    CopyToHost { address: u64, to: HostAddress, bytes: usize },
    Clear { address: u64, bytes: usize },
}

/// Host memory that a recorded copy writes to.
#[derive(Clone, Copy)]
struct HostAddress(*mut u8);

// SAFETY: an address. The recording's contract is that the memory exists at every replay, and that nothing reads it
// meanwhile.
unsafe impl Send for HostAddress {}

fn failed(reason: impl ToString) -> Error {
    Error::Device { device: "sim".to_owned(), reason: reason.to_string() }
}

impl Machine {
    fn run(&self, work: &Work) -> Result<()> {
        match work {
            Work::Launch { variant, grid, cluster, args, shape } => {
                // SAFETY: the enqueuer guarantees that these are the variant's arguments.
                let stats = unsafe { self.simulator.launch(variant, *grid, *cluster, args) }
                    .map_err(|fault| failed(format_args!("{fault} ({shape})")))?;
                if self.count {
                    self.stats.lock().unwrap_or_else(PoisonError::into_inner).push((variant.name, stats));
                }
            }
            Work::CopyToHost { address, to, bytes } => {
                // SAFETY: the enqueuer guarantees that there is room, and that nothing reads it meanwhile.
                let to = unsafe { std::slice::from_raw_parts_mut(to.0, *bytes) };
                self.simulator.read(*address, to).map_err(failed)?;
            }
            Work::Clear { address, bytes } => self.simulator.fill(*address, 0, *bytes as u64).map_err(failed)?,
        }
        Ok(())
    }
}

impl Sim {
    fn recording(&self) -> MutexGuard<'_, Option<Vec<Work>>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, work: Work) -> Result<()> {
        if let Some(recorded) = &mut *self.recording() {
            recorded.push(work);
            return Ok(());
        }
        self.machine.run(&work)
    }
}

impl Driver for Sim {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn fails_for_good(&self) -> bool {
        false
    }

    fn free_bytes(&self) -> Result<u64> {
        let (used, budget) = self.machine.simulator.memory();
        Ok(budget.saturating_sub(used))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.machine.simulator.alloc(bytes.max(1) as u64).map_err(failed)
    }

    fn release(&self, address: u64, _bytes: usize) {
        // Every address here was allocated, and is freed once.
        let _ = self.machine.simulator.free(address);
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.enqueue(Work::Clear { address, bytes })
    }

    fn upload(&self, address: u64, data: &[u8]) -> Result<()> {
        self.machine.simulator.write(address, data).map_err(failed)
    }

    fn download(&self, address: u64, data: &mut [u8]) -> Result<()> {
        self.machine.simulator.read(address, data).map_err(failed)
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8> {
        // Allocated as u64, because the memory is read as numbers of up to 8 bytes.
        let words = vec![0u64; bytes.div_ceil(8)].into_boxed_slice();
        Ok(Box::into_raw(words).cast())
    }

    unsafe fn release_host(&self, memory: *mut u8, bytes: usize) {
        let words = std::ptr::slice_from_raw_parts_mut(memory.cast::<u64>(), bytes.div_ceil(8));
        // SAFETY: `allocate_host` made this box, with as many bytes.
        drop(unsafe { Box::from_raw(words) });
    }

    unsafe fn copy_to_host(&self, address: u64, to: *mut u8, bytes: usize) -> Result<()> {
        self.enqueue(Work::CopyToHost { address, to: HostAddress(to), bytes })
    }

    fn tensor_map(&self, boxes: &TmaBoxes<'_>) -> Result<TensorMap> {
        let TmaBoxes { address, element_bytes, dims, strides, sides, swizzle } = *boxes;
        let map = sim::TensorMap::tiled(address, element_bytes, dims, strides, sides, swizzle).map_err(failed)?;
        Ok(bytemuck::cast(map.to_bytes()))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.enqueue(Work::Launch {
            variant: launch.variant,
            grid: launch.grid,
            cluster: launch.cluster,
            args: launch.args.to_vec(),
            shape: launch.shape.to_string(),
        })
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn mark(&self) -> Result<Box<dyn Mark>> {
        Ok(Box::new(Instant::now()))
    }

    fn begin_capture(&self) -> Result<()> {
        *self.recording() = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Recording>> {
        let work = self.recording().take().ok_or_else(|| failed("no capture is under way"))?;
        Ok(Box::new(Recorded { machine: Arc::clone(&self.machine), work }))
    }

    fn take_launch_stats(&self) -> Vec<(&'static str, LaunchStats)> {
        std::mem::take(&mut *self.machine.stats.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Work runs when it is enqueued, so the host's clock times it.
impl Mark for Instant {
    fn until(&self, end: &dyn Mark) -> Result<Duration> {
        let end: &dyn Any = end;
        end.downcast_ref::<Self>()
            .map(|end| end.duration_since(*self))
            .ok_or_else(|| failed("a mark of another device"))
    }
}

struct Recorded {
    machine: Arc<Machine>,
    work: Vec<Work>,
}

impl Recording for Recorded {
    fn replay(&self) -> Result<()> {
        self.work.iter().try_for_each(|work| self.machine.run(work))
    }
}
