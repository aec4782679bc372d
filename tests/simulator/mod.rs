//! The kernels that the simulator runs in the tests.

use std::path::Path;
use std::sync::Once;

/// Loads the kernels of `burrstone-sim-kernels`, once for the process. Those of a file that a variable names take their
/// place, and may be few.
pub fn load() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        if burrstone_sim_kernels::FILE.is_none() && std::env::var_os("BURRSTONE_SIM_KERNELS").is_some() {
            return;
        }
        let file = burrstone_sim_kernels::FILE.expect("tests of the simulator need a C++ compiler");
        // SAFETY: the crate of that name made the file.
        unsafe { burrstone::device::sim::load_kernels(Path::new(file)) }.unwrap();
    });
}
