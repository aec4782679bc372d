//! Pages of the KV cache, copied to others in every layer.

use crate::cpu::buffer::Cache;
use crate::cpu::pool::{Pool, Shareable};
use crate::error::Result;
use crate::ops::check_page_copies;

pub(crate) fn page_copy(pool: &Pool, cache: &mut Cache, pairs: &[[u32; 2]]) -> Result<()> {
    let shape = cache.shape();
    check_page_copies(shape.pages, pairs)?;
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
