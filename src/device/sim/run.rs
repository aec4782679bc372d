//! A launch, as the hooks need it: the running block, or the running cluster's blocks.
//!
//! Threads are numbered through a cluster, block by block, and shared memory is addressed in the same way.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;

use corosensei::Yielder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::block::{Call, State, Status, WARPGROUP};
use super::clocks::Clocks;
use super::counters::Counters;
use super::fault::FaultKind;
use super::memory::Buffer;
use super::shadow::Shadow;
use super::sites::{Site, Sites};

/// Alignment of a block's shared memory, for 128-byte swizzled tiles.
pub(super) const SHARED_ALIGNMENT: usize = 1024;
/// The most blocks a cluster may have on every device that has clusters.
pub(super) const MAX_BLOCKS: u32 = 8;
/// The most threads a block may have.
pub(super) const MAX_THREADS: u32 = 1024;

/// `burrstone_sim_thread` of csrc/sim/runtime.h.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct ThreadInfo {
    pub thread: u32,
    pub threads: u32,
    pub block: [u32; 3],
    pub grid: [u32; 3],
    /// The block's number in its cluster.
    pub rank: u32,
}

/// The shape of a run: one block, or the blocks of a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cluster {
    pub blocks: usize,
    /// Threads of a block.
    pub threads: usize,
    pub shared_bytes: usize,
}

impl Cluster {
    /// The distance of two blocks' shared memory.
    fn stride(self) -> usize {
        self.shared_bytes.next_multiple_of(SHARED_ALIGNMENT)
    }

    pub(super) fn all_threads(self) -> usize {
        self.blocks * self.threads
    }

    pub(super) fn all_shared_bytes(self) -> usize {
        self.blocks * self.stride()
    }

    /// The block of a thread, by its number in the cluster.
    pub(super) fn rank(self, thread: usize) -> usize {
        thread / self.threads
    }

    pub(super) fn threads_of(self, rank: usize) -> Range<usize> {
        rank * self.threads..(rank + 1) * self.threads
    }

    /// The offset of a byte of a block's shared memory in that of the cluster.
    pub(super) fn place(self, rank: usize, offset: u64) -> u64 {
        (rank * self.stride()) as u64 + offset
    }
}

/// A launch on this OS thread.
#[derive(Debug)]
pub(super) struct Run {
    pub info: Cell<ThreadInfo>,
    pub cluster: Cluster,
    /// The running thread.
    running: Cell<usize>,
    pub yielders: Vec<Cell<*const Yielder<(), ()>>>,
    pub state: RefCell<State>,
    /// Whether `State::counters` is set.
    pub counting: bool,
    pub shared: RefCell<Buffer>,
    pub shared_start: u64,
    /// Start and length of every live allocation, in order.
    pub global: Vec<(u64, u64)>,
    /// The allocation of the last access.
    pub last_global: Cell<(u64, u64)>,
}

impl Run {
    pub(super) fn new(cluster: Cluster, shared: Buffer, global: Vec<(u64, u64)>, seed: u64, count: bool) -> Self {
        let threads = cluster.all_threads();
        Run {
            info: Cell::default(),
            cluster,
            running: Cell::new(0),
            yielders: (0..threads).map(|_| Cell::new(std::ptr::null())).collect(),
            state: RefCell::new(State {
                random: ChaCha8Rng::seed_from_u64(seed),
                ready: Vec::new(),
                status: Vec::new(),
                clocks: Clocks::default(),
                shadow: Shadow::new(cluster.all_shared_bytes(), threads),
                sites: Sites::default(),
                counters: count.then(Counters::default),
                gatherings: Vec::new(),
                spare_records: Vec::new(),
                warp_syncs: Vec::new(),
                barriers: BTreeMap::new(),
                mbarriers: BTreeMap::new(),
                loads: Vec::new(),
                stores: Vec::new(),
                flights: Vec::new(),
                deferred: Vec::new(),
                remote: BTreeMap::new(),
                fault: None,
                switches: 0,
            }),
            counting: count,
            shared_start: shared.start().addr() as u64,
            shared: RefCell::new(shared),
            global,
            last_global: Cell::new((0, 0)),
        }
    }

    pub(super) fn shared(&self) -> *mut u8 {
        self.shared.borrow().start()
    }

    /// The running thread.
    pub(super) fn thread(&self) -> usize {
        self.running.get()
    }

    /// The running thread's block.
    pub(super) fn rank(&self) -> usize {
        self.cluster.rank(self.thread())
    }

    /// The first thread of the running thread's warpgroup.
    pub(super) fn warpgroup(&self) -> usize {
        let first = self.cluster.threads_of(self.rank()).start;
        first + (self.thread() - first) / WARPGROUP * WARPGROUP
    }

    /// Starts the blocks from `first` on along x.
    pub(super) fn begin(&self, first: [u32; 3], grid: [u32; 3]) {
        self.info.set(ThreadInfo { thread: 0, threads: self.cluster.threads as u32, block: first, grid, rank: 0 });
        self.shared.borrow_mut().poison();
        self.state.borrow_mut().begin(self.cluster.all_threads());
    }

    /// Makes `thread` the running one; `first` is the cluster's first block.
    pub(super) fn switch_to(&self, thread: usize, first: [u32; 3]) {
        let (mut info, rank) = (self.info.get(), self.cluster.rank(thread) as u32);
        (info.rank, info.block[0]) = (rank, first[0] + rank);
        info.thread = (thread % self.cluster.threads) as u32;
        self.info.set(info);
        self.running.set(thread);
    }

    /// Records that a thread has returned. With its last thread a block ends, and its memory must not be accessed any
    /// more.
    pub(super) fn finish(&self, thread: usize) {
        let mut state = self.state.borrow_mut();
        state.status[thread] = Status::Finished;
        let rank = self.cluster.rank(thread);
        if !state.has_ended(self.cluster.threads_of(rank)) {
            return;
        }
        let known = |(of, other): (usize, usize), epoch| {
            of != rank || self.cluster.threads_of(rank).any(|own| state.clocks.ordered(other, epoch, own))
        };
        let late = state.remote.iter().find(|&(&key, &(epoch, _))| !known(key, epoch));
        if let Some((&(_, other), &(_, site))) = late {
            let fault = (other as u32, FaultKind::BlockEnded { rank: rank as u32 }, site.place());
            state.fault.get_or_insert(fault);
        }
    }

    /// Lets other fibers run until this one is ready again.
    pub(super) fn suspend(&self) {
        let yielder = self.yielders[self.thread()].get();
        // SAFETY: the scheduler resumes a fiber only through its coroutine, which stored its yielder here before it ran
        // any kernel code; the yielder lives as long as the coroutine's function.
        unsafe { (*yielder).suspend(()) }
    }

    /// Waits in `call` until another thread wakes this one.
    pub(super) fn wait(&self, call: Call) {
        self.state.borrow_mut().status[self.thread()] = Status::Waiting(call);
        self.suspend();
    }

    /// Ends the launch; this fiber never runs again.
    pub(super) fn fault(&self, kind: FaultKind, site: Site) -> ! {
        self.state.borrow_mut().fault.get_or_insert((self.thread() as u32, kind, site.place()));
        loop {
            self.suspend();
        }
    }
}
