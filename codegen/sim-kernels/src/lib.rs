//! Burrstone's CUDA kernels, compiled as C++ for its simulator: every variant of every kernel and probe.
//!
//! The crate `burrstone` takes them by its feature `sim-kernels`. Its tests load [`FILE`] instead, so that they share one
//! build of the library with a program that has no such kernels.

use std::ffi::c_void;

/// `burrstone_sim_kernels` of csrc/sim/kernels.h: takes the simulator's functions, and returns a list of kernels.
pub type Kernels = unsafe extern "C" fn(hooks: *const c_void, hooks_bytes: u64) -> *const c_void;

/// The kernels that are linked into the program. `None` where this crate was built without a C++ compiler.
pub const LINKED: Option<Kernels> = linked();

/// A shared object with the same kernels. `None` where this crate was built without a C++ compiler. The file is in the
/// folder that cargo builds in.
pub const FILE: Option<&str> = option_env!("BURRSTONE_SIM_KERNELS_FILE");

#[cfg(compiled)]
const fn linked() -> Option<Kernels> {
    // SAFETY: the declaration of csrc/sim/kernels.h.
    unsafe extern "C" {
        fn burrstone_sim_kernels(hooks: *const c_void, hooks_bytes: u64) -> *const c_void;
    }
    Some(burrstone_sim_kernels)
}

#[cfg(not(compiled))]
const fn linked() -> Option<Kernels> {
    None
}
