//! The hooks of asynchronous copies, and of the mbarriers that they report to.

use std::ffi::c_char;

use super::block::{Call, WINDOW};
use super::copies::{Flight, Load, Source, Store, Target};
use super::fault::FaultKind;
use super::hooks::{RANK_BIT, check_global, run, shared, shared_range};
use super::mbarriers::Mbarrier;
use super::memory::POISON;
use super::run::Run;
use super::shadow::Access;
use super::sites::Site;
use super::tensor_map::{MAX_RANK, TensorMap};

/// Bytes of an mbarrier.
const MBARRIER: u32 = 8;
/// Alignments in shared memory: of bulk copies, and of tensor boxes.
const BULK: u64 = 16;
const BOX: u64 = 128;

fn misuse(run: &Run, what: &str, site: Site) -> ! {
    run.fault(FaultKind::Misuse { what: what.to_owned() }, site)
}

/// Starts a load to a block's shared memory: checks the destination, poisons it, and forbids access until it completes.
fn take_off(run: &Run, rank: usize, to: u64, bytes: u64, from: Source, bulk: bool, site: Site) -> Load {
    let id = shared_range(run, rank, to, bytes, Access::Store, site);
    let to = run.cluster.place(rank, to);
    // SAFETY: the range was just checked.
    unsafe { run.shared().add(to as usize).write_bytes(POISON, bytes as usize) };
    run.state.borrow_mut().shadow.take_off(to as usize, bytes as usize);
    Load { to: to as usize, bytes: bytes as usize, from, thread: run.thread(), bulk, site: id }
}

fn window_offset(run: &Run, address: u32, multiple: u64, site: Site) -> u64 {
    if !u64::from(address).is_multiple_of(multiple) {
        run.fault(FaultKind::Misaligned { address: u64::from(address), bytes: multiple as u32 }, site);
    }
    u64::from(address).wrapping_sub(WINDOW)
}

/// # Safety
/// `file` of every hook is a string literal in the kernel's code.
pub(super) unsafe extern "C" fn hook_cp_async(
    to: u32,
    from: u64,
    bytes: u32,
    valid: u32,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    if valid > bytes {
        misuse(run, "cp_async of more valid bytes than it copies", site);
    }
    if valid > 0 {
        check_global(run, from, u64::from(valid), site);
        if !from.is_multiple_of(u64::from(bytes)) {
            run.fault(FaultKind::Misaligned { address: from, bytes }, site);
        }
    }
    let to = window_offset(run, to, u64::from(bytes), site);
    let from = Source::Bytes { address: from, valid: valid as usize };
    let load = take_off(run, run.rank(), to, u64::from(bytes), from, false, site);
    run.state.borrow_mut().loads[load.thread].open.push(load);
}

pub(super) extern "C" fn hook_cp_async_commit(_file: *const c_char, _line: u32) {
    let run = run();
    run.state.borrow_mut().loads[run.thread()].commit();
}

pub(super) extern "C" fn hook_cp_async_wait(pending: u32, _file: *const c_char, _line: u32) {
    let run = run();
    let thread = run.thread();
    let mut state = run.state.borrow_mut();
    let epoch = state.clocks.epoch(thread);
    while let Some(group) = state.loads[thread].take(pending as usize) {
        for load in group {
            state.land(&load, epoch, run.shared());
        }
    }
    if pending == 0 {
        // Copies that only arrive at an mbarrier are waited for as well.
        while let Some(at) = state.flights.iter().position(|f| f.thread == thread && f.bytes == 0) {
            state.land_flight(at, run.shared());
        }
    }
}

/// # Safety
/// As `hook_cp_async`.
pub(super) unsafe extern "C" fn hook_cp_async_arrive(mbarrier: u32, file: *const c_char, line: u32) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    let thread = run.thread();
    let mbarrier = known(run, run.rank(), mbarrier, site);
    let mut state = run.state.borrow_mut();
    state.loads[thread].commit();
    let loads = std::mem::take(&mut state.loads[thread].closed).into_iter().flatten().collect();
    let mut released = state.clocks.nothing();
    state.clocks.release(thread, &mut released);
    state.flights.push(Flight { thread, loads, mbarrier, bytes: 0, released });
}

/// # Safety
/// As `hook_cp_async`.
pub(super) unsafe extern "C" fn hook_mbarrier_init(mbarrier: u32, count: u32, file: *const c_char, line: u32) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    if count == 0 || count >= 1 << 20 {
        misuse(run, "mbarrier for a count outside 1 to 2^20 - 1", site);
    }
    let offset = window_offset(run, mbarrier, u64::from(MBARRIER), site);
    shared(run, run.rank(), offset, MBARRIER, Access::Store, site);
    let mut state = run.state.borrow_mut();
    let nothing = state.clocks.nothing();
    state.mbarriers.insert(run.cluster.place(run.rank(), offset), Mbarrier::new(count, nothing));
}

