//! Stacks for fibers.

use std::io;
use std::sync::{Mutex, PoisonError};

use corosensei::stack::{DefaultStack, Stack, StackPointer};

use super::run::MAX_THREADS;

/// Much more than a kernel's frames need; only touched pages cost memory.
const BYTES: usize = 512 << 10;
/// Stacks start at different offsets in their page, because their used parts would otherwise compete for the same cache
/// lines.
const COLOURS: usize = 32;
const COLOUR_BYTES: usize = 4096 / COLOURS;

/// Free stacks, shared by all simulators: mapping one costs more than a small kernel.
static KEPT: Mutex<Vec<FiberStack>> = Mutex::new(Vec::new());
/// The most stacks that are kept; others are unmapped.
const MOST_KEPT: usize = 4 * MAX_THREADS as usize;

/// A stack that starts some bytes below its mapping's end.
pub(super) struct FiberStack {
    mapping: DefaultStack,
    offset: usize,
}

// SAFETY: as for the mapping; the base differs by a multiple of every alignment that a stack needs.
unsafe impl Stack for FiberStack {
    fn base(&self) -> StackPointer {
        let base = self.mapping.base();
        StackPointer::new(base.get() - self.offset).unwrap_or(base)
    }

    fn limit(&self) -> StackPointer {
        self.mapping.limit()
    }
}

/// The stacks of one launch.
pub(super) struct Stacks(Vec<FiberStack>);

impl Stacks {
    /// At most `count` of the kept stacks.
    pub(super) fn take(count: usize) -> Self {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let from = kept.len().saturating_sub(count);
        Stacks(kept.split_off(from))
    }

    pub(super) fn pop(&mut self) -> io::Result<FiberStack> {
        if let Some(stack) = self.0.pop() {
            return Ok(stack);
        }
        let mapping = DefaultStack::new(BYTES)?;
        // The distance of two mappings is an odd number of pages, so offsets differ.
        let offset = mapping.base().get() / 4096 % COLOURS * COLOUR_BYTES;
        Ok(FiberStack { mapping, offset })
    }

    pub(super) fn push(&mut self, stack: FiberStack) {
        self.0.push(stack);
    }

    pub(super) fn keep(self) {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST_KEPT.saturating_sub(kept.len());
        kept.extend(self.0.into_iter().take(room));
    }
}
