//! The paged KV cache's bookkeeping: which pages are free, which belong to whom.

use crate::error::{Error, Result};

/// Free pages. Taking and giving back are O(1) a page.
pub(super) struct PagePool {
    free: Vec<u32>,
    total: usize,
    page_size: usize,
}

/// A sequence's pages, in order, and how many tokens they hold.
#[derive(Default)]
pub(super) struct Sequence {
    pub pages: Vec<u32>,
    pub len: usize,
}

impl PagePool {
    pub fn new(pages: usize, page_size: usize) -> Self {
        // Page numbers are u32 on every device; popping from the back hands out low numbers first.
        let free = (0..u32::try_from(pages).unwrap_or(u32::MAX)).rev().collect();
        Self { free, total: pages, page_size }
    }

    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Gives `sequence` the pages for `tokens` more tokens, or changes nothing.
    ///
    /// # Errors
    /// Not enough pages are free.
    pub fn reserve(&mut self, sequence: &mut Sequence, tokens: usize) -> Result<()> {
        let needed = (sequence.len + tokens).div_ceil(self.page_size).saturating_sub(sequence.pages.len());
        if needed > self.free.len() {
            return Err(Error::request(
                "KV cache",
                format_args!("room for {tokens} more tokens"),
                format_args!(
                    "{} of {} tokens free; end another generation or raise the number of KV tokens",
                    self.free.len() * self.page_size,
                    self.total * self.page_size
                ),
            ));
        }
        sequence.pages.extend(self.free.drain(self.free.len() - needed..).rev());
        Ok(())
    }

    pub fn release(&mut self, sequence: &mut Sequence) {
        self.free.extend(sequence.pages.drain(..).rev());
        sequence.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        /// Against a model that only counts: no page has two owners, none is lost, a refusal changes nothing.
        #[test]
        fn pages_are_owned_once_and_never_lost(steps in prop::collection::vec((0usize..4, 0usize..40), 1..200)) {
            let mut pool = PagePool::new(16, 4);
            let mut sequences: Vec<Sequence> = (0..4).map(|_| Sequence::default()).collect();
            for (who, tokens) in steps {
                let before = sequences[who].pages.len();
                if tokens == 0 {
                    pool.release(&mut sequences[who]);
                } else if pool.reserve(&mut sequences[who], tokens).is_ok() {
                    sequences[who].len += tokens;
                    prop_assert_eq!(sequences[who].pages.len(), sequences[who].len.div_ceil(4));
                } else {
                    prop_assert_eq!(sequences[who].pages.len(), before);
                    let needed = (sequences[who].len + tokens).div_ceil(4) - before;
                    prop_assert!(needed > pool.free.len());
                }
                let owned: Vec<u32> = sequences.iter().flat_map(|s| s.pages.clone()).chain(pool.free.clone()).collect();
                prop_assert_eq!(owned.len(), 16);
                prop_assert_eq!(owned.into_iter().collect::<HashSet<_>>().len(), 16);
            }
        }
    }
}
