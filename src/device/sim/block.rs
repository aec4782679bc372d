//! State of a running block, or of the blocks of a running cluster: what its threads wait for, and what the checks
//! need.
//!
//! All state that hooks change is in one `RefCell`, which is never borrowed while another fiber runs.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng as _;

use super::clocks::Clocks;
use super::copies::{Flight, Groups, Load, Store, land_load, land_store};
use super::counters::Counters;
use super::fault::{FaultKind, Place, Waiting};
use super::mbarriers::Mbarrier;
use super::shadow::Shadow;
use super::sites::{Site, Sites};

pub(super) const WARP: usize = 32;
/// Threads that execute a `wgmma` together.
pub(super) const WARPGROUP: usize = 128;

/// Nominal start of the shared memory window, so that address 0 is invalid; a multiple of every alignment in use.
pub(super) const WINDOW: u64 = 1024;

/// A primitive's name and its call site.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    what: *const c_char,
    pub site: Site,
}

impl Call {
    /// # Safety
    /// `what` is a string with static lifetime.
    pub(super) unsafe fn new(what: *const c_char, site: Site) -> Self {
        Call { what, site }
    }

    pub(super) fn named(what: &'static CStr, site: Site) -> Self {
        Call { what: what.as_ptr(), site }
    }

    fn describe(self) -> (String, Place) {
        // SAFETY: both constructors take strings with static lifetime.
        let what = unsafe { CStr::from_ptr(self.what) }.to_string_lossy().into_owned();
        (what, self.site.place())
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Status {
    Ready,
    Waiting(Call),
    Finished,
}

pub(super) type Collective = unsafe extern "C" fn(*const *mut c_void);

pub(super) type DeferredWork = unsafe extern "C" fn(*const u64);

/// A product that a warpgroup has started: a function of the primitive's host body, and the data it was started with.
#[derive(Debug)]
pub(super) struct Deferred {
    pub work: DeferredWork,
    pub data: Vec<u64>,
    pub target: usize,
}

/// Lanes that have reached a collective, of all that must.
#[derive(Debug)]
pub(super) struct Gathering {
    pub run: Collective,
    pub first: usize,
    pub mask: u32,
    /// The call site of the first lane.
    pub site: Site,
    pub arrived: usize,
    /// By lane; null for lanes that have not arrived or do not take part.
    pub records: Vec<*mut c_void>,
}

/// One of a block's barriers by its number, or the cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum BarrierId {
    Block { rank: usize, id: u32 },
    Cluster,
}

/// A `sync_warp` that some of its lanes have reached.
#[derive(Debug)]
pub(super) struct WarpSync {
    pub warp: usize,
    pub mask: u32,
    pub arrived: u32,
}

#[derive(Debug)]
pub(super) struct Barrier {
    pub expected: u32,
    pub arrived: u32,
    /// The call site of each warp's first lane.
    pub sites: BTreeMap<usize, Site>,
    pub waiting: Vec<usize>,
    pub released: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct State {
    pub random: ChaCha8Rng,
    pub ready: Vec<usize>,
    pub status: Vec<Status>,
    pub clocks: Clocks,
    pub shadow: Shadow,
    pub sites: Sites,
    pub counters: Option<Counters>,
    pub gatherings: Vec<Gathering>,
    pub spare_records: Vec<Vec<*mut c_void>>,
    pub warp_syncs: Vec<WarpSync>,
    pub barriers: BTreeMap<BarrierId, Barrier>,
    /// By offset in the shared memory of the cluster.
    pub mbarriers: BTreeMap<u64, Mbarrier>,
    /// By thread.
    pub loads: Vec<Groups<Load>>,
    pub stores: Vec<Groups<Store>>,
    pub flights: Vec<Flight>,
    /// By the first warp of a warpgroup.
    pub deferred: Vec<Groups<Deferred>>,
    /// By block and thread of another block: the thread's last access to the block's shared memory, and where it came from.
    pub remote: BTreeMap<(usize, usize), (u32, Site)>,
    pub fault: Option<(u32, FaultKind, Place)>,
    pub switches: u64,
}

impl State {
    pub(super) fn begin(&mut self, threads: usize) {
        self.ready.clear();
        self.ready.extend(0..threads);
        self.status.clear();
        self.status.resize(threads, Status::Ready);
        self.clocks.reset(threads);
        self.shadow.reset();
        self.gatherings.clear();
        self.warp_syncs.clear();
        self.barriers.clear();
        self.mbarriers.clear();
        self.loads.clear();
        self.loads.resize_with(threads, Groups::default);
        self.stores.clear();
        self.stores.resize_with(threads, Groups::default);
        self.flights.clear();
        self.deferred.clear();
        self.deferred.resize_with(threads.div_ceil(WARP), Groups::default);
        self.remote.clear();
    }

