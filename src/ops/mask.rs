//! Which tokens may be chosen, perhaps before anybody knows.

use std::sync::{Arc, OnceLock};

/// Which tokens may be chosen. Bit `t % 32` of word `t / 32` is set where token `t` may: `⌈vocab / 32⌉` words, or none
/// where all may. Clones share the words.
#[derive(Clone, Debug)]
pub struct Mask(Arc<OnceLock<Vec<u32>>>);

/// Whoever is to say what a [`Mask`] is. Dropped without a word, it lets all tokens be chosen.
#[derive(Debug)]
pub struct MaskPromise(Arc<OnceLock<Vec<u32>>>);

impl Mask {
    pub fn new(words: Vec<u32>) -> Self {
        Self(Arc::new(OnceLock::from(words)))
    }

    /// A mask that another thread computes, at best while the step's other work is done.
    pub fn promised() -> (Self, MaskPromise) {
        let cell = Arc::new(OnceLock::new());
        (Self(Arc::clone(&cell)), MaskPromise(cell))
    }

    /// Waits for it.
    pub fn words(&self) -> &[u32] {
        self.0.wait()
    }
}

impl MaskPromise {
    pub fn keep(self, words: Vec<u32>) {
        // Nobody else sets it.
        let _ = self.0.set(words);
    }
}

impl Drop for MaskPromise {
    fn drop(&mut self) {
        // Kept already, as a rule.
        let _ = self.0.set(Vec::new());
    }
}
