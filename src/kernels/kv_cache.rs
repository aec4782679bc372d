//! The paged cache of all layers on a device.

use super::{KvCache, KvCacheMut, KvScales, KvScalesMut, PageCopy};
use crate::device::{Memory, Slice, SliceMut, Stream};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::CacheShape;

/// Pages that are moved to or from the host at a time.
const STAGED: usize = 4;

/// Keys and values of all layers: `layers × 2 × [pages, kv_heads, page_size, head_dim]`. Behind them is a staging area
/// of [`STAGED`] pages, `[STAGED, layers × 2, kv_heads, page_size, head_dim]`, so that moves to and from the host are
/// few copies.
pub struct Cache {
    memory: Memory,
    /// Scales of an i8 cache: f32 `layers × 2 × [pages, kv_heads, page_size]`, and their staging area.
    scales: Option<Memory>,
    shape: CacheShape,
}

/// Scale of fp8 caches; checkpoints' own KV scales are not read yet.
const LAYER_SCALE: f32 = 1.0;

impl Cache {
    /// A cache for activations of this dtype.
    ///
    /// # Errors
    /// The kernels do not support the cache dtype, there are too many slots, or device memory is short.
    pub(super) fn new(stream: &Stream, activations: DType, shape: CacheShape) -> Result<Self> {
        if shape.dtype != activations && !matches!(shape.dtype, DType::E4M3 | DType::E5M2 | DType::I8) {
            let expected = format!("{activations} as the activations, e4m3, e5m2 or i8 on a GPU");
            return Err(Error::request("KV dtype", expected, shape.dtype));
        }
        let dims = [2, shape.layers, shape.pages.saturating_add(STAGED), shape.kv_heads, shape.page_size];
        let entries = dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
        let len = entries.and_then(|entries| entries.checked_mul(shape.head_dim));
        let slots = shape.pages.checked_mul(shape.page_size).filter(|&slots| slots < u32::MAX as usize);
        let (Some(len), Some(_)) = (len, slots) else {
            return Err(Error::operator("cache", "shape", "slots that 32 bits can number", format!("{shape:?}")));
        };
        let scales = entries.filter(|_| shape.has_scales());
        let scales = scales.map(|entries| stream.alloc(DType::F32, entries)).transpose()?;
        Ok(Self { memory: stream.alloc(shape.dtype, len)?, scales, shape })
    }

    /// Bytes of the staging area.
    pub(super) fn staging_bytes(shape: &CacheShape) -> usize {
        STAGED.saturating_mul(shape.page_bytes())
    }

    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Entries (heads of tokens) of one layer's keys; its values have as many.
    fn entries(&self) -> usize {
        self.shape.pages * self.shape.kv_heads * self.shape.page_size
    }

    /// Entries before a layer's keys; the layer's values follow its keys.
    fn first(&self, layer: usize) -> Result<usize> {
        if layer >= self.shape.layers {
            return Err(Error::operator("cache", "layer", format!("below {}", self.shape.layers), layer));
        }
        Ok(2 * layer * self.entries())
    }

