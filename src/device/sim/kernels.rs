//! Compiled kernels for the simulator: C++ that is linked into the program (feature `sim-kernels`) or loaded from a
//! shared object.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::sync::{OnceLock, PoisonError, RwLock};

use libloading::Library;

use super::hook_table::{HOOKS, HookTable};
use crate::error::{Error, Result};

/// Names a shared object, made by `burrstone-codegen simulator`, whose kernels replace others of the same name, so that
/// a changed kernel is tested without building anything else.
const VARIABLE: &str = "BURRSTONE_SIM_KERNELS";

const NONE: &str = "no kernels for the simulator in this program: build it with the feature sim-kernels \
                    (cargo run --release --features sim-kernels), or name a file that `burrstone-codegen simulator` made \
                    in BURRSTONE_SIM_KERNELS";

/// A variant's compiled code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Runs one thread, on a fiber of the simulator, with the argument struct and the block's shared memory.
    pub run: Run,
    pub shared_bytes: u32,
}

type Run = unsafe extern "C" fn(args: *const c_void, shared: *mut c_void);

/// `burrstone_sim_kernel` of csrc/sim/kernels.h.
#[repr(C)]
struct Listed {
    name: *const c_char,
    run: Option<Run>,
    shared_bytes: *const u32,
}

/// `burrstone_sim_kernels` of csrc/sim/kernels.h.
type Kernels = unsafe extern "C" fn(hooks: *const c_void, hooks_bytes: u64) -> *const c_void;

/// By the variant's name.
type Entries = BTreeMap<&'static str, Entry>;

/// The kernels of [`load_kernels`].
static LOADED: RwLock<Entries> = RwLock::new(Entries::new());

/// Loads the kernels of a shared object into this process, for all simulators. They replace loaded kernels of the same
/// names.
///
/// # Errors
/// The file cannot be loaded, or was built for another version of this crate.
///
/// # Safety
/// The file was built by `burrstone-codegen simulator` or the crate `burrstone-sim-kernels`.
pub unsafe fn load_kernels(file: &Path) -> Result<()> {
    // SAFETY: guaranteed by the caller.
    let entries = unsafe { load(file) }.map_err(failed)?;
    LOADED.write().unwrap_or_else(PoisonError::into_inner).extend(entries);
    Ok(())
}

/// # Errors
/// The program has no kernels for the simulator, or the file in the environment variable cannot be loaded.
pub(crate) fn require_kernels() -> Result<()> {
    let any = replaced().map_err(failed)?.is_some() || !linked().is_empty() || !loaded(Entries::is_empty);
    if any { Ok(()) } else { Err(failed(NONE.to_owned())) }
}

/// The variant's code, or why there is none.
pub(super) fn entry(variant: &str) -> Result<Entry, String> {
    let replaced = replaced()?.and_then(|entries| entries.get(variant).copied());
    let entry = replaced.or_else(|| loaded(|entries| entries.get(variant).copied()));
    entry.or_else(|| linked().get(variant).copied()).ok_or_else(|| match require_kernels() {
        Ok(()) => "no kernel of this name is among those loaded for the simulator".to_owned(),
        Err(_) => NONE.to_owned(),
    })
}

fn failed(reason: String) -> Error {
    Error::Device { device: "sim".to_owned(), reason }
}

fn loaded<T>(read: impl FnOnce(&Entries) -> T) -> T {
    read(&LOADED.read().unwrap_or_else(PoisonError::into_inner))
}

/// The kernels of the file in the environment variable.
fn replaced() -> Result<Option<&'static Entries>, String> {
    static REPLACED: OnceLock<Result<Option<Entries>, String>> = OnceLock::new();
    let load = |file| {
        // SAFETY: the developer is responsible for the file that the variable names.
        unsafe { load(Path::new(&file)) }.map_err(|e| format!("{VARIABLE}: {e}"))
    };
    let replaced = REPLACED.get_or_init(|| std::env::var_os(VARIABLE).map(load).transpose());
    replaced.as_ref().map(Option::as_ref).map_err(Clone::clone)
}

/// The kernels linked into the program.
fn linked() -> &'static Entries {
    static LINKED: OnceLock<Entries> = OnceLock::new();
    #[cfg(feature = "sim-kernels")]
    let kernels = || {
        let kernels = burrstone_sim_kernels::LINKED?;
        // SAFETY: this version's `burrstone-sim-kernels` links the function of csrc/sim/kernels.h.
        unsafe { entries(kernels) }
    };
    #[cfg(not(feature = "sim-kernels"))]
    let kernels = || None;
    LINKED.get_or_init(|| kernels().unwrap_or_default())
}

/// # Safety
/// As [`load_kernels`].
unsafe fn load(file: &Path) -> Result<Entries, String> {
    let named = |reason: &dyn std::fmt::Display| format!("{}: {reason}", file.display());
    // SAFETY: guaranteed by the caller: the file holds kernels, which have no initializers.
    let library = unsafe { Library::new(file) }.map_err(|e| match std::error::Error::source(&e) {
        Some(reason) => named(&reason),
        None => named(&e),
    })?;
    // SAFETY: csrc/sim/kernels.h declares it with this type.
    let kernels = *unsafe { library.get::<Kernels>(b"burrstone_sim_kernels") }.map_err(|e| named(&e))?;
    // Never unloaded: recorded launches keep its addresses.
    std::mem::forget(library);
    // SAFETY: as above.
    unsafe { entries(kernels) }.ok_or_else(|| named(&"made for another version of the simulator"))
}

/// Passes the simulator's functions to a library of kernels. `None` if it was compiled against another table.
///
/// # Safety
/// `kernels` is the function of csrc/sim/kernels.h, in a library that stays loaded.
unsafe fn entries(kernels: Kernels) -> Option<Entries> {
    // SAFETY: the table has the layout and the functions that csrc/sim/runtime.h declares.
    let mut listed = unsafe { kernels((&raw const HOOKS).cast(), size_of::<HookTable>() as u64) }.cast::<Listed>();
    let mut found = Entries::new();
    // SAFETY: the list ends with an entry without a function, and lives as long as the library.
    while let Some(Listed { name, run, shared_bytes }) = unsafe { listed.as_ref() } {
        let Some(run) = *run else { return Some(found) };
        // SAFETY: a string literal, and a constant of the library.
        let (name, shared_bytes) = unsafe { (CStr::from_ptr(*name), **shared_bytes) };
        found.insert(name.to_str().ok()?, Entry { run, shared_bytes });
        // SAFETY: this entry is not the last.
        listed = unsafe { listed.add(1) };
    }
    None
}
