//! The kernel generator: specifications of `codegen/specs/` in, Rust out.
//!
//! A specification is named after its kernel and holds what every room needs to agree on. So far these are the
//! problems: the shapes that tests and benches both run, so that what is measured is what was checked.
//!
//! ```toml
//! summary = "One sentence."
//!
//! [[problem]]
//! label = "1b gate_up"
//! n = 16384
//! k = 2048
//! ```

mod render;
mod spec;

use std::fmt;
use std::path::{Path, PathBuf};

pub use spec::{Spec, Value, read_all};

/// A specification that cannot be read or does not make sense.
#[derive(Debug)]
pub struct Error {
    pub file: PathBuf,
    pub reason: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.reason)
    }
}

impl std::error::Error for Error {}

/// Reads every specification in `specs` and writes one Rust module a kernel to `out`, if that changes the file.
///
/// # Errors
/// A specification is wrong, or a file cannot be read or written.
pub fn generate(specs: &Path, out: &Path) -> Result<(), Error> {
    let text = render::problems(&read_all(specs)?);
    if std::fs::read_to_string(out).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::write(out, text).map_err(|e| Error { file: out.to_owned(), reason: e.to_string() })
}