    /// One layer, read-only.
    pub(super) fn read(&self, layer: usize) -> Result<KvCache<'_>> {
        let (first, entries, head_dim) = (self.first(layer)?, self.entries(), self.shape.head_dim);
        let plane = |memory, which, of_entry| plane(memory, (first + which * entries) * of_entry, entries * of_entry);
        let scales = match (&self.scales, self.shape.dtype) {
            (Some(scales), _) => KvScales::Entry { keys: plane(scales, 0, 1)?, values: plane(scales, 1, 1)? },
            (None, DType::E4M3 | DType::E5M2) => KvScales::Layer { key: LAYER_SCALE, value: LAYER_SCALE },
            (None, _) => KvScales::None,
        };
        let (keys, values) = (plane(&self.memory, 0, head_dim)?, plane(&self.memory, 1, head_dim)?);
        Ok(KvCache { keys, values, scales, pages: self.shape.pages, page_size: self.shape.page_size })
    }

    /// One layer, to write.
    pub(super) fn write(&mut self, layer: usize) -> Result<KvCacheMut<'_>> {
        let (first, entries, shape) = (self.first(layer)?, self.entries(), self.shape);
        let scales = match (&mut self.scales, shape.dtype) {
            (Some(scales), _) => {
                let (keys, values) = both(scales, first, entries)?;
                KvScalesMut::Entry { keys, values }
            }
            (None, DType::E4M3 | DType::E5M2) => KvScalesMut::Layer { key: LAYER_SCALE, value: LAYER_SCALE },
            (None, _) => KvScalesMut::None,
        };
        let (keys, values) = both(&mut self.memory, first * shape.head_dim, entries * shape.head_dim)?;
        Ok(KvCacheMut { keys, values, scales, pages: shape.pages, page_size: shape.page_size })
    }

    /// The memory of elements, and of scales if there are any, with a page's elements per plane.
    fn memories(&mut self) -> impl Iterator<Item = (&mut Memory, usize)> {
        let entries = self.shape.kv_heads * self.shape.page_size;
        let scales = self.scales.as_mut().map(|scales| (scales, entries));
        [Some((&mut self.memory, entries * self.shape.head_dim)), scales].into_iter().flatten()
    }

    fn check_pages(&self, pages: &[u32]) -> Result<()> {
        match pages.iter().find(|&&page| page as usize >= self.shape.pages) {
            Some(page) => Err(Error::operator("cache", "pages", format!("below {}", self.shape.pages), page)),
            None => Ok(()),
        }
    }

    /// Copies pages, at most [`STAGED`], from their planes to the staging area, or back. One launch for each memory: a
    /// memory is a single plane here, whose pages are all pages of all planes.
    fn stage(&mut self, stream: &Stream, pages: &[u32], is_read: bool) -> Result<()> {
        let (planes, count) = (2 * self.shape.layers, pages.len());
        let area = planes * self.shape.pages;
        let pair = |(slot, plane): (usize, usize)| {
            let place = (plane * self.shape.pages + pages[slot] as usize) as u32;
            let staged = (area + slot * planes + plane) as u32;
            if is_read { [place, staged] } else { [staged, place] }
        };
        let pairs: Vec<[u32; 2]> = (0..count * planes).map(|i| pair((i / planes, i % planes))).collect();
        let mut there = stream.alloc(DType::U32, 2 * pairs.len())?;
        there.write(pairs.as_flattened())?;
        for (memory, page) in self.memories() {
            let (pairs, count, pages) = (there.slice(), pairs.len(), area + STAGED * planes);
            PageCopy { cache: memory.slice_mut(), pairs, count, planes: 1, pages, page }.launch(stream)?;
        }
        Ok(())
    }

    /// Pages one after another: for each all of its planes, then those of its scales. The stream is waited for once for
    /// each memory and [`STAGED`] pages.
    pub(super) fn read_pages(&mut self, stream: &Stream, pages: &[u32]) -> Result<Vec<u8>> {
        self.check_pages(pages)?;
        let (shape, planes) = (self.shape, 2 * self.shape.layers);
        let mut bytes = vec![0; pages.len() * shape.page_bytes()];
        for (pages, to) in pages.chunks(STAGED).zip(bytes.chunks_mut((STAGED * shape.page_bytes()).max(1))) {
            self.stage(stream, pages, true)?;
            let mut start = 0;
            for (memory, page) in self.memories() {
                let len = planes * page * memory.dtype().size();
                let mut staged = vec![0; pages.len() * len];
                memory.read_at(planes * shape.pages * page, &mut staged)?;
                for (to, staged) in to.chunks_mut(shape.page_bytes()).zip(staged.chunks(len.max(1))) {
                    to[start..start + len].copy_from_slice(staged);
                }
                start += len;
            }
        }
        Ok(bytes)
    }

    /// Writes what [`read_pages`](Self::read_pages) returned. Nothing is waited for but the copies' own buffers.
    pub(super) fn write_pages(&mut self, stream: &Stream, pages: &[u32], from: &[u8]) -> Result<()> {
        self.check_pages(pages)?;
        let (shape, planes) = (self.shape, 2 * self.shape.layers);
        if from.len() != pages.len() * shape.page_bytes() {
            let expected = format!("{} bytes for each of {} pages", shape.page_bytes(), pages.len());
            return Err(Error::operator("cache", "pages", expected, from.len()));
        }
        for (pages, from) in pages.chunks(STAGED).zip(from.chunks((STAGED * shape.page_bytes()).max(1))) {
            let mut start = 0;
            for (memory, page) in self.memories() {
                let len = planes * page * memory.dtype().size();
                let of_page = from.chunks(shape.page_bytes()).map(|from| &from[start..start + len]);
                let staged: Vec<u8> = of_page.flatten().copied().collect();
                memory.write_at(planes * shape.pages * page, &staged)?;
                start += len;
            }
            self.stage(stream, pages, false)?;
        }
        Ok(())
    }

    /// Copies pages `[from, to]`, already checked, in every layer.
    pub(super) fn copy_pages(&mut self, stream: &Stream, pairs: &[[u32; 2]]) -> Result<()> {
        let shape = self.shape;
        let mut there = stream.alloc(DType::U32, 2 * pairs.len())?;
        there.write(pairs.as_flattened())?;
        for (memory, page) in self.memories() {
            let (pairs, count) = (there.slice(), pairs.len());
            let (planes, pages) = (2 * shape.layers, shape.pages);
            PageCopy { cache: memory.slice_mut(), pairs, count, planes, pages, page }.launch(stream)?;
        }
        Ok(())
    }
}

/// `len` elements from `start` on.
fn plane(memory: &Memory, start: usize, len: usize) -> Result<Slice<'_>> {
    memory.slice().range(start..start + len).ok_or_else(|| too_short(memory.len()))
}

/// Keys and values of `len` elements each, from `start` on.
fn both(memory: &mut Memory, start: usize, len: usize) -> Result<(SliceMut<'_>, SliceMut<'_>)> {
    let found = memory.len();
    let both = memory.slice_mut().range(start..start + 2 * len).and_then(|both| both.split_at(len));
    both.ok_or_else(|| too_short(found))
}

fn too_short(found: usize) -> Error {
    Error::operator("cache", "memory", "all layers", found)
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::device::SimOptions;
    use crate::kernels::Gpu;

    #[test]
    fn a_cache_takes_its_pages_and_the_staging_area_which_is_reckoned_as_workspace() {
        for dtype in [DType::BF16, DType::E4M3, DType::I8] {
            let stream = Stream::sim(SimOptions::default()).unwrap();
            let shape = CacheShape { layers: 3, pages: 5, page_size: 16, kv_heads: 2, head_dim: 64, dtype };
            let before = stream.free_bytes().unwrap();
            let _cache = Cache::new(&stream, DType::BF16, shape).unwrap();
            let taken = before - stream.free_bytes().unwrap();
            let workspace = |layers| Gpu::workspace_bytes(&CacheShape { layers, ..shape });
            assert_eq!(taken, shape.bytes() as u64 + workspace(3) - workspace(0));
        }
    }
}
