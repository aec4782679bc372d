//! The paged cache of keys and values.

use std::ops::Range;

use crate::cpu::buffer::{Convert, Pages, check_dtype, too_large};
use crate::cpu::simd::{F32, Isa, with_cache_element};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::CacheShape;

/// Keys and values of all layers: `layers × 2 × [pages, kv_heads, page_size, head_dim]`.
pub struct Cache {
    shape: CacheShape,
    pages: Pages,
    /// Of i8: what an entry's codes are multiplied by, f32 `layers × 2 × [pages, kv_heads, page_size]`.
    scales: Option<Pages>,
}

impl Cache {
    pub(crate) fn new(shape: CacheShape) -> Result<Self> {
        const OP: &str = "cache";
        if !matches!(shape.dtype, DType::E4M3 | DType::E5M2 | DType::I8) {
            check_dtype(OP, shape.dtype)?;
        }
        if !shape.page_size.is_power_of_two() {
            return Err(Error::operator(OP, "page_size", "a power of two", shape.page_size));
        }
        let entries = [2, shape.layers, shape.pages, shape.page_size, shape.kv_heads];
        let entries = entries.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
        let entry = shape.head_dim.checked_mul(shape.dtype.size());
        let bytes = entries.and_then(|entries| entries.checked_mul(entry?));
        // No entry takes less than its scale would.
        let scales = entries.and_then(|entries| entries.checked_mul(DType::F32.size()));
        let slots = shape.pages.checked_mul(shape.page_size).filter(|&slots| slots <= u32::MAX as usize);
        match (bytes.filter(|&bytes| bytes <= isize::MAX as usize), slots) {
            (Some(bytes), Some(_)) => {
                let scales = scales.filter(|_| shape.has_scales()).map(Pages::new).transpose()?;
                Ok(Self { shape, pages: Pages::new(bytes)?, scales })
            }
            _ => Err(Error::operator(OP, "shape", "a size that fits memory", format!("{shape:?}"))),
        }
    }

    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// All of it as the numbers that are stored, in the order of its shape.
    ///
    /// # Errors
    /// No room for the copy.
    pub fn read(&self) -> Result<Vec<f32>> {
        let n = 2 * self.shape.layers * self.plane();
        let mut values = Vec::new();
        values.try_reserve_exact(n).map_err(|_| too_large("cache", n))?;
        values.resize(n, 0f32);
        with_cache_element!(self.shape.dtype, E => Isa::best().run(Convert::<E, F32>::new(
            self.pages.as_ptr(),
            values.as_mut_ptr().cast(),
            n,
        )));
        if let Some(scales) = &self.scales {
            for (codes, scale) in
                values.chunks_exact_mut(self.shape.head_dim.max(1)).zip(scales.bytes().chunks_exact(4))
            {
                let scale = f32::from_ne_bytes([scale[0], scale[1], scale[2], scale[3]]);
                codes.iter_mut().for_each(|code| *code *= scale);
            }
        }
        Ok(values)
    }

    /// Elements between the keys of one layer and its values.
    pub(crate) fn plane(&self) -> usize {
        let CacheShape { pages, page_size, kv_heads, head_dim, .. } = self.shape;
        pages * page_size * kv_heads * head_dim
    }

    /// Entries of the keys, or of the values, of one layer.
    pub(crate) fn entries(&self) -> usize {
        self.shape.pages * self.shape.page_size * self.shape.kv_heads
    }

    /// A layer's keys (0) or values (1), and their scales where they have any; the layer must be one of the cache's.
    pub(crate) fn at(&self, layer: usize, which: usize) -> (*const u8, *const f32) {
        let plane = 2 * layer + which;
        let first = plane * self.entries();
        let scales = self.scales.as_ref().map(|scales| scales.as_ptr().cast::<f32>().wrapping_add(first));
        let offset = plane * self.plane() * self.shape.dtype.size();
        (self.pages.as_ptr().wrapping_add(offset), scales.unwrap_or(std::ptr::null()))
    }

    /// The same, to write.
    pub(crate) fn at_mut(&mut self, layer: usize, which: usize) -> (*mut u8, *mut f32) {
        let plane = 2 * layer + which;
        let first = plane * self.entries();
        let scales = self.scales.as_mut().map(|scales| scales.as_mut_ptr().cast::<f32>().wrapping_add(first));
        let offset = plane * self.plane() * self.shape.dtype.size();
        (self.pages.as_mut_ptr().wrapping_add(offset), scales.unwrap_or(std::ptr::null_mut()))
    }

    /// Where a page lies: its bytes in each plane, then those of its scales.
    fn ranges(&self, page: u32) -> Result<[Vec<Range<usize>>; 2]> {
        let CacheShape { layers, pages, dtype, .. } = self.shape;
        if page as usize >= pages {
            return Err(Error::operator("cache", "page", format!("below {pages}"), page));
        }
        let planes = |plane: usize| -> Vec<Range<usize>> {
            let bytes = plane / pages;
            let first = |i: usize| i * plane + page as usize * bytes;
            (0..2 * layers).map(|i| first(i)..first(i) + bytes).collect()
        };
        let scales = self.scales.as_ref().map(|_| planes(self.entries() * DType::F32.size()));
        Ok([planes(self.plane() * dtype.size()), scales.unwrap_or_default()])
    }

    /// Appends a page to `to`.
    pub(crate) fn read_page(&self, page: u32, to: &mut Vec<u8>) -> Result<()> {
        let [data, scales] = self.ranges(page)?;
        data.into_iter().for_each(|range| to.extend_from_slice(&self.pages.bytes()[range]));
        if let Some(memory) = &self.scales {
            scales.into_iter().for_each(|range| to.extend_from_slice(&memory.bytes()[range]));
        }
        Ok(())
    }

    /// Writes the bytes of a page.
    pub(crate) fn write_page(&mut self, page: u32, from: &[u8]) -> Result<()> {
        let [data, scales] = self.ranges(page)?;
        let mut rest = from;
        let mut next = |to: &mut [u8]| {
            let (now, later) = rest.split_at(to.len());
            to.copy_from_slice(now);
            rest = later;
        };
        data.into_iter().for_each(|range| next(&mut self.pages.bytes_mut()[range]));
        if let Some(memory) = &mut self.scales {
            scales.into_iter().for_each(|range| next(&mut memory.bytes_mut()[range]));
        }
        Ok(())
    }

    pub(crate) fn check_layer(&self, op: &'static str, layer: usize) -> Result<()> {
        if layer < self.shape.layers {
            return Ok(());
        }
        Err(Error::operator(op, "layer", format!("below {}", self.shape.layers), layer))
    }
}
