//! Pages of the KV cache, copied to others in every layer.

use crate::cpu::kv_cache::Cache;
use crate::cpu::pool::{Pool, Shareable};
use crate::error::Result;
use crate::ops::{CacheShape, check_page_copies};

pub(crate) fn page_copy(pool: &Pool, cache: &mut Cache, pairs: &[[u32; 2]]) -> Result<()> {
    let shape = cache.shape();
    check_page_copies(shape.pages, pairs)?;
    if shape.layers == 0 {
        return Ok(());
    }
    let (data, scales) = cache.at_mut(0, 0);
    copy(pool, data, cache.plane() * shape.dtype.size(), &shape, pairs);
    if shape.has_scales() {
        copy(pool, scales.cast(), cache.entries() * size_of::<f32>(), &shape, pairs);
    }
    Ok(())
}

/// `memory` is all planes of the cache, of `plane` bytes each; the pairs were checked.
fn copy(pool: &Pool, memory: *mut u8, plane: usize, shape: &CacheShape, pairs: &[[u32; 2]]) {
    let page = plane / shape.pages.max(1);
    let memory = Shareable::new(memory);
    pool.run(2 * shape.layers * pairs.len(), &|_, task| {
        let [from, to] = pairs[task % pairs.len()];
        // SAFETY: both pages are the cache's and not the same; no page is written by two tasks, or written by one and
        // read by another.
        unsafe {
            let plane = memory.get().add(task / pairs.len() * plane);
            std::ptr::copy_nonoverlapping(plane.add(from as usize * page), plane.add(to as usize * page), page);
        }
    });
}
