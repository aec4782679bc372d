//! Burrstone's CUDA kernels, compiled as C++ for its simulator: every variant of every kernel and probe.
//!
//! The crate `burrstone` links them with its feature `sim-kernels`. Its tests load [`FILE`] instead, so that they share
//! the build of the library with programs that do not link these kernels.

use std::ffi::c_void;

/// `burrstone_sim_kernels` of csrc/sim/kernels.h: takes the simulator's functions and returns a list of kernels.
pub type Kernels = unsafe extern "C" fn(hooks: *const c_void, hooks_bytes: u64) -> *const c_void;

/// The kernels linked into the program. `None` if this crate was built without a C++ compiler.
pub const LINKED: Option<Kernels> = linked();

/// The path of a shared object with the same kernels, in cargo's build folder. `None` if this crate was built without a
/// C++ compiler.
pub const FILE: Option<&str> = option_env!("BURRSTONE_SIM_KERNELS_FILE");

#[cfg(compiled)]
const fn linked() -> Option<Kernels> {
    // SAFETY: csrc/sim/kernels.h declares it in this way.
    unsafe extern "C" {
        fn burrstone_sim_kernels(hooks: *const c_void, hooks_bytes: u64) -> *const c_void;
    }
    Some(burrstone_sim_kernels)
}

#[cfg(not(compiled))]
const fn linked() -> Option<Kernels> {
    None
}
