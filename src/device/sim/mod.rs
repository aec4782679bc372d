//! A GPU in software: runs the CUDA kernels, compiled for this machine's processor, and checks their memory accesses
//! and synchronization.
//!
//! Every CUDA thread is a fiber; one block, or one cluster, runs at a time. Fibers switch where threads wait: at
//! barriers, shuffles and other collectives. The next fiber is drawn from a seed, and so is the order of blocks, so
//! that a result that depends on the order differs between seeds. Every memory access is checked for bounds and
//! alignment, in shared memory also for reads of unwritten bytes and for accesses that no barrier orders.

mod block;
mod clocks;
mod copies;
mod copy_hooks;
mod counters;
mod deferred;
mod fault;
mod hook_table;
mod hooks;
mod kernels;
mod mbarriers;
mod meetings;
mod memory;
mod run;
mod shadow;
mod sites;
mod stacks;
mod tensor_map;

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

use corosensei::{Coroutine, CoroutineResult};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use block::WARP;
pub use counters::{SiteStats, Space};
pub use fault::{Fault, FaultKind, Place, Waiting};
use kernels::Entry;
pub use kernels::load_kernels;
#[cfg(feature = "engine")]
pub(crate) use kernels::require_kernels;
pub use memory::DeviceMemoryError;
use memory::{Buffer, Memory};
use run::{Cluster, MAX_BLOCKS, MAX_THREADS, Run, SHARED_ALIGNMENT};
use stacks::{FiberStack, Stacks};
pub use tensor_map::{TensorMap, TensorMapError};

pub use super::tensor::Swizzle;
use super::variant::Variant;

/// Alignment of an argument struct, which may hold a tensor map.
const ARGS_ALIGNMENT: usize = 64;
/// Largest shared memory of a block on any architecture (sm_90).
const MAX_SHARED_BYTES: u32 = 227 << 10;

/// Statistics of a launch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaunchStats {
    pub blocks: u64,
    /// Switches between fibers.
    pub switches: u64,
    /// The cost of every call site that accesses memory; empty unless counting is on.
    pub sites: Vec<SiteStats>,
}

/// The simulated device. Launches on one simulator exclude each other; several simulators run side by side.
#[derive(Debug)]
pub struct Simulator {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    memory: Memory,
    seeds: ChaCha8Rng,
    count: bool,
}

