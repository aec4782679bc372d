//! Masks: which tokens a row may choose, computed on another thread while the step's other work is done.

use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// Which tokens may be chosen. Bit `t % 32` of word `t / 32` is set where token `t` may: `⌈vocab / 32⌉` words, or none
/// where all may. Clones share the words.
#[derive(Clone, Debug)]
pub struct Mask(Arc<Shared>);

/// The producer's half of a deferred [`Mask`]. Dropping it without [`keep`](Self::keep) leaves the row unconstrained.
#[derive(Debug)]
pub struct MaskPromise(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    words: OnceLock<Vec<u32>>,
    /// Held while the words are set, so that a wait with a limit does not miss it.
    lock: Mutex<()>,
    kept: Condvar,
}

impl Mask {
    pub fn new(words: Vec<u32>) -> Self {
        Self(Arc::new(Shared { words: OnceLock::from(words), ..Shared::default() }))
    }

    /// A mask that another thread computes.
    pub fn promised() -> (Self, MaskPromise) {
        let shared = Arc::new(Shared::default());
        (Self(Arc::clone(&shared)), MaskPromise(shared))
    }

    /// Waits for it.
    pub fn words(&self) -> &[u32] {
        self.0.words.wait()
    }

    /// Waits for it, but no longer than this. False where it is not there by then.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        let mut guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.0.words.get().is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = self.0.kept.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl MaskPromise {
    pub fn keep(self, words: Vec<u32>) {
        self.set(words);
    }

    fn set(&self, words: Vec<u32>) {
        let _guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // A mask that was kept stays as it is.
        let _ = self.0.words.set(words);
        self.0.kept.notify_all();
    }
}

impl Drop for MaskPromise {
    fn drop(&mut self) {
        self.set(Vec::new());
    }
}