    pub(super) fn has_ended(&self, mut threads: Range<usize>) -> bool {
        threads.all(|thread| matches!(self.status[thread], Status::Finished))
    }

    /// A random ready fiber.
    pub(super) fn next(&mut self) -> Option<usize> {
        if self.ready.is_empty() {
            return None;
        }
        // The bias of 2^-54 does not matter here.
        let at = (u64::from(self.random.next_u32()) * self.ready.len() as u64) >> 32;
        Some(self.ready.swap_remove(at as usize))
    }

    /// Completes a load. Other threads see its bytes from `epoch` of its thread on.
    pub(super) fn land(&mut self, load: &Load, epoch: u32, shared: *mut u8) {
        // SAFETY: the hooks that start copies check source and destination, and `shared` is the block's own.
        unsafe { land_load(load, shared, WINDOW) };
        self.shadow.land(load.to, load.bytes, load.thread, epoch, load.bulk, load.site);
    }

    pub(super) fn land_stores(&mut self, thread: usize, pending: usize, shared: *const u8) {
        while let Some(group) = self.stores[thread].take(pending) {
            for store in group {
                // SAFETY: as in `land`.
                unsafe { land_store(&store, shared, WINDOW) };
            }
        }
    }

    /// Completes a random copy that reports to an mbarrier, if there is one. Called when no thread can continue without
    /// it.
    pub(super) fn land_any_flight(&mut self, shared: *mut u8) -> bool {
        if self.flights.is_empty() {
            return false;
        }
        let at = self.random.next_u32() as usize % self.flights.len();
        self.land_flight(at, shared);
        true
    }

    pub(super) fn land_flight(&mut self, at: usize, shared: *mut u8) {
        let flight = self.flights.swap_remove(at);
        for load in &flight.loads {
            self.land(load, flight.released[load.thread], shared);
        }
        let Some(barrier) = self.mbarriers.get_mut(&flight.mbarrier) else {
            return;
        };
        barrier.released.iter_mut().zip(&flight.released).for_each(|(a, b)| *a = (*a).max(*b));
        if flight.bytes == 0 {
            // An arrival beyond the count is found as a phase that never ends.
            let _ = barrier.arrive();
        }
        barrier.land(flight.bytes);
        self.advance(flight.mbarrier);
    }

    /// Wakes the threads that wait at an mbarrier, if its phase is complete.
    pub(super) fn advance(&mut self, mbarrier: u64) {
        let Some(barrier) = self.mbarriers.get_mut(&mbarrier) else {
            return;
        };
        for thread in barrier.advance() {
            self.clocks.acquire(thread, &barrier.completed);
            self.status[thread] = Status::Ready;
            self.ready.push(thread);
        }
    }

    /// Asynchronous work that an ended block has not waited for.
    pub(super) fn unfinished(&self) -> Option<&'static str> {
        if !self.flights.is_empty() {
            return Some("the block ended with copies to shared memory in flight");
        }
        if self.stores.iter().any(|stores| !stores.is_empty()) {
            return Some("a thread ended with bulk stores that it has not waited for");
        }
        if self.deferred.iter().any(|work| !work.is_empty()) {
            return Some("a warpgroup ended with products that it has not waited for");
        }
        None
    }

    pub(super) fn wake(&mut self, thread: usize) {
        self.status[thread] = Status::Ready;
        self.ready.push(thread);
    }

    pub(super) fn any_waits(&self) -> bool {
        self.status.iter().any(|status| matches!(status, Status::Waiting(_)))
    }

    /// Called when no fiber can run: all have finished, or it returns the reason.
    pub(super) fn end(&self) -> Result<(), (u32, FaultKind, Place)> {
        if let Some(stuck) = self.stuck() {
            return Err(stuck);
        }
        match self.unfinished() {
            None => Ok(()),
            Some(what) => {
                let place = Place { file: "end of the block".to_owned(), line: 0 };
                Err((0, FaultKind::Misuse { what: what.to_owned() }, place))
            }
        }
    }

    /// The groups of waiting threads, with one of the threads; `None` if all have finished.
    fn stuck(&self) -> Option<(u32, FaultKind, Place)> {
        let mut groups: Vec<Waiting> = Vec::new();
        let mut first = None;
        for (thread, status) in self.status.iter().enumerate() {
            let at = match status {
                Status::Waiting(call) => Some(call.describe()),
                Status::Ready | Status::Finished => None,
            };
            if let (Some((_, place)), None) = (&at, &first) {
                first = Some((thread as u32, place.clone()));
            }
            match groups.iter_mut().find(|group| group.at == at) {
                Some(group) => group.threads += 1,
                None => groups.push(Waiting { threads: 1, at }),
            }
        }
        first.map(|(thread, place)| (thread, FaultKind::DivergentBarrier { groups }, place))
    }
}