/// The offset of a block's mbarrier in the shared memory of the cluster. Faults unless it is initialised, and the
/// running thread is ordered after that.
fn known(run: &Run, rank: usize, mbarrier: u32, site: Site) -> u64 {
    let offset = window_offset(run, mbarrier, u64::from(MBARRIER), site);
    shared(run, rank, offset, MBARRIER, Access::Load, site);
    let place = run.cluster.place(rank, offset);
    if !run.state.borrow().mbarriers.contains_key(&place) {
        misuse(run, "use of an mbarrier that was not initialised", site);
    }
    place
}

/// # Safety
/// As `hook_cp_async`.
pub(super) unsafe extern "C" fn hook_mbarrier_arrive(
    mbarrier: u32,
    arrivals: u32,
    bytes: u32,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    arrive(run, known(run, run.rank(), mbarrier, site), arrivals, bytes, site);
}

/// Arrives at an mbarrier of any block of the cluster.
///
/// # Safety
/// As `hook_cp_async`.
pub(super) unsafe extern "C" fn hook_mbarrier_arrive_cluster(mbarrier: u32, file: *const c_char, line: u32) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    let rank = (mbarrier >> RANK_BIT).checked_sub(1).map_or(run.rank(), |rank| rank as usize);
    if rank >= run.cluster.blocks {
        misuse(run, "an address outside the cluster's shared memory", site);
    }
    arrive(run, known(run, rank, mbarrier & ((1 << RANK_BIT) - 1), site), 1, 0, site);
}

fn arrive(run: &Run, mbarrier: u64, arrivals: u32, bytes: u32, site: Site) {
    let counted = {
        let mut state = run.state.borrow_mut();
        let state = &mut *state;
        let counted = state.mbarriers.get_mut(&mbarrier).is_some_and(|barrier| {
            barrier.expect(u64::from(bytes));
            if arrivals == 0 {
                return true;
            }
            state.clocks.release(run.thread(), &mut barrier.released);
            barrier.arrive()
        });
        if counted {
            state.advance(mbarrier);
        }
        counted
    };
    if !counted {
        misuse(run, "more arrivals at an mbarrier than its count", site);
    }
}

/// # Safety
/// As `hook_cp_async`.
pub(super) unsafe extern "C" fn hook_mbarrier_wait(mbarrier: u32, parity: u32, file: *const c_char, line: u32) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    let mbarrier = known(run, run.rank(), mbarrier, site);
    let over = {
        let mut state = run.state.borrow_mut();
        let state = &mut *state;
        state.mbarriers.get_mut(&mbarrier).is_some_and(|barrier| {
            let over = barrier.is_over(parity);
            if over {
                state.clocks.acquire(run.thread(), &barrier.completed);
            } else {
                barrier.waiting.push(run.thread());
            }
            over
        })
    };
    if !over {
        run.wait(Call::named(c"mbarrier_wait", site));
    }
}

pub(super) extern "C" fn hook_fence_async() {
    let run = run();
    run.state.borrow_mut().clocks.fence(run.thread());
}

/// Starts a load to a block's shared memory that reports its bytes to an mbarrier there.
fn fly(run: &Run, rank: usize, to: u64, bytes: u64, from: Source, mbarrier: u32, site: Site) {
    let mbarrier = known(run, rank, mbarrier, site);
    let load = take_off(run, rank, to, bytes, from, true, site);
    let mut state = run.state.borrow_mut();
    let mut released = state.clocks.nothing();
    state.clocks.release(load.thread, &mut released);
    state.flights.push(Flight { thread: load.thread, loads: vec![load], mbarrier, bytes, released });
}

fn check_bulk(run: &Run, global: u64, bytes: u64, site: Site) {
    if bytes == 0 || !bytes.is_multiple_of(BULK) || !global.is_multiple_of(BULK) {
        misuse(run, "bulk copy whose size or address is no multiple of 16", site);
    }
    check_global(run, global, bytes, site);
}

/// # Safety
/// As `hook_cp_async`.
pub(super) unsafe extern "C" fn hook_bulk_load(
    to: u32,
    from: u64,
    bytes: u32,
    mbarrier: u32,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    let bytes = u64::from(bytes);
    check_bulk(run, from, bytes, site);
    let to = window_offset(run, to, BULK, site);
    fly(run, run.rank(), to, bytes, Source::Bytes { address: from, valid: bytes as usize }, mbarrier, site);
}

