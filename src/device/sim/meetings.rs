//! The hooks in which threads wait for each other: collectives and barriers.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};

use super::block::{Barrier, BarrierId, Call, Collective, Gathering, WARP, WARPGROUP, WarpSync};
use super::fault::FaultKind;
use super::hooks::run;
use super::run::Run;
use super::sites::Site;

/// # Safety
/// `file` and `what` of every hook are string literals in the kernel's code, and a collective's record stays valid
/// until the hook returns: the callers in runtime.h pass literals, and locals of the waiting frame.
pub(super) unsafe extern "C" fn hook_warp(
    mask: u32,
    aligned: bool,
    collective: Collective,
    record: *mut c_void,
    what: *const c_char,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: guaranteed by the caller.
    let call = unsafe { Call::new(what, Site::new(file, line)) };
    let first = run().thread() / WARP * WARP;
    gather(collective, first..first + WARP, mask, aligned, record, call);
}

/// # Safety
/// As `hook_warp`.
pub(super) unsafe extern "C" fn hook_warpgroup(
    collective: Collective,
    record: *mut c_void,
    what: *const c_char,
    file: *const c_char,
    line: u32,
) {
    // SAFETY: guaranteed by the caller.
    let call = unsafe { Call::new(what, Site::new(file, line)) };
    let first = run().warpgroup();
    gather(collective, first..first + WARPGROUP, u32::MAX, true, record, call);
}

/// Faults: the lanes of a warp reached one instruction from two call sites.
fn split(run: &Run, others: Site, site: Site) -> ! {
    let what =
        format!("lanes of a warp meet here and at {}, where all must execute the same instruction", others.place());
    run.fault(FaultKind::Misuse { what }, site)
}

/// Waits for all lanes. The last one to arrive computes for all.
fn gather(
    collective: Collective,
    threads: std::ops::Range<usize>,
    mask: u32,
    aligned: bool,
    record: *mut c_void,
    call: Call,
) {
    let run = run();
    let thread = run.thread();
    let (first, lanes) = (threads.start, threads.len());
    let lane = thread - first;
    if mask >> (lane % WARP) & 1 == 0 {
        run.fault(FaultKind::Misuse { what: format!("lane {lane} is not in its own mask {mask:#x}") }, call.site);
    }
    let complete = {
        let mut state = run.state.borrow_mut();
        let state = &mut *state;
        let same = |g: &Gathering| {
            std::ptr::fn_addr_eq(g.run, collective) && g.first == first && g.mask == mask && g.records[lane].is_null()
        };
        let at = state.gatherings.iter().position(same).unwrap_or_else(|| {
            let mut records = state.spare_records.pop().unwrap_or_default();
            records.clear();
            records.resize(lanes, std::ptr::null_mut());
            state.gatherings.push(Gathering { run: collective, first, mask, site: call.site, arrived: 0, records });
            state.gatherings.len() - 1
        });
        let gathering = &mut state.gatherings[at];
        gathering.records[lane] = record;
        gathering.arrived += 1;
        let expected = mask.count_ones() as usize * lanes / WARP;
        if aligned && gathering.site != call.site {
            Err(gathering.site)
        } else if gathering.arrived == expected {
            // The collective may fault, which abandons this frame, so the records go back to the state before the call.
            let Gathering { records, .. } = state.gatherings.swap_remove(at);
            let pointer = records.as_ptr();
            state.spare_records.push(records);
            Ok(Some(pointer))
        } else {
            Ok(None)
        }
    };
    let records = match complete {
        Ok(Some(records)) => records,
        Ok(None) => return run.wait(call),
        Err(others) => split(run, others, call.site),
    };
    // SAFETY: all lanes have passed a record of the type that `collective` takes, and wait. The spare list is not
    // touched before the call returns: collectives do not call `gather`.
    unsafe { collective(records) };
    let mut state = run.state.borrow_mut();
    for other in (0..lanes).filter(|other| mask >> (other % WARP) & 1 == 1 && *other != lane) {
        state.wake(first + other);
    }
}