impl Simulator {
    /// A device with `memory` bytes. The seed decides every order that CUDA leaves undefined.
    pub fn new(memory: u64, seed: u64) -> Self {
        let (memory, seeds) = (Memory::new(memory), ChaCha8Rng::seed_from_u64(seed));
        Simulator { inner: Mutex::new(Inner { memory, seeds, count: false }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns on counting of wavefronts and sectors by call site, for later launches.
    pub fn count_accesses(&self, count: bool) {
        self.lock().count = count;
    }

    /// Bytes in use, and the device's total.
    pub fn memory(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.memory.used(), inner.memory.budget())
    }

    /// Allocates memory at a multiple of 256 bytes, filled with NaN.
    ///
    /// # Errors
    /// The device's memory is exhausted.
    pub fn alloc(&self, bytes: u64) -> Result<u64, DeviceMemoryError> {
        self.lock().memory.alloc(bytes)
    }

    /// # Errors
    /// The address is not that of a live allocation.
    pub fn free(&self, address: u64) -> Result<(), DeviceMemoryError> {
        self.lock().memory.free(address)
    }

    /// # Errors
    /// The bytes are not inside one allocation.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceMemoryError> {
        let inner = self.lock();
        let to = inner.memory.range(address, bytes.len() as u64)?;
        // SAFETY: `range` has checked the bytes, and the lock excludes kernels and other copies.
        unsafe { to.copy_from(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// # Errors
    /// The bytes are not inside one allocation.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), DeviceMemoryError> {
        let inner = self.lock();
        let from = inner.memory.range(address, bytes.len() as u64)?;
        // SAFETY: as in `write`.
        unsafe { from.copy_to(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies within the device; the ranges may overlap.
    ///
    /// # Errors
    /// The bytes of either range are not inside one allocation.
    pub fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<(), DeviceMemoryError> {
        let inner = self.lock();
        let (from, to) = (inner.memory.range(from, bytes)?, inner.memory.range(to, bytes)?);
        // SAFETY: as in `write`.
        unsafe { to.copy_from(from, bytes as usize) };
        Ok(())
    }

    /// # Errors
    /// The bytes are not inside one allocation.
    pub fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<(), DeviceMemoryError> {
        let inner = self.lock();
        let to = inner.memory.range(address, bytes)?;
        // SAFETY: as in `write`.
        unsafe { to.write_bytes(value, bytes as usize) };
        Ok(())
    }

    /// Runs all blocks of `grid`, `cluster` neighbours along x together. `args` are the bytes of the variant's argument
    /// struct.
    ///
    /// # Errors
    /// The kernel's first fault; its writes up to there remain. Or there is no code for the variant.
    ///
    /// # Safety
    /// The variant's code is a kernel built with `csrc/common/kernel.cuh`, and `args` are a whole value of its argument
    /// struct.
    pub unsafe fn launch(
        &self,
        variant: &Variant,
        grid: [u32; 3],
        cluster: u32,
        args: &[u8],
    ) -> Result<LaunchStats, Fault> {
        let refused = |what: String| Fault {
            kernel: variant.name.to_owned(),
            block: [0; 3],
            thread: 0,
            kind: Box::new(FaultKind::Misuse { what }),
            place: Place { file: "launch".to_owned(), line: 0 },
        };
        let entry = kernels::entry(variant.name).map_err(refused)?;
        let threads = variant.threads;
        if threads == 0 || threads > MAX_THREADS || !threads.is_multiple_of(WARP as u32) {
            return Err(refused(format!("{threads} threads a block, expected whole warps of 1 to {MAX_THREADS}")));
        }
        if cluster == 0 || cluster > MAX_BLOCKS || !grid[0].is_multiple_of(cluster) {
            let grid = grid[0];
            return Err(refused(format!(
                "{grid} blocks in clusters of {cluster}: expected 1 to {MAX_BLOCKS} that divide"
            )));
        }
        if cluster > 1 && variant.archs.iter().any(|arch| *arch < 90) {
            return Err(refused("a cluster, but clusters need sm_90".to_owned()));
        }
        if grid.contains(&0) {
            return Err(refused(format!("an empty grid {grid:?}")));
        }
        let shared_bytes = entry.shared_bytes;
        let cluster =
            Cluster { blocks: cluster as usize, threads: threads as usize, shared_bytes: shared_bytes as usize };
        let shared = (shared_bytes <= MAX_SHARED_BYTES)
            .then(|| Buffer::poisoned(cluster.all_shared_bytes(), SHARED_ALIGNMENT))
            .flatten()
            .ok_or_else(|| refused(format!("{shared_bytes} bytes of shared memory, at most {MAX_SHARED_BYTES}")))?;
        let copied = Buffer::poisoned(args.len(), ARGS_ALIGNMENT)
            .ok_or_else(|| refused(format!("no memory for {} bytes of arguments", args.len())))?;
        // SAFETY: the buffer has at least as many bytes.
        unsafe { copied.start().copy_from(args.as_ptr(), args.len()) };

        let mut inner = self.lock();
        let seed = inner.seeds.next_u64();
        let bounds = inner.memory.bounds().to_vec();
        let run = Run::new(cluster, shared, bounds, seed, inner.count);
        let mut stats = LaunchStats::default();
        let mut stacks = Stacks::take(cluster.all_threads());
        let mut ended = Ok(());
        for first in shuffled_clusters(grid, cluster.blocks as u32, seed) {
            run.begin(first, grid);
            let one = run_cluster(&run, first, &entry, copied.start().cast_const().cast(), &mut stacks);
            ended = one.map_err(|(thread, kind, place)| {
                let [x, y, z] = first;
                Fault {
                    kernel: variant.name.to_owned(),
                    block: [x + thread / threads, y, z],
                    thread: thread % threads,
                    kind: Box::new(kind),
                    place,
                }
            });
            if ended.is_err() {
                break;
            }
            stats.blocks += cluster.blocks as u64;
        }
        stacks.keep();
        ended?;
        let state = run.state.borrow();
        stats.switches = state.switches;
        stats.sites = state.counters.as_ref().map(|c| c.report(&state.sites)).unwrap_or_default();
        Ok(stats)
    }
}

/// The first block of each cluster, in an order drawn from the seed.
fn shuffled_clusters([width, height, depth]: [u32; 3], cluster: u32, seed: u64) -> Vec<[u32; 3]> {
    let mut random = ChaCha8Rng::seed_from_u64(!seed);
    let row = |y, z| (0..width).step_by(cluster as usize).map(move |x| [x, y, z]);
    let mut blocks: Vec<[u32; 3]> = (0..depth).flat_map(|z| (0..height).flat_map(move |y| row(y, z))).collect();
    for i in (1..blocks.len()).rev() {
        let j = random.next_u64() % (i as u64 + 1);
        blocks.swap(i, j as usize);
    }
    blocks
}

/// Runs the current blocks of `run`.
fn run_cluster(
    run: &Run,
    first: [u32; 3],
    entry: &Entry,
    args: *const c_void,
    stacks: &mut Stacks,
) -> Result<(), (u32, FaultKind, Place)> {
    let _entered = hooks::Entered::new(run);
    let threads = run.cluster.all_threads();
    let mut fibers = Vec::with_capacity(threads);
    for thread in 0..threads {
        let stack = stacks.pop().map_err(|e| {
            let what = format!("no memory for the stack of a fiber: {e}");
            (thread as u32, FaultKind::Misuse { what }, Place { file: "launch".to_owned(), line: 0 })
        })?;
        let shared = run.shared_start + run.cluster.place(run.cluster.rank(thread), 0);
        let (run, entry) = (std::ptr::from_ref(run), entry.run);
        fibers.push(Coroutine::with_stack(stack, move |yielder, ()| {
            // SAFETY: the run outlives its fibers, which end in this function.
            unsafe { &*run }.yielders[thread].set(yielder);
            let shared = std::ptr::with_exposed_provenance_mut(shared as usize);
            // SAFETY: `args` are guaranteed by the caller of `launch`, and `shared` has the size of the entry; both
            // live until the block ends. The hooks check all other memory that kernels access.
            unsafe { entry(args, shared) };
        }));
    }
    let ended = schedule(run, first, &mut fibers);
    for mut fiber in fibers {
        if !fiber.done() {
            // SAFETY: a fiber is suspended in a hook or has not started. Kernels are C++ without destructors, and the
            // hooks hold nothing that must be dropped across a switch.
            unsafe { fiber.force_reset() };
        }
        stacks.push(fiber.into_stack());
    }
    ended
}

/// Resumes fibers until all have finished, one has faulted, or none can run.
fn schedule(
    run: &Run,
    first: [u32; 3],
    fibers: &mut [Coroutine<(), (), (), FiberStack>],
) -> Result<(), (u32, FaultKind, Place)> {
    loop {
        let next = {
            let mut state = run.state.borrow_mut();
            if let Some(fault) = state.fault.take() {
                return Err(fault);
            }
            state.switches += 1;
            state.next()
        };
        let Some(thread) = next else {
            let mut state = run.state.borrow_mut();
            if state.any_waits() && state.land_any_flight(run.shared()) {
                continue;
            }
            if let Some(counters) = &mut state.counters {
                counters.end_block();
            }
            return state.end();
        };
        run.switch_to(thread, first);
        if let CoroutineResult::Return(()) = fibers[thread].resume(()) {
            run.finish(thread);
        }
    }
}