/// # Safety
/// As `hook_cp_async`.
pub(super) unsafe extern "C" fn hook_bulk_store(to: u64, from: u32, bytes: u32, file: *const c_char, line: u32) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    let bytes = u64::from(bytes);
    check_bulk(run, to, bytes, site);
    let from = window_offset(run, from, BULK, site);
    shared_range(run, run.rank(), from, bytes, Access::AsyncLoad, site);
    let from = run.cluster.place(run.rank(), from) as usize;
    let store = Store { from, bytes: bytes as usize, to: Target::Bytes { address: to } };
    run.state.borrow_mut().stores[run.thread()].open.push(store);
}

/// The map behind a pointer and five coordinates. Checks every byte that the box touches.
///
/// # Safety
/// `map` points to 128 bytes at a multiple of 64, `coordinates` to `dimensions` numbers.
unsafe fn tensor_box(
    run: &Run,
    map: *const TensorMap,
    coordinates: *const i32,
    dimensions: u32,
    site: Site,
) -> (TensorMap, [i32; MAX_RANK]) {
    // SAFETY: guaranteed by the caller; every bit pattern is valid.
    let map = unsafe { *map };
    if !map.is_valid() {
        misuse(run, "not a tensor map", site);
    }
    if map.rank != dimensions {
        misuse(run, "expected a coordinate for each dimension of the tensor map", site);
    }
    let mut all = [0; MAX_RANK];
    // SAFETY: guaranteed by the caller; a valid map has at most five dimensions.
    all[..dimensions as usize].copy_from_slice(unsafe { std::slice::from_raw_parts(coordinates, dimensions as usize) });
    for piece in map.pieces(&all) {
        if !piece.inside.is_empty() {
            let start = piece.global.wrapping_add(piece.inside.start as u64);
            check_global(run, start, piece.inside.len() as u64, site);
        }
    }
    (map, all)
}

/// # Safety
/// As `hook_cp_async`; `map` and `coordinates` as in `tensor_box`, which the primitives guarantee.
pub(super) unsafe extern "C" fn hook_tensor_load(
    to: u32,
    map: *const TensorMap,
    coordinates: *const i32,
    dimensions: u32,
    mbarrier: u32,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    // SAFETY: guaranteed by the caller.
    let (map, coordinates) = unsafe { tensor_box(run, map, coordinates, dimensions, site) };
    let to = window_offset(run, to, BOX, site);
    fly(run, run.rank(), to, map.box_bytes(), Source::Box { map, coordinates }, mbarrier, site);
}

/// A tensor load for every block of the cluster whose bit is set in `blocks`, to the same offset and mbarrier of each.
///
/// # Safety
/// As `hook_tensor_load`.
pub(super) unsafe extern "C" fn hook_tensor_multicast(
    to: u32,
    map: *const TensorMap,
    coordinates: *const i32,
    dimensions: u32,
    mbarrier: u32,
    blocks: u32,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    if blocks == 0 || blocks >> run.cluster.blocks != 0 {
        misuse(run, "multicast to no block, or to one outside the cluster", site);
    }
    // SAFETY: guaranteed by the caller.
    let (map, coordinates) = unsafe { tensor_box(run, map, coordinates, dimensions, site) };
    let to = window_offset(run, to, BOX, site);
    for rank in (0..run.cluster.blocks).filter(|rank| blocks >> rank & 1 == 1) {
        fly(run, rank, to, map.box_bytes(), Source::Box { map, coordinates }, mbarrier, site);
    }
}

/// # Safety
/// As `hook_tensor_load`.
pub(super) unsafe extern "C" fn hook_tensor_store(
    map: *const TensorMap,
    coordinates: *const i32,
    dimensions: u32,
    from: u32,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    // SAFETY: guaranteed by the caller.
    let (map, coordinates) = unsafe { tensor_box(run, map, coordinates, dimensions, site) };
    let from = window_offset(run, from, BOX, site);
    shared_range(run, run.rank(), from, map.box_bytes(), Access::AsyncLoad, site);
    let from = run.cluster.place(run.rank(), from) as usize;
    let store = Store { from, bytes: map.box_bytes() as usize, to: Target::Box { map, coordinates } };
    run.state.borrow_mut().stores[run.thread()].open.push(store);
}

pub(super) extern "C" fn hook_bulk_commit(_file: *const c_char, _line: u32) {
    let run = run();
    run.state.borrow_mut().stores[run.thread()].commit();
}

pub(super) extern "C" fn hook_bulk_wait(pending: u32, _file: *const c_char, _line: u32) {
    let run = run();
    run.state.borrow_mut().land_stores(run.thread(), pending as usize, run.shared());
}
