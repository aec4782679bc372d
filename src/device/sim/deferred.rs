//! Asynchronous work of a warpgroup: products of `wgmma` that it has not waited for.

use super::block::{Deferred, DeferredWork, WARP};
use super::hooks;
use super::run::Run;

fn warpgroup(run: &Run) -> usize {
    run.warpgroup() / WARP
}

/// # Safety
/// `data` has `bytes` bytes.
pub(super) unsafe extern "C" fn hook_defer(work: DeferredWork, data: *const u8, bytes: u32, target: usize) {
    let run = hooks::run();
    let mut copy = vec![0_u64; (bytes as usize).div_ceil(8)];
    // SAFETY: guaranteed by the caller; the copy is as long.
    unsafe { copy.as_mut_ptr().cast::<u8>().copy_from(data, bytes as usize) };
    run.state.borrow_mut().deferred[warpgroup(run)].open.push(Deferred { work, data: copy, target });
}

pub(super) extern "C" fn hook_deferred(target: usize) -> bool {
    let run = hooks::run();
    run.state.borrow().deferred[warpgroup(run)].iter().any(|work| work.target == target)
}

pub(super) extern "C" fn hook_defer_commit() {
    let run = hooks::run();
    run.state.borrow_mut().deferred[warpgroup(run)].commit();
}

pub(super) extern "C" fn hook_defer_wait(pending: u32) {
    let run = hooks::run();
    let group = warpgroup(run);
    loop {
        // The work may fault, which abandons this frame; so the data stays in the state while it runs.
        let next = {
            let state = run.state.borrow();
            let groups = &state.deferred[group].closed;
            match groups.front() {
                Some(first) if groups.len() > pending as usize => first.first().map(|w| (w.work, w.data.as_ptr())),
                _ => return,
            }
        };
        if let Some((work, data)) = next {
            // SAFETY: the data is that of the work, and stays in the state until the work is done.
            unsafe { work(data) };
        }
        let mut state = run.state.borrow_mut();
        let groups = &mut state.deferred[group].closed;
        if let Some(first) = groups.front_mut() {
            if !first.is_empty() {
                first.remove(0);
            }
            if first.is_empty() {
                groups.pop_front();
            }
        }
    }
}
