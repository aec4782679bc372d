//! The simulated device's memory: host allocations with known bounds.

use std::alloc::{self, Layout};
use std::collections::BTreeMap;
use std::ptr::NonNull;

/// CUDA's allocations start at multiples of this.
const ALIGNMENT: usize = 256;
/// Fills fresh memory: NaN in every float format, so that reads of unwritten memory are noticed.
pub(super) const POISON: u8 = 0xff;

/// A request that the simulated memory cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceMemoryError {
    #[error("simulated memory: {bytes} bytes asked for, {used} of {budget} in use")]
    Exhausted { bytes: u64, used: u64, budget: u64 },
    #[error("simulated memory: nothing is allocated at {address:#x}")]
    Unknown { address: u64 },
    #[error("simulated memory: {bytes} bytes at {address:#x} are not inside one allocation")]
    Outside { address: u64, bytes: u64 },
}

/// Bytes on the heap at a fixed alignment.
#[derive(Debug)]
pub(super) struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the bytes are the buffer's own.
unsafe impl Send for Buffer {}

impl Buffer {
    pub(super) fn poisoned(bytes: usize, alignment: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes.max(1), alignment).ok()?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc::alloc(layout) })?;
        let mut buffer = Buffer { start, layout };
        buffer.poison();
        Some(buffer)
    }

    pub(super) fn poison(&mut self) {
        // SAFETY: the buffer owns these bytes.
        unsafe { self.start.as_ptr().write_bytes(POISON, self.layout.size()) }
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `poisoned` with this layout.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Every live allocation, by address.
#[derive(Debug, Default)]
pub(super) struct Memory {
    live: BTreeMap<u64, (u64, Buffer)>,
    /// Start and length of each live allocation in order, for the access checks of a running kernel.
    bounds: Vec<(u64, u64)>,
    used: u64,
    budget: u64,
}

impl Memory {
    pub(super) fn new(budget: u64) -> Self {
        Memory { budget, ..Memory::default() }
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    pub(super) fn alloc(&mut self, bytes: u64) -> Result<u64, DeviceMemoryError> {
        let exhausted = DeviceMemoryError::Exhausted { bytes, used: self.used, budget: self.budget };
        if bytes > self.budget - self.used {
            return Err(exhausted);
        }
        let buffer = usize::try_from(bytes).ok().and_then(|n| Buffer::poisoned(n, ALIGNMENT)).ok_or(exhausted)?;
        let address = buffer.start().expose_provenance() as u64;
        self.live.insert(address, (bytes, buffer));
        self.used += bytes;
        let at = self.bounds.partition_point(|(start, _)| *start < address);
        self.bounds.insert(at, (address, bytes));
        Ok(address)
    }

    pub(super) fn free(&mut self, address: u64) -> Result<(), DeviceMemoryError> {
        let Some((bytes, _)) = self.live.remove(&address) else {
            return Err(DeviceMemoryError::Unknown { address });
        };
        self.used -= bytes;
        self.bounds.retain(|(start, _)| *start != address);
        Ok(())
    }

    /// A pointer to the bytes, if they are inside one allocation.
    pub(super) fn range(&self, address: u64, bytes: u64) -> Result<*mut u8, DeviceMemoryError> {
        let outside = DeviceMemoryError::Outside { address, bytes };
        let (start, (len, buffer)) = self.live.range(..=address).next_back().ok_or(outside.clone())?;
        let offset = address - start;
        if offset > *len || bytes > len - offset {
            return Err(outside);
        }
        // SAFETY: the offset is at most the allocation's length.
        Ok(unsafe { buffer.start().add(offset as usize) })
    }

    pub(super) fn bounds(&self) -> &[(u64, u64)] {
        &self.bounds
    }
}
