//! Asynchronous copies. Each completes as late as CUDA allows: in the wait of its thread, or, if it reports to an
//! mbarrier, when no thread can continue without it.

use std::collections::VecDeque;

use super::sites::SiteId;
use super::tensor_map::{MAX_RANK, TensorMap};

/// A copy from global to shared memory.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub to: usize,
    pub bytes: usize,
    pub from: Source,
    pub thread: usize,
    /// Whether the async proxy writes, for which no `fence_async` is needed.
    pub bulk: bool,
    pub site: SiteId,
}

#[derive(Debug, Clone)]
pub(super) enum Source {
    /// `valid` bytes from an address on, then zeros.
    Bytes { address: u64, valid: usize },
    /// A box of a tensor; zero outside the tensor.
    Box { map: TensorMap, coordinates: [i32; MAX_RANK] },
}

/// A copy from shared to global memory.
#[derive(Debug, Clone)]
pub(super) struct Store {
    pub from: usize,
    pub bytes: usize,
    pub to: Target,
}

#[derive(Debug, Clone)]
pub(super) enum Target {
    Bytes { address: u64 },
    Box { map: TensorMap, coordinates: [i32; MAX_RANK] },
}

/// Commit groups, which are waited for in order; the last may be open.
#[derive(Debug)]
pub(super) struct Groups<T> {
    pub open: Vec<T>,
    pub closed: VecDeque<Vec<T>>,
}

impl<T> Default for Groups<T> {
    fn default() -> Self {
        Groups { open: Vec::new(), closed: VecDeque::new() }
    }
}

impl<T> Groups<T> {
    pub(super) fn commit(&mut self) {
        self.closed.push_back(std::mem::take(&mut self.open));
    }

    /// The oldest closed group, if more than `pending` are closed.
    pub(super) fn take(&mut self, pending: usize) -> Option<Vec<T>> {
        if self.closed.len() > pending { self.closed.pop_front() } else { None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.closed.iter().all(Vec::is_empty)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.closed.iter().flatten().chain(&self.open)
    }
}

/// Loads that report to an mbarrier.
#[derive(Debug)]
pub(super) struct Flight {
    pub thread: usize,
    pub loads: Vec<Load>,
    pub mbarrier: u64,
    /// Bytes that it reports to the barrier; 0 for an arrival.
    pub bytes: u64,
    /// The vector clock that a waiting thread acquires.
    pub released: Vec<u32>,
}

/// Writes the bytes of a load to shared memory at `shared`; `window` is the window address of its byte 0.
///
/// # Safety
/// The load's source was checked to be in live allocations, and its destination in shared memory.
pub(super) unsafe fn land_load(load: &Load, shared: *mut u8, window: u64) {
    match &load.from {
        Source::Bytes { address, valid } => {
            let from: *const u8 = std::ptr::with_exposed_provenance(*address as usize);
            // SAFETY: guaranteed by the caller.
            unsafe {
                let to = shared.add(load.to);
                to.copy_from(from, *valid);
                to.add(*valid).write_bytes(0, load.bytes - *valid);
            }
        }
        Source::Box { map, coordinates } => {
            for (i, piece) in map.pieces(coordinates).into_iter().enumerate() {
                let to = map.permuted(window + (load.to + 16 * i) as u64) - window;
                let mut bytes = [0_u8; 16];
                let from = std::ptr::with_exposed_provenance::<u8>(piece.global as usize);
                // SAFETY: guaranteed by the caller; a swizzle stays inside the box.
                unsafe {
                    let inside = &mut bytes[piece.inside.clone()];
                    from.wrapping_add(piece.inside.start).copy_to(inside.as_mut_ptr(), inside.len());
                    shared.add(to as usize).copy_from(bytes.as_ptr(), 16);
                }
            }
        }
    }
}

/// Writes the bytes of a store to global memory.
///
/// # Safety
/// As `land_load`, with source and destination exchanged.
pub(super) unsafe fn land_store(store: &Store, shared: *const u8, window: u64) {
    match &store.to {
        Target::Bytes { address } => {
            let to: *mut u8 = std::ptr::with_exposed_provenance_mut(*address as usize);
            // SAFETY: guaranteed by the caller.
            unsafe { to.copy_from(shared.add(store.from), store.bytes) };
        }
        Target::Box { map, coordinates } => {
            for (i, piece) in map.pieces(coordinates).into_iter().enumerate() {
                let from = map.permuted(window + (store.from + 16 * i) as u64) - window;
                let to = std::ptr::with_exposed_provenance_mut::<u8>(piece.global as usize);
                // SAFETY: guaranteed by the caller; a swizzle stays inside the box.
                unsafe {
                    let from = shared.add(from as usize + piece.inside.start);
                    to.wrapping_add(piece.inside.start).copy_from(from, piece.inside.len());
                }
            }
        }
    }
}
