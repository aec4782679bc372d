//! Persistent page tables, which a device copies and updates incrementally.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// The page numbers of many sequences, each in the order of its positions. It keeps a change log, so that copies on
/// devices are updated incrementally.
pub struct PageTable {
    /// Unique among all tables.
    id: u64,
    pages: Vec<u32>,
    /// The change log: changed entries in order, without the first `forgotten` changes.
    changes: Vec<u32>,
    forgotten: u64,
    /// The highest page that was ever written.
    highest: Option<u32>,
}

/// A version of a table, kept beside a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageTableMark {
    table: u64,
    changes: u64,
}

impl PageTable {
    /// All entries.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The highest page that was ever written.
    pub fn highest(&self) -> Option<u32> {
        self.highest
    }

    /// Writes entries from `start` on; the table grows as far as they reach, by zeros where there is a gap.
    pub fn write(&mut self, start: usize, pages: &[u32]) {
        let (old, end) = (self.pages.len(), start + pages.len());
        if end > old {
            self.pages.resize(end, 0);
        }
        self.pages[start..end].copy_from_slice(pages);
        self.changes.extend(start.min(old) as u32..end as u32);
        self.highest = self.highest.max(pages.iter().max().copied());
        // A copy that lacks more than half of the table is as well replaced.
        let most = self.pages.len();
        if self.changes.len() > most {
            self.forgotten += (self.changes.len() - most / 2) as u64;
            self.changes.drain(..self.changes.len() - most / 2);
        }
    }

    /// Appends entries.
    pub fn append(&mut self, pages: &[u32]) {
        self.write(self.pages.len(), pages);
    }

    pub(crate) fn mark(&self) -> PageTableMark {
        PageTableMark { table: self.id, changes: self.forgotten + self.changes.len() as u64 }
    }

    /// Entries that changed since then, possibly with duplicates; `None` where the whole table must be copied.
    pub(crate) fn since(&self, mark: Option<PageTableMark>) -> Option<&[u32]> {
        let mark = mark.filter(|mark| mark.table == self.id)?;
        let known = mark.changes.checked_sub(self.forgotten)?;
        self.changes.get(usize::try_from(known).ok()?..)
    }
}

impl fmt::Debug for PageTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pages.fmt(f)
    }
}

impl Default for PageTable {
    fn default() -> Self {
        static TABLES: AtomicU64 = AtomicU64::new(0);
        let id = TABLES.fetch_add(1, Ordering::Relaxed);
        Self { id, pages: Vec::new(), changes: Vec::new(), forgotten: 0, highest: None }
    }
}

impl From<Vec<u32>> for PageTable {
    fn from(pages: Vec<u32>) -> Self {
        let mut table = Self::default();
        table.write(0, &pages);
        table
    }
}

/// A new table with the same entries: copies of the old table are not copies of the new one.
impl Clone for PageTable {
    fn clone(&self) -> Self {
        Self::from(self.pages.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copy that follows.
    #[derive(Default)]
    struct Follower {
        pages: Vec<u32>,
        mark: Option<PageTableMark>,
        whole: usize,
    }

    impl Follower {
        fn follow(&mut self, table: &PageTable) {
            self.pages.resize(table.len(), u32::MAX);
            match table.since(self.mark) {
                Some(changed) => changed.iter().for_each(|&at| self.pages[at as usize] = table.pages()[at as usize]),
                None => {
                    self.pages.copy_from_slice(table.pages());
                    self.whole += 1;
                }
            }
            self.mark = Some(table.mark());
        }
    }

    proptest::proptest! {
        /// However often each looks, all that follow a table have what it has.
        #[test]
        fn copies_follow(writes in proptest::collection::vec((0usize..300, 0usize..40, 1u32..9), 0..60)) {
            let mut table = PageTable::default();
            let mut copies: [Follower; 3] = Default::default();
            for (i, &(start, len, page)) in writes.iter().enumerate() {
                table.write(start, &vec![page; len]);
                for (lag, copy) in copies.iter_mut().enumerate() {
                    if i % (5 * lag + 1) == 0 {
                        copy.follow(&table);
                        proptest::prop_assert_eq!(&copy.pages, table.pages());
                    }
                }
            }
            proptest::prop_assert!(table.pages().iter().max() <= table.highest().as_ref());
            proptest::prop_assert!(table.changes.len() <= table.len());
        }
    }

    #[test]
    fn few_changes_are_told_one_by_one() {
        let mut table = PageTable::from((0..1000).collect::<Vec<u32>>());
        let mut copy = Follower::default();
        copy.follow(&table);
        for i in 0..10_000 {
            table.write(i * 7 % 1000, &[i as u32]);
            table.write(i * 11 % 1000, &[i as u32]);
            assert_eq!(table.since(copy.mark).map(<[u32]>::len), Some(2));
            copy.follow(&table);
            assert_eq!(copy.pages, table.pages());
        }
        assert_eq!(copy.whole, 1);
    }

    #[test]
    fn another_table_is_taken_as_a_whole() {
        let table = PageTable::from(vec![1, 2, 3]);
        let mark = Some(table.mark());
        assert_eq!(table.since(mark), Some(&[][..]));
        assert_eq!(table.clone().since(mark), None);
        assert_eq!(table.since(None), None);
    }
}
