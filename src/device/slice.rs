//! Typed views of device memory, the operands of kernels.

use std::marker::PhantomData;
use std::ops::Range;

use crate::dtype::DType;

/// Elements on a device, read-only.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    address: u64,
    dtype: DType,
    len: usize,
    memory: PhantomData<&'a [u8]>,
}

/// Elements on a device, writable.
#[derive(Debug)]
pub struct SliceMut<'a> {
    slice: Slice<'a>,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Slice<'a> {
    pub(super) fn new(address: u64, dtype: DType, len: usize) -> Self {
        Self { address, dtype, len, memory: PhantomData }
    }

    /// A slice of memory that the caller owns.
    ///
    /// # Safety
    /// The device of the launch can read `len` elements at `address`, for all of `'a` and until the launch has run.
    pub unsafe fn from_raw(address: u64, dtype: DType, len: usize) -> Self {
        Self::new(address, dtype, len)
    }

    /// The address of the first element in the device's memory.
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same bytes as elements of another dtype; an incomplete last element is dropped.
    pub fn cast(&self, dtype: DType) -> Slice<'a> {
        Self::new(self.address, dtype, self.len * self.dtype.size() / dtype.size())
    }

    /// A part of it; `None` if the range exceeds it.
    pub fn range(&self, range: Range<usize>) -> Option<Slice<'a>> {
        let inside = range.start <= range.end && range.end <= self.len;
        let address = self.address + (range.start * self.dtype.size()) as u64;
        inside.then(|| Self::new(address, self.dtype, range.len()))
    }
}

impl<'a> SliceMut<'a> {
    pub(super) fn new(address: u64, dtype: DType, len: usize) -> Self {
        Self { slice: Slice::new(address, dtype, len), memory: PhantomData }
    }

    /// A slice of memory that the caller owns.
    ///
    /// # Safety
    /// As [`Slice::from_raw`], but the memory is written as well, and nothing else uses it meanwhile.
    pub unsafe fn from_raw(address: u64, dtype: DType, len: usize) -> Self {
        Self::new(address, dtype, len)
    }

    /// The address of the first element in the device's memory.
    pub fn address(&self) -> u64 {
        self.slice.address
    }

    pub fn dtype(&self) -> DType {
        self.slice.dtype
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.slice.len
    }

    pub fn is_empty(&self) -> bool {
        self.slice.len == 0
    }

    pub fn as_slice(&self) -> Slice<'_> {
        self.slice
    }

    /// The same bytes as elements of another dtype; an incomplete last element is dropped.
    pub fn cast(self, dtype: DType) -> SliceMut<'a> {
        let slice = self.slice.cast(dtype);
        Self::new(slice.address, slice.dtype, slice.len)
    }

    /// The same elements, read-only.
    pub fn into_slice(self) -> Slice<'a> {
        self.slice
    }

    /// The same memory, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> SliceMut<'_> {
        SliceMut::new(self.slice.address, self.slice.dtype, self.slice.len)
    }

    /// The elements before `mid` and from `mid` on; `None` if it exceeds them.
    pub fn split_at(self, mid: usize) -> Option<(SliceMut<'a>, SliceMut<'a>)> {
        let (before, after) = (self.slice.range(0..mid)?, self.slice.range(mid..self.slice.len)?);
        let owned = |part: Slice<'a>| Self::new(part.address, part.dtype, part.len);
        Some((owned(before), owned(after)))
    }

    /// A part of it; `None` if the range exceeds it.
    pub fn range(self, range: Range<usize>) -> Option<SliceMut<'a>> {
        let part = self.slice.range(range)?;
        Some(Self::new(part.address, part.dtype, part.len))
    }
}
