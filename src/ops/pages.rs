//! Copies of KV cache pages, on the device and to and from host memory.

use crate::error::{Error, Result};

/// Moves of pages between device and host memory before a step: first those to the host, then those from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageMoves {
    /// `[page, place in the host's memory]`.
    pub to_host: Vec<[u32; 2]>,
    /// `[place in the host's memory, page]`.
    pub from_host: Vec<[u32; 2]>,
}

impl PageMoves {
    pub fn is_empty(&self) -> bool {
        self.to_host.is_empty() && self.from_host.is_empty()
    }
}

/// Checks that page copies, `[from, to]` each, can be done in any order: all pages exist, none is written twice, and
/// none is both read and written.
pub(crate) fn check_page_copies(pages: usize, pairs: &[[u32; 2]]) -> Result<()> {
    const OP: &str = "page_copy";
    let mut written: Vec<u32> = pairs.iter().map(|&[_, to]| to).collect();
    written.sort_unstable();
    if let Some(twice) = written.windows(2).find(|two| two[0] == two[1]) {
        return Err(Error::operator(OP, "pairs", "each page written once", format!("page {} twice", twice[0])));
    }
    for &[from, to] in pairs {
        if let Some(page) = [from, to].into_iter().find(|&page| page as usize >= pages) {
            return Err(Error::operator(OP, "pairs", format!("pages below {pages}"), page));
        }
        if written.binary_search(&from).is_ok() {
            return Err(Error::operator(OP, "pairs", "pages read or written", format!("page {from} both")));
        }
    }
    Ok(())
}
