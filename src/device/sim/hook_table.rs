//! The table of functions that compiled kernels call: `burrstone_sim_hooks` of csrc/sim/runtime.h.

use super::{copy_hooks, deferred, hooks, meetings};

/// Function pointers; runtime.h declares their types.
#[repr(transparent)]
pub(super) struct HookTable([*const (); 32]);

// SAFETY: constant addresses of functions.
unsafe impl Sync for HookTable {}

/// In the order of runtime.h.
pub(super) static HOOKS: HookTable = HookTable([
    hooks::hook_current as *const (),
    meetings::hook_warp as *const (),
    meetings::hook_warpgroup as *const (),
    meetings::hook_sync_warp as *const (),
    meetings::hook_barrier as *const (),
    meetings::hook_cluster_sync as *const (),
    hooks::hook_global as *const (),
    hooks::hook_shared as *const (),
    hooks::hook_shared_at as *const (),
    hooks::hook_shared_address as *const (),
    hooks::hook_cluster_address as *const (),
    copy_hooks::hook_cp_async as *const (),
    copy_hooks::hook_cp_async_commit as *const (),
    copy_hooks::hook_cp_async_wait as *const (),
    copy_hooks::hook_cp_async_arrive as *const (),
    copy_hooks::hook_mbarrier_init as *const (),
    copy_hooks::hook_mbarrier_arrive as *const (),
    copy_hooks::hook_mbarrier_arrive_cluster as *const (),
    copy_hooks::hook_mbarrier_wait as *const (),
    copy_hooks::hook_fence_async as *const (),
    copy_hooks::hook_bulk_load as *const (),
    copy_hooks::hook_bulk_store as *const (),
    copy_hooks::hook_tensor_load as *const (),
    copy_hooks::hook_tensor_multicast as *const (),
    copy_hooks::hook_tensor_store as *const (),
    copy_hooks::hook_bulk_commit as *const (),
    copy_hooks::hook_bulk_wait as *const (),
    deferred::hook_defer as *const (),
    deferred::hook_deferred as *const (),
    deferred::hook_defer_commit as *const (),
    deferred::hook_defer_wait as *const (),
    hooks::hook_fault as *const (),
]);
