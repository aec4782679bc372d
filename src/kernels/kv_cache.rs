//! The paged cache of all layers on a device.

use super::{KvCache, KvCacheMut, KvScales, KvScalesMut, PageCopy};
use crate::device::{Memory, Slice, SliceMut, Stream};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::CacheShape;

/// Keys and values of all layers: `layers × 2 × [pages, kv_heads, page_size, head_dim]`.
pub struct Cache {
    memory: Memory,
    /// Scales of an i8 cache: f32 `layers × 2 × [pages, kv_heads, page_size]`.
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
        let dims = [2, shape.layers, shape.pages, shape.kv_heads, shape.page_size];
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

    /// All planes of a page, then those of its scales.
    pub(super) fn read_page(&self, page: u32, to: &mut Vec<u8>) -> Result<()> {
        let (shape, entries) = (self.shape, self.shape.kv_heads * self.shape.page_size);
        to.resize(shape.page_size * shape.bytes_per_token(), 0);
        let mut rest = to.as_mut_slice();
        let memories = [Some((&self.memory, entries * shape.head_dim)), self.scales.as_ref().map(|s| (s, entries))];
        for (memory, len) in memories.into_iter().flatten() {
            for plane in 0..2 * shape.layers {
                let (now, later) = rest.split_at_mut(len * memory.dtype().size());
                memory.read_at((plane * shape.pages + page as usize) * len, now)?;
                rest = later;
            }
        }
        Ok(())
    }

    /// Writes what [`read_page`](Self::read_page) returned.
    pub(super) fn write_page(&mut self, page: u32, from: &[u8]) -> Result<()> {
        let shape = self.shape;
        let bytes = shape.page_size * shape.bytes_per_token();
        if from.len() != bytes || page as usize >= shape.pages {
            let expected = format!("{bytes} bytes for a page below {}", shape.pages);
            return Err(Error::operator("cache", "page", expected, format!("{} for {page}", from.len())));
        }
        let mut rest = from;
        for (memory, len) in self.memories() {
            for plane in 0..2 * shape.layers {
                let (now, later) = rest.split_at(len * memory.dtype().size());
                memory.write_at((plane * shape.pages + page as usize) * len, now)?;
                rest = later;
            }
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
