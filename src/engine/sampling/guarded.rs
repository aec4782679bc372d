//! Callers' own code inside the engine: its panics are its request's affair.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result};

/// Runs a request's `field`.
///
/// # Errors
/// Its own; or it panicked.
pub fn guarded<T>(field: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(defect(field, "a panic")))
}

/// A request's `field` is not what it should be.
pub fn defect(field: &str, found: &str) -> Error {
    Error::request(field, "one that does what it promises", found)
}
