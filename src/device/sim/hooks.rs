//! The functions that csrc/sim/runtime.h declares, called by simulated primitives; here those for memory accesses.
//!
//! They run on fibers and may switch away from them, so no value that must be dropped lives across a `wait`; a fiber
//! that faulted is never resumed or unwound.

use std::cell::Cell;
use std::ffi::{c_char, c_void};

use super::block::WINDOW;
use super::counters::Space;
use super::fault::FaultKind;
use super::run::{Run, ThreadInfo};
use super::shadow::{Access, By};
use super::sites::{Site, SiteId};

/// From this bit on, an address in the window of the cluster holds the block's number plus one; 0 stands for the
/// thread's own block.
pub(super) const RANK_BIT: u32 = 24;

thread_local! {
    /// The launch that runs on this OS thread.
    static CURRENT: Cell<*const Run> = const { Cell::new(std::ptr::null()) };
}

/// Makes `run` the current launch of this OS thread, until dropped.
pub(super) struct Entered(*const Run);

impl Entered {
    pub(super) fn new(run: &Run) -> Self {
        Entered(CURRENT.replace(run))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

pub(super) fn run<'a>() -> &'a Run {
    // SAFETY: only kernel code calls hooks, and it runs inside `Simulator::launch`, which keeps the run alive and
    // entered while any of its fibers can run.
    unsafe { &*CURRENT.get() }
}

fn access(code: u32) -> Access {
    match code {
        1 => Access::Store,
        2 => Access::Atomic,
        3 => Access::AsyncLoad,
        _ => Access::Load,
    }
}

pub(super) extern "C" fn hook_current() -> *const ThreadInfo {
    run().info.as_ptr()
}

/// # Safety
/// `file` of every hook is a string literal in the kernel's code.
pub(super) unsafe extern "C" fn hook_global(address: u64, bytes: u32, code: u32, file: *const c_char, line: u32) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    check_global(run, address, u64::from(bytes), site);
    if !address.is_multiple_of(u64::from(bytes)) {
        run.fault(FaultKind::Misaligned { address, bytes }, site);
    }
    count(run, Space::Global, site, access(code), address, bytes);
}

/// Faults unless one live allocation holds the bytes.
pub(super) fn check_global(run: &Run, address: u64, bytes: u64, site: Site) {
    let inside = |(start, len): (u64, u64)| address >= start && bytes <= len && address - start <= len - bytes;
    if inside(run.last_global.get()) {
        return;
    }
    let after = run.global.partition_point(|(start, _)| *start <= address);
    let below = after.checked_sub(1).map(|i| run.global[i]);
    let above = run.global.get(after).copied();
    match below.filter(|allocation| inside(*allocation)) {
        Some(allocation) => run.last_global.set(allocation),
        None => {
            let nearest = match (below, above) {
                (Some(below), Some(above))
                    if above.0 - address < address - below.0.saturating_add(below.1).min(address) =>
                {
                    Some(above)
                }
                (below, above) => below.or(above),
            };
            run.fault(FaultKind::OutOfBoundsGlobal { address, bytes: bytes as u32, nearest }, site)
        }
    }
}

fn count(run: &Run, space: Space, site: Site, access: Access, address: u64, bytes: u32) {
    if !run.counting {
        return;
    }
    let mut state = run.state.borrow_mut();
    let state = &mut *state;
    if let Some(counters) = &mut state.counters {
        counters.access(space, state.sites.id(site), access, run.thread(), address, bytes);
    }
}

/// # Safety
/// As `hook_global`.
pub(super) unsafe extern "C" fn hook_shared(
    array: u64,
    array_bytes: u32,
    offset: u64,
    bytes: u32,
    code: u32,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    if offset + u64::from(bytes) > u64::from(array_bytes) {
        let of = u64::from(array_bytes);
        run.fault(FaultKind::OutOfBoundsShared { offset, bytes, of }, site);
    }
    let own = run.shared_start + run.cluster.place(run.rank(), 0);
    shared(run, run.rank(), (array + offset).wrapping_sub(own), bytes, access(code), site);
}

/// # Safety
/// As `hook_global`.
pub(super) unsafe extern "C" fn hook_shared_at(
    address: u32,
    bytes: u32,
    code: u32,
    file: *const c_char,
    line: u32,
) -> *mut c_void {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    let offset = u64::from(address).wrapping_sub(WINDOW);
    shared(run, run.rank(), offset, bytes, access(code), site);
    std::ptr::with_exposed_provenance_mut((run.shared_start + run.cluster.place(run.rank(), offset)) as usize)
}

/// Checks and records an access of the running thread to the shared memory of a block of its cluster.
pub(super) fn shared(run: &Run, rank: usize, offset: u64, bytes: u32, access: Access, site: Site) -> SiteId {
    if !offset.is_multiple_of(u64::from(bytes)) {
        run.fault(FaultKind::Misaligned { address: offset, bytes }, site);
    }
    shared_range(run, rank, offset, u64::from(bytes), access, site)
}

/// The same without a check of alignment.
pub(super) fn shared_range(run: &Run, rank: usize, offset: u64, bytes: u64, access: Access, site: Site) -> SiteId {
    let of = run.cluster.shared_bytes as u64;
    if offset >= of || bytes > of - offset {
        run.fault(FaultKind::OutOfBoundsShared { offset, bytes: bytes as u32, of }, site);
    }
    let (thread, place) = (run.thread(), run.cluster.place(rank, offset));
    if rank != run.rank() {
        note_remote(run, rank, site);
    }
    let (id, checked) = {
        let mut state = run.state.borrow_mut();
        let state = &mut *state;
        let id = state.sites.id(site);
        // Accesses of the async proxy, and those wider than a lane's, are not counted.
        if let Some(counters) = state.counters.as_mut().filter(|_| access != Access::AsyncLoad && bytes <= 16) {
            counters.access(Space::Shared, id, access, thread, place, bytes as u32);
        }
        let by = By { thread, site: id, clocks: &state.clocks, sites: &state.sites };
        (id, state.shadow.access(place as usize, bytes as usize, access, by))
    };
    if let Err(kind) = checked {
        run.fault(kind, site);
    }
    id
}

/// Records an access to another block's shared memory. Faults if that block has ended.
fn note_remote(run: &Run, rank: usize, site: Site) {
    let ended = {
        let mut state = run.state.borrow_mut();
        let epoch = state.clocks.epoch(run.thread());
        state.remote.insert((rank, run.thread()), (epoch, site));
        state.has_ended(run.cluster.threads_of(rank))
    };
    if ended {
        run.fault(FaultKind::BlockEnded { rank: rank as u32 }, site);
    }
}

/// The address of a byte of another block's shared memory, in the window of the cluster.
///
/// # Safety
/// As `hook_global`.
pub(super) unsafe extern "C" fn hook_cluster_address(address: u32, rank: u32, file: *const c_char, line: u32) -> u32 {
    let run = run();
    let offset = u64::from(address).wrapping_sub(WINDOW);
    if offset > run.cluster.shared_bytes as u64 || rank as usize >= run.cluster.blocks {
        // SAFETY: guaranteed by the caller.
        let site = unsafe { Site::new(file, line) };
        let what = format!("address {address:#x} in block {rank}: outside a cluster of {}", run.cluster.blocks);
        run.fault(FaultKind::Misuse { what }, site);
    }
    address | (rank + 1) << RANK_BIT
}

/// # Safety
/// As `hook_global`.
pub(super) unsafe extern "C" fn hook_shared_address(pointer: u64, file: *const c_char, line: u32) -> u32 {
    let run = run();
    let offset = pointer.wrapping_sub(run.shared_start + run.cluster.place(run.rank(), 0));
    if offset > run.cluster.shared_bytes as u64 {
        // SAFETY: guaranteed by the caller.
        let site = unsafe { Site::new(file, line) };
        run.fault(FaultKind::Misuse { what: "address of something outside shared memory".to_owned() }, site);
    }
    (WINDOW + offset) as u32
}

/// # Safety
/// As `hook_global`.
pub(super) unsafe extern "C" fn hook_fault(what: *const c_char, file: *const c_char, line: u32) {
    // SAFETY: guaranteed by the caller.
    let (what, site) = unsafe { (std::ffi::CStr::from_ptr(what), Site::new(file, line)) };
    run().fault(FaultKind::Misuse { what: what.to_string_lossy().into_owned() }, site);
}
