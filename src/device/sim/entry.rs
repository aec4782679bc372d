//! The code that stands for a variant: this build's, or what a developer puts in its place.

use std::ffi::OsStr;
use std::sync::OnceLock;

use libloading::Library;

use crate::device::variant::{SimEntry, Variant};

/// A shared object whose kernels take the place of this build's, by variant: `burrstone-codegen simulator` makes one. A
/// kernel is changed and tested again without building anything else.
const VARIABLE: &str = "BURRSTONE_SIM_KERNELS";

/// The variant's code, or why there is none.
pub(super) fn entry(variant: &Variant) -> Result<SimEntry, String> {
    // Loaded once, for the process: launches that were recorded keep its addresses.
    static REPLACED: OnceLock<Result<Option<Library>, String>> = OnceLock::new();
    let replaced = REPLACED.get_or_init(|| std::env::var_os(VARIABLE).map(|file| load(&file)).transpose());
    let replaced = replaced.as_ref().map_err(Clone::clone)?.as_ref().and_then(|library| find(library, variant.name));
    replaced.or(variant.sim).ok_or_else(|| "this build has no simulator: it found no C++ compiler".to_owned())
}

fn load(file: &OsStr) -> Result<Library, String> {
    // SAFETY: the developer vouches for the object by naming it; it holds kernels, which have no initializers.
    unsafe { Library::new(file) }.map_err(|e| format!("{VARIABLE}: {}: {e}", file.display()))
}

fn find(library: &Library, variant: &str) -> Option<SimEntry> {
    let symbol = format!("burrstone_sim_{variant}");
    // SAFETY: what BURRSTONE_KERNEL (csrc/common/kernel.cuh) defines under these names has these types.
    unsafe {
        let run = *library.get(symbol.as_bytes()).ok()?;
        let shared_bytes = *library.get(format!("{symbol}__shared").as_bytes()).ok()?;
        Some(SimEntry { run, shared_bytes })
    }
}
