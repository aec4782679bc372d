//! Runs callers' code inside the engine: a panic becomes an error of its request.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result};

/// Runs the code behind a request's `field`.
///
/// # Errors
/// The code's own error; or it panicked.
pub fn guarded<T>(field: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(defect(field, "a panic")))
}

/// An error for code that does not keep its contract.
pub fn defect(field: &str, found: &str) -> Error {
    Error::request(field, "one that does what it promises", found)
}
