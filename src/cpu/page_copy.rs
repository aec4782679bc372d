//! Pages of the KV cache, copied to others in every layer.

use crate::cpu::buffer::Cache;
use crate::cpu::pool::{Pool, Shareable};
use crate::error::{Error, Result};

const OP: &str = "page_copy";

pub(crate) fn page_copy(pool: &Pool, cache: &mut Cache, pairs: &[[u32; 2]]) -> Result<()> {
    let shape = cache.shape();
    check(shape.pages, pairs)?;
    let plane = cache.plane() * shape.dtype.size();
    let page = plane / shape.pages.max(1);
    let memory = Shareable::new(cache.as_mut_ptr());
    pool.run(2 * shape.layers * pairs.len(), &|_, task| {
        let [from, to] = pairs[task % pairs.len()];
        // SAFETY: both pages are the cache's and not the same; no page is written by two tasks, or written by one and
        // read by another.
        unsafe {
            let plane = memory.get().add(task / pairs.len() * plane);
            std::ptr::copy_nonoverlapping(plane.add(from as usize * page), plane.add(to as usize * page), page);
        }
    });
    Ok(())
}

/// Copies are done in any order: none may see what another wrote.
fn check(pages: usize, pairs: &[[u32; 2]]) -> Result<()> {
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
