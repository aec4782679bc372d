//! Uploads through page-locked memory: the copy is asynchronous, and the caller may reuse its data at once.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaEvent, CudaStream, DriverError, result, sys};

/// Bytes of one buffer: enough for full copy bandwidth, and for the data of a step in one piece.
const BYTES: usize = 8 << 20;

/// Two buffers that are filled in turn.
pub(super) struct Staging {
    stream: Arc<CudaStream>,
    buffers: Mutex<Buffers>,
}

#[derive(Default)]
struct Buffers {
    /// Allocated at the first upload.
    all: Vec<Buffer>,
    next: usize,
}

struct Buffer {
    memory: *mut u8,
    /// Recorded after the last copy from it.
    copied: CudaEvent,
}

// SAFETY: this value alone owns the memory behind the pointer.
unsafe impl Send for Buffer {}

impl Staging {
    pub fn new(stream: &Arc<CudaStream>) -> Self {
        Self { stream: Arc::clone(stream), buffers: Mutex::default() }
    }

    /// Enqueues a copy of `data`, in the current context.
    pub fn upload(&self, mut address: u64, data: &[u8]) -> Result<(), DriverError> {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        while buffers.all.len() < 2 {
            let flags = Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
            let copied = self.stream.context().new_event(flags)?;
            // SAFETY: written before it is read.
            let memory = unsafe { result::malloc_host(BYTES, 0)? }.cast();
            buffers.all.push(Buffer { memory, copied });
        }
        for piece in data.chunks(BYTES) {
            let turn = buffers.next;
            buffers.next = 1 - turn;
            let buffer = &buffers.all[turn];
            buffer.copied.synchronize()?;
            // SAFETY: the buffer has room for a piece; its previous copy is done, and the next one waits for this one's
            // event.
            unsafe {
                let staged = std::slice::from_raw_parts_mut(buffer.memory, piece.len());
                staged.copy_from_slice(piece);
                result::memcpy_htod_async(address, staged, self.stream.cu_stream())?;
            }
            buffer.copied.record(&self.stream)?;
            address += piece.len() as u64;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // An error cannot be reported from drop; after a device failure no copy is running.
        let _ = self.stream.synchronize();
        let buffers = self.buffers.get_mut().unwrap_or_else(PoisonError::into_inner);
        for buffer in &buffers.all {
            // SAFETY: it came from `malloc_host`, and no copy uses it any more.
            let _ = unsafe { result::free_host(buffer.memory.cast()) };
        }
    }
}
