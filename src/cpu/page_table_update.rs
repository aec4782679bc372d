//! A copy of a page table follows it.

use crate::ops::{PageTable, PageTableMark};

/// `pages` is what `table` was at `mark`; now it is what it is.
pub(crate) fn page_table_update(pages: &mut Vec<u32>, mark: Option<PageTableMark>, table: &PageTable) {
    match table.since(mark) {
        Some(changed) => {
            pages.resize(table.len(), 0);
            changed.iter().for_each(|&at| pages[at as usize] = table.pages()[at as usize]);
        }
        None => {
            pages.clear();
            pages.extend_from_slice(table.pages());
        }
    }
}
