//! Loads the simulator's kernels for tests.

use std::path::Path;
use std::sync::Once;

/// Loads the kernels of `burrstone-sim-kernels`, once for the process. If `BURRSTONE_SIM_KERNELS` names another file,
/// its kernels, possibly few, take precedence.
pub fn load() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        if burrstone_sim_kernels::FILE.is_none() && std::env::var_os("BURRSTONE_SIM_KERNELS").is_some() {
            return;
        }
        let file = burrstone_sim_kernels::FILE.expect("tests of the simulator need a C++ compiler");
        // SAFETY: the file was built by the crate `burrstone-sim-kernels`.
        unsafe { burrstone::device::sim::load_kernels(Path::new(file)) }.unwrap();
    });
}
