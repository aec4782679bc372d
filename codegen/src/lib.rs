//! The kernel generator: turns specifications into code.
//!
//! A specification, `codegen/specs/<kernel>.toml`, holds what kernel, tests, benches and cost model share: the shapes to
//! test and measure, the axes of variants, the rules for legal ones, the fallbacks that run untuned, and limits on a
//! variant's resources.
//!
//! ```toml
//! summary = "One sentence."
//!
//! [[problem]]                  # a shape to test and to measure
//! label = "1b gate_up"
//! n = 16384
//! k = 2048
//!
//! [[axis]]                     # in the order of a variant's name
//! name = "dtype"               # texts are types in namespace burrstone
//! key = true                   # determined by the problem: every value needs a fallback
//! values = ["bf16", "f16"]
//!
//! [[axis]]
//! name = "threads"             # every kernel has it: the size of its blocks
//! tag = "t"                    # in the name: t256
//! values = [128, 256]
//!
//! [[rule]]                     # an expression over the axes and `arch`
//! legal = "dtype != 'bf16' or arch >= 80"
//! why = "Volta and Turing have no bf16"
//!
//! [[shared]]                   # shared memory of a block, for the cost model; 0 by default
//! where = "true"
//! bytes = "threads * 4"
//!
//! [fallback]                   # a value, or a list of them, for each axis that is not a key: always built
//! threads = 256
//!
//! [gate]                       # checked after compilation
//! registers = 64
//!
//! [[sass]]                     # checked in the machine code
//! where = "arch >= 80"         # the variants it applies to, as in rules
//! has = ["HMMA.16816"]
//! lacks = ["LDL", "STL"]
//! ```
//!
//! The steps, in order: [`spec`] reads the specification, [`Kernel::expand`] makes variants, [`render`] writes them as C++
//! and Rust, [`host`] compiles them for the simulator (in the crate `burrstone-sim-kernels`), [`toolchain`] finds a CUDA
//! compiler, and [`device`] compiles them for GPUs and checks the cubins' resources against the gates.
//!
//! # Environment
//! | variable | values | default |
//! |---|---|---|
//! | `BURRSTONE_CUDA_ARCHS` | `all`, `native`, or a list such as `70,80,90a` | `CUDA_COMPUTE_CAP`, else that of the GPU, else all |
//! | `BURRSTONE_CUDA_COMPILER` | `nvrtc`, `nvcc`, `none` | NVRTC if found, else nvcc |
//! | `BURRSTONE_CUDA_VARIANTS` | `fallback`, `all` (with the probes) | `fallback` |
//! | `BURRSTONE_CUBIN_CACHE` | a folder that builds share | each build keeps its own cubins |
//!
//! Compilers are searched by `CUDA_HOME`, `CUDA_PATH`, `NVCC`, `PATH`, in `/usr/local/cuda*` and in the packages of the
//! Python in `VIRTUAL_ENV`, `CONDA_PREFIX`, the repository's `.venv` and `PATH`. nvcc needs CMake 3.27 (`CMAKE` or
//! `PATH`) and takes `NVCC_CCBIN`.

mod arch;
#[cfg(feature = "bindings")]
pub mod bindings;
mod cache;
pub mod cubin;
pub mod device;
pub mod discover;
mod expand;
pub mod host;
pub mod lists;
mod messages;
mod nvcc;
mod nvidia;
pub mod occupancy;
mod parallel;
pub mod render;
pub mod sass;
mod sources;
pub mod spec;
pub mod table;
pub mod toolchain;

use std::fmt;
use std::path::{Path, PathBuf};

pub use arch::Arch;
pub use expand::{Kernel, Pruned, Variant};
pub use spec::{Role, Spec, Value};

/// A fault in a specification, a kernel or a file.
#[derive(Debug)]
pub struct Error {
    pub file: PathBuf,
    pub reason: String,
}

impl Error {
    pub(crate) fn new(file: &Path, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), reason: reason.into() }
    }

    /// An error of the operating system about `file`.
    pub(crate) fn io(file: &Path) -> impl Fn(std::io::Error) -> Self {
        move |e| Self::new(file, e.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.reason)
    }
}

impl std::error::Error for Error {}

/// Paths of the repository.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
    codegen: PathBuf,
    csrc: PathBuf,
}

impl Tree {
    /// The repository at `root`.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), codegen: root.join("codegen"), csrc: root.join("csrc") }
    }

    /// The specifications and sources of this crate. `csrc` in its folder is a link to the repository's, so that the
    /// crate's package has them too.
    pub fn own() -> Self {
        let codegen = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = codegen.parent().unwrap_or(codegen).to_owned();
        Self { root, codegen: codegen.to_owned(), csrc: codegen.join("csrc") }
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The generated argument structs.
    pub fn bindings(&self) -> PathBuf {
        self.root.join("src/kernels/abi.rs")
    }

    /// The folder to which kernels' includes are relative.
    pub fn csrc(&self) -> PathBuf {
        self.csrc.clone()
    }

    /// The input folders and files that exist.
    pub fn inputs(&self) -> impl Iterator<Item = PathBuf> {
        [self.specs(Role::Kernel), self.specs(Role::Probe), self.csrc()].into_iter().filter(|input| input.exists())
    }

    /// All kernels and probes, by name, kernels first.
    ///
    /// # Errors
    /// A specification is wrong or cannot be read, or a kernel and a probe have the same name.
    pub fn kernels(&self) -> Result<Vec<Kernel>, Error> {
        let mut specs = spec::read_all(&self.specs(Role::Kernel), Role::Kernel)?;
        for probe in spec::read_all(&self.specs(Role::Probe), Role::Probe)? {
            if specs.iter().any(|spec| spec.name == probe.name) {
                return Err(Error::new(&probe.file, "expected a name that no kernel has"));
            }
            specs.push(probe);
        }
        specs.into_iter().map(Kernel::expand).collect()
    }

    fn specs(&self, role: Role) -> PathBuf {
        self.codegen.join(match role {
            Role::Kernel => "specs",
            Role::Probe => "probes",
        })
    }
}

/// Cargo's name of this machine's target, for use outside a build script.
pub fn this_target() -> String {
    use std::env::consts::{ARCH, OS};
    match OS {
        "linux" => format!("{ARCH}-unknown-linux-gnu"),
        "macos" => format!("{ARCH}-apple-darwin"),
        "windows" => format!("{ARCH}-pc-windows-msvc"),
        _ => format!("{ARCH}-unknown-{OS}"),
    }
}

/// Writes a generated file, if its text has changed.
///
/// # Errors
/// It cannot be written.
pub fn write_if_changed(file: &Path, text: &str) -> Result<(), Error> {
    if std::fs::read(file).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    std::fs::write(file, text).map_err(Error::io(file))
}
