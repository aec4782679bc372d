//! Checks that wrappers share.

use crate::device::{Kernel, Slice, Variant};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// # Errors
/// The variant is another kernel's.
pub(super) fn own(kernel: &'static Kernel, variant: &'static Variant) -> Result<()> {
    if kernel.variants.iter().any(|own| std::ptr::eq(own, variant)) {
        return Ok(());
    }
    Err(Error::operator(kernel.name, "variant", "one of this kernel", variant.name))
}

/// A size as the argument structs have it.
pub(super) fn small(op: &'static str, field: &'static str, size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| Error::operator(op, field, format!("at most {}", u32::MAX), size))
}

/// The number of records of `words` words each in a list of them.
pub(super) fn records(op: &'static str, field: &'static str, list: Slice<'_>, words: usize) -> Result<u32> {
    if list.dtype() != DType::U32 || list.len() % words != 0 {
        let found = format!("{} elements of {}", list.len(), list.dtype());
        return Err(Error::operator(op, field, format!("a multiple of {words} elements of u32"), found));
    }
    small(op, field, list.len() / words)
}

/// # Errors
/// The slice is not `len` elements of `dtype`.
pub(super) fn elements(
    op: &'static str,
    field: &'static str,
    slice: Slice<'_>,
    dtype: DType,
    len: usize,
) -> Result<()> {
    if (slice.dtype(), slice.len()) == (dtype, len) {
        return Ok(());
    }
    let found = format!("{} of {}", slice.len(), slice.dtype());
    Err(Error::operator(op, field, format!("{len} elements of {dtype}"), found))
}