/// # Safety
/// As `hook_warp`.
pub(super) unsafe extern "C" fn hook_sync_warp(mask: u32, file: *const c_char, line: u32) {
    // SAFETY: guaranteed by the caller.
    let call = Call::named(c"sync_warp", unsafe { Site::new(file, line) });
    let run = run();
    let thread = run.thread();
    let (warp, lane) = (thread / WARP, thread % WARP);
    if mask >> lane & 1 == 0 {
        run.fault(FaultKind::Misuse { what: format!("lane {lane} is not in its own mask {mask:#x}") }, call.site);
    }
    let complete = {
        let mut state = run.state.borrow_mut();
        let state = &mut *state;
        let same = |s: &WarpSync| s.warp == warp && s.mask == mask && s.arrived >> lane & 1 == 0;
        let at = state.warp_syncs.iter().position(same).unwrap_or_else(|| {
            state.warp_syncs.push(WarpSync { warp, mask, arrived: 0 });
            state.warp_syncs.len() - 1
        });
        state.warp_syncs[at].arrived |= 1 << lane;
        let complete = state.warp_syncs[at].arrived == mask;
        if complete {
            state.warp_syncs.swap_remove(at);
            let threads = (0..WARP).filter(|lane| mask >> lane & 1 == 1).map(|lane| warp * WARP + lane);
            state.clocks.meet(threads.clone());
            // This thread too: the next to run is drawn at random.
            threads.for_each(|thread| state.wake(thread));
        }
        complete
    };
    if complete { run.suspend() } else { run.wait(call) }
}

/// Why threads cannot meet at a barrier.
enum Meeting {
    /// Others wait for another number of threads.
    Counts(u32),
    /// Other lanes of the warp came from another call site.
    Sites(Site),
}

/// # Safety
/// As `hook_warp`.
pub(super) unsafe extern "C" fn hook_barrier(id: u32, threads: u32, wait: bool, file: *const c_char, line: u32) {
    // SAFETY: guaranteed by the caller.
    let site = unsafe { Site::new(file, line) };
    let run = run();
    let all = run.cluster.threads as u32;
    let expected = if threads == 0 { all } else { threads };
    if !expected.is_multiple_of(WARP as u32) && threads != 0 || expected > all {
        let what = format!("barrier {id} for {expected} threads of a block of {all}: expected whole warps");
        run.fault(FaultKind::Misuse { what }, site);
    }
    let call = Call::named(if id == 0 { c"sync_block" } else { c"barrier_sync" }, site);
    meet(run, BarrierId::Block { rank: run.rank(), id }, (expected, threads == 0), wait, call);
}

/// # Safety
/// As `hook_warp`.
pub(super) unsafe extern "C" fn hook_cluster_sync(file: *const c_char, line: u32) {
    let run = run();
    // SAFETY: guaranteed by the caller.
    let call = Call::named(c"cluster_sync", unsafe { Site::new(file, line) });
    meet(run, BarrierId::Cluster, (run.cluster.all_threads() as u32, true), true, call);
}

/// Arrives at a barrier of `expected` threads, `whole` if these are all, and waits there if `wait`.
fn meet(run: &Run, id: BarrierId, (expected, whole): (u32, bool), wait: bool, call: Call) {
    let (thread, site) = (run.thread(), call.site);
    let complete = {
        let mut state = run.state.borrow_mut();
        let state = &mut *state;
        let barrier = state.barriers.entry(id).or_insert_with(|| Barrier {
            expected,
            arrived: 0,
            sites: BTreeMap::new(),
            waiting: Vec::new(),
            released: state.clocks.nothing(),
        });
        let first = *barrier.sites.entry(thread / WARP).or_insert(site);
        if barrier.expected != expected {
            Err(Meeting::Counts(barrier.expected))
        } else if first != site {
            Err(Meeting::Sites(first))
        } else {
            barrier.arrived += 1;
            if !whole {
                state.clocks.release(thread, &mut barrier.released);
            }
            if wait {
                barrier.waiting.push(thread);
            }
            let complete = barrier.arrived == expected;
            if complete && let Some(Barrier { waiting, released, .. }) = state.barriers.remove(&id) {
                if whole {
                    state.clocks.meet(waiting.iter().copied());
                }
                for thread in waiting {
                    if !whole {
                        state.clocks.acquire(thread, &released);
                    }
                    state.wake(thread);
                }
            }
            Ok(complete)
        }
    };
    match complete {
        Err(Meeting::Sites(others)) => split(run, others, site),
        Err(Meeting::Counts(others)) => {
            let what = format!("a barrier for {expected} threads, where others wait for {others}");
            run.fault(FaultKind::Misuse { what }, site)
        }
        Ok(true) if wait => run.suspend(),
        Ok(false) if wait => run.wait(call),
        Ok(_) => {}
    }
}
