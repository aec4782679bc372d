//! Row allocator for the persistent page table: places each sequence's block table in it, and updates it incrementally.

use crate::engine::scheduler::{SequenceId, View};
use crate::ops::PageTable;

/// The rows of a page table. A sequence keeps its row as long as one of the last two steps used it, and only its new
/// pages are written.
///
/// A row has room for a power of two of pages. A sequence that outgrows it gets a larger one, and the row is free for
/// others.
#[derive(Default)]
pub struct PageRows {
    /// By [`SequenceId::slot`].
    rows: Vec<Option<Row>>,
    /// The first entries of free rows, by the logarithm of their size.
    free: Vec<Vec<usize>>,
    /// Steps so far.
    step: u64,
}

struct Row {
    sequence: SequenceId,
    /// See [`View::table`].
    table: u64,
    start: usize,
    /// The logarithm of its entries.
    size: usize,
    /// Entries that are written.
    len: usize,
    /// The last step that used it.
    step: u64,
}

/// Entries of the smallest rows.
const LEAST: usize = 8;

impl PageRows {
    /// Starts a step: rows that the last two steps did not use may be given to other sequences.
    pub fn begin_step(&mut self) {
        self.step += 1;
    }

    /// Writes the first `len` pages of a sequence to its row. Returns the row's first entry.
    pub fn place(&mut self, pages: &mut PageTable, id: SequenceId, view: View<'_>, len: usize) -> usize {
        let slot = id.slot();
        if self.rows.len() <= slot {
            self.rows.resize_with(slot + 1, || None);
        }
        let fits = |row: &Row| row.sequence == id && len <= 1 << row.size;
        let mut row = self.rows[slot].take_if(|row| fits(row)).unwrap_or_else(|| {
            self.release(slot);
            let size = len.max(LEAST).next_power_of_two().trailing_zeros() as usize;
            Row { sequence: id, table: 0, start: self.allocate(pages, size), size, len: 0, step: 0 }
        });
        if row.table != view.table {
            (row.table, row.len) = (view.table, 0);
        }
        if row.len < len {
            pages.write(row.start + row.len, &view.blocks[row.len..len]);
            row.len = len;
        }
        row.step = self.step;
        let start = row.start;
        self.rows[slot] = Some(row);
        start
    }

    /// Allocates a row. Returns its first entry.
    fn allocate(&mut self, pages: &mut PageTable, size: usize) -> usize {
        if self.free.len() <= size {
            self.free.resize_with(size + 1, Vec::new);
        }
        if self.free[size].is_empty() {
            let is_left = |row: &Row| row.step + 1 < self.step;
            let left: Vec<usize> =
                (0..self.rows.len()).filter(|&i| self.rows[i].as_ref().is_some_and(is_left)).collect();
            left.into_iter().for_each(|slot| self.release(slot));
        }
        self.free[size].pop().unwrap_or_else(|| {
            let start = pages.len();
            pages.append(&vec![0; 1 << size]);
            start
        })
    }

    fn release(&mut self, slot: usize) {
        if let Some(row) = self.rows[slot].take() {
            self.free[row.size].push(row.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::scheduler::{CacheSize, Outcome, Policy, Scheduler, Submission};
    use std::time::Duration;

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

        /// Whatever the scheduler does with blocks (preemption, copies of what is shared, prefixes from the cache,
        /// windows), every chunk's pages are its sequence's.
        #[test]
        fn every_chunk_finds_its_pages(seed in 0u64..1 << 32, window in proptest::option::of(8usize..40)) {
            let mut random = seed;
            let mut draw = |most: u64| {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (random >> 33) % most
            };
            let cache = CacheSize { blocks: 60, block_size: 4, window, balance: 1000 };
            let policy = Policy { step_tokens: 64, max_running: 16, ..Policy::default() };
            let mut scheduler = Scheduler::new(policy, cache);
            let (mut rows, mut table) = (PageRows::default(), PageTable::default());
            for step in 0..400 {
                if draw(3) == 0 {
                    let prompt = (0..1 + draw(60) as u32).map(|i| i / 9).collect();
                    let branches = 1 + draw(3) as usize;
                    let mut submission = Submission::new(prompt, 1 + draw(40) as usize);
                    submission.branches = branches;
                    let _ = scheduler.submit(Duration::from_millis(step), submission);
                }
                scheduler.schedule(Duration::from_millis(step));
                rows.begin_step();
                let mut places: Vec<(usize, usize)> = Vec::new();
                for chunk in scheduler.plan().chunks.clone() {
                    let view = scheduler.view(chunk.sequence).unwrap();
                    let len = (chunk.start + chunk.len).div_ceil(4);
                    let start = rows.place(&mut table, chunk.sequence, view, len);
                    proptest::prop_assert_eq!(&table.pages()[start..start + len], &view.blocks[..len]);
                    places.push((start, len));
                }
                // What was placed before is still there when all are.
                for (chunk, &(start, len)) in scheduler.plan().chunks.iter().zip(&places) {
                    let view = scheduler.view(chunk.sequence).unwrap();
                    proptest::prop_assert_eq!(&table.pages()[start..start + len], &view.blocks[..len]);
                }
                let sampled = scheduler.plan().chunks.iter().filter(|chunk| chunk.sample);
                let mut outcomes = Vec::new();
                for chunk in sampled {
                    for &sequence in [chunk.sequence].iter().chain(scheduler.branches(chunk.sequence)) {
                        outcomes.push(Outcome { sequence, token: draw(4) as u32, last: draw(30) == 0 });
                    }
                }
                scheduler.complete(Duration::from_millis(step), &outcomes);
            }
            // Rows are used again.
            proptest::prop_assert!(table.len() <= 2000, "{}", table.len());
        }
    }
}
