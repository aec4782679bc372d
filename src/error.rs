//! The one error type of the library: values that say where, which field, what was expected and what was found.

use std::path::{Path, PathBuf};

/// What went wrong, and whose it is: see [`Error::is_input`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of a checkpoint does not say what it must.
    #[error("{}: {field}: expected {expected}, found {found}", file.display())]
    Checkpoint { file: PathBuf, field: String, expected: String, found: String },

    /// A request asks for what cannot be served.
    #[error("{field}: expected {expected}, found {found}")]
    Request { field: String, expected: String, found: String },

    /// The named model is neither a folder nor something a hub can give.
    #[error("model {model:?}: {reason}")]
    Model { model: String, reason: String },

    /// A device that this build or this machine does not have, or that failed.
    #[error("device {device}: {reason}")]
    Device { device: String, reason: String },

    /// An operator was called with shapes or types that do not belong together: a defect of the caller.
    #[error("operator {op}: {field}: expected {expected}, found {found}")]
    Operator { op: &'static str, field: &'static str, expected: String, found: String },

    /// Too much is asked at a time: it may work later.
    #[error("{waiting} requests are waiting already")]
    Busy { waiting: usize },

    /// The operating system said no.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },

    /// A download failed.
    #[error("download of {what}: {reason}")]
    Download { what: String, reason: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// True where the user's input is at fault (exit code 2 of the program), false for a failure of the machine (1).
    pub fn is_input(&self) -> bool {
        match self {
            Self::Checkpoint { .. } | Self::Request { .. } | Self::Model { .. } => true,
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            Self::Device { .. } | Self::Operator { .. } | Self::Busy { .. } | Self::Download { .. } => false,
        }
    }

    #[cfg(feature = "engine")]
    pub(crate) fn checkpoint(
        file: &Path,
        field: impl Into<String>,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Checkpoint {
            file: file.to_owned(),
            field: printable(&field.into()),
            expected: printable(&expected.to_string()),
            found: printable(&found.to_string()),
        }
    }

    pub(crate) fn request(field: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Self::Request { field: field.into(), expected: expected.to_string(), found: found.to_string() }
    }

    pub(crate) fn operator(
        op: &'static str,
        field: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Operator { op, field, expected: expected.to_string(), found: found.to_string() }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// Text that a file had a say in, with its control characters spelled out: an error is one line, and does not write
/// to the terminal what it pleases.
#[cfg(feature = "engine")]
fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}
