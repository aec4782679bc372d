//! Owned memory on the device, and its page-locked counterpart on the host.

use bytemuck::Pod;

use super::slice::{Slice, SliceMut};
use super::stream::Stream;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Elements in device memory, initially zero.
pub struct Memory {
    stream: Stream,
    address: u64,
    dtype: DType,
    len: usize,
    /// The number of allocations of the stream before this one.
    number: u64,
}

impl Stream {
    /// `len` zeros.
    ///
    /// # Errors
    /// The device has no room, or a graph is being captured.
    pub fn alloc(&self, dtype: DType, len: usize) -> Result<Memory> {
        let bytes = len.checked_mul(dtype.size()).filter(|&bytes| bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or_else(|| Error::operator("alloc", "len", "a size that fits memory", len))?;
        let (address, number) = self.allocate(bytes)?;
        let mut memory = Memory { stream: self.clone(), address, dtype, len, number };
        memory.clear()?;
        Ok(memory)
    }
}

impl Memory {
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

    /// All of it, to read.
    pub fn slice(&self) -> Slice<'_> {
        Slice::new(self.address, self.dtype, self.len)
    }

    /// All of it, to write.
    pub fn slice_mut(&mut self) -> SliceMut<'_> {
        SliceMut::new(self.address, self.dtype, self.len)
    }

    /// Enqueues a copy of `values` to elements from `start` on. Their size must match whole elements; their type is not
    /// checked.
    ///
    /// # Errors
    /// `values` are not whole elements, or exceed the memory; the device failed.
    pub fn write_at<T: Pod>(&mut self, start: usize, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let size = self.dtype.size();
        let room = self.len.saturating_sub(start) * size;
        if !bytes.len().is_multiple_of(size) || bytes.len() > room {
            let expected = format!("at most {room} bytes of {}", self.dtype);
            return Err(Error::operator("write", "values", expected, format!("{} bytes", bytes.len())));
        }
        self.stream.upload(self.address + (start * size) as u64, bytes)
    }

    /// [`write_at`](Self::write_at) the first element.
    ///
    /// # Errors
    /// As there.
    pub fn write<T: Pod>(&mut self, values: &[T]) -> Result<()> {
        self.write_at(0, values)
    }

    /// Waits for the work enqueued so far, then fills `to` with elements from `start` on.
    ///
    /// # Errors
    /// `to` exceeds the memory, or does not hold whole elements; the device failed.
    pub fn read_at(&self, start: usize, to: &mut [u8]) -> Result<()> {
        let size = self.dtype.size();
        let room = self.len.saturating_sub(start) * size;
        if !to.len().is_multiple_of(size) || to.len() > room {
            let expected = format!("at most {room} bytes of {}", self.dtype);
            return Err(Error::operator("read", "to", expected, format!("{} bytes", to.len())));
        }
        self.stream.download(self.address + (start * size) as u64, to)
    }

    /// Enqueues zeros.
    ///
    /// # Errors
    /// The device failed.
    pub fn clear(&mut self) -> Result<()> {
        self.stream.driver().clear(self.address, self.len * self.dtype.size())
    }

    /// Waits for the work enqueued so far, then reads all elements.
    ///
    /// # Errors
    /// The size is not a multiple of `T`'s; the device failed.
    pub fn read<T: Pod>(&self) -> Result<Vec<T>> {
        let bytes = self.len * self.dtype.size();
        if !bytes.is_multiple_of(size_of::<T>()) {
            let expected = format!("a multiple of {} bytes", size_of::<T>());
            return Err(Error::operator("read", "memory", expected, format!("{bytes} bytes")));
        }
        let mut values = vec![T::zeroed(); bytes / size_of::<T>()];
        self.stream.download(self.address, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.stream.release(self.address, self.len * self.dtype.size(), self.number);
    }
}

/// Results on the device, with a page-locked copy on the host: the transfer can be part of a captured graph.
pub struct Readback<T: Pod> {
    memory: Memory,
    host: *mut T,
    len: usize,
}

// SAFETY: this value alone owns the memory behind the pointer.
unsafe impl<T: Pod + Send> Send for Readback<T> {}

impl<T: Pod> Readback<T> {
    /// # Errors
    /// The device or the host is out of memory.
    pub fn new(stream: &Stream, len: usize) -> Result<Self> {
        let memory = stream.alloc(DType::U8, len * size_of::<T>())?;
        let host = stream.driver().allocate_host(len * size_of::<T>())?.cast::<T>();
        Ok(Self { memory, host, len })
    }

    /// The device's memory, as bytes.
    pub fn device(&mut self) -> SliceMut<'_> {
        self.memory.slice_mut()
    }

    /// Enqueues the copy of the first `len` results to the host.
    ///
    /// # Errors
    /// `len` exceeds the results; the device failed.
    pub fn enqueue(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(Error::operator("readback", "len", format!("at most {}", self.len), len));
        }
        // SAFETY: the host's memory is as large as the device's, `wait` reads it only when the stream is done, and drop
        // waits too.
        unsafe { self.memory.stream.copy_to_host(self.memory.address, self.host.cast(), len * size_of::<T>()) }
    }

    /// Waits for the work enqueued so far and returns the first `len` results.
    ///
    /// # Errors
    /// `len` exceeds the results; the device failed.
    pub fn wait(&mut self, len: usize) -> Result<&[T]> {
        if len > self.len {
            return Err(Error::operator("readback", "len", format!("at most {}", self.len), len));
        }
        self.memory.stream.wait_for_results()?;
        // SAFETY: page-locked memory of `self.len` elements of plain data, initially zeroed; all copies to it are done,
        // and a new one needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(self.host, len) })
    }
}

impl<T: Pod> Drop for Readback<T> {
    fn drop(&mut self) {
        // A copy may still be running; after a device failure none is.
        let _ = self.memory.stream.driver().wait();
        // SAFETY: it came from `allocate_host` with this size, and nothing else uses it.
        unsafe { self.memory.stream.driver().release_host(self.host.cast(), self.len * size_of::<T>()) };
    }
}
