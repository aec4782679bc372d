//! Shared by the two kernels of attention over the paged cache.

use super::abi::{attention_mask, tensor_map};
use super::call::{Check, named};
use crate::device::{Boxes, Slice, SliceMut, Stream, Swizzle, Value, Variant};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// One layer of the paged cache, read-only.
#[derive(Clone, Copy, Debug)]
pub struct KvCache<'a> {
    /// `[pages, kv_heads, page_size, head_dim]`, of the queries' dtype, e4m3, e5m2 or i8.
    pub keys: Slice<'a>,
    /// The same.
    pub values: Slice<'a>,
    pub scales: KvScales<'a>,
    pub pages: usize,
    /// Tokens of a page: a power of two up to 128.
    pub page_size: usize,
}

/// Scales of an 8-bit cache.
#[derive(Clone, Copy, Debug)]
pub enum KvScales<'a> {
    /// None: the cache has the queries' dtype.
    None,
    /// e4m3 and e5m2: one dequantization scale per layer.
    Layer { key: f32, value: f32 },
    /// i8: f32 `[pages, kv_heads, page_size]`, a dequantization scale per entry.
    Entry { keys: Slice<'a>, values: Slice<'a> },
}

/// How scores are computed from queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct Scoring<'a> {
    /// Scores are multiplied by this before the softmax.
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// Sliding window: a query at position `p` sees positions `p - window + 1 ..= p`; `None` is no limit.
    pub window: Option<usize>,
    /// Chunked attention: a query sees only its own chunk, chunks being this many positions long; `None` is no limit.
    pub chunk: Option<usize>,
    /// ALiBi slopes, f32 `[heads]`: scores rise by `slope · (key's position - query's)`.
    pub slopes: Option<Slice<'a>>,
    /// Attention sinks, f32 `[heads]`: an extra score in each head's softmax that has no value.
    pub sinks: Option<Slice<'a>>,
}

/// Words of a query's mask.
pub(super) const MASK_WORDS: usize = size_of::<attention_mask>() / 4;

/// Sizes of queries and cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Query heads, a multiple of `kv_heads`; consecutive ones share a key head.
    pub heads: usize,
    pub kv_heads: usize,
    /// At most 256.
    pub head_dim: usize,
}

/// Checked arguments that both kernels share, as fields of their argument structs.
pub(super) struct Checked {
    pub key_scales: u64,
    pub value_scales: u64,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub page_bits: u32,
    pub window: u32,
    pub chunk: u32,
    pub slopes: u64,
    pub sinks: u64,
    pub masks: u64,
    pub soft_cap: f32,
    pub key_scale: f32,
    pub value_scale: f32,
}

/// The largest head and page that the kernels support.
const MAX_HEAD_DIM: usize = 256;
const MAX_PAGE_SIZE: usize = 128;

/// The axes that the problem decides.
pub(super) fn key(
    check: Check,
    query: Slice<'_>,
    cache: &KvCache<'_>,
    heads: Heads,
) -> Result<[(&'static str, Value); 3]> {
    let dtype = query.dtype();
    check.dtype("query", dtype, &[DType::BF16, DType::F16])?;
    check.dtype("keys", cache.keys.dtype(), &[dtype, DType::E4M3, DType::E5M2, DType::I8])?;
    if heads.head_dim == 0 || heads.head_dim > MAX_HEAD_DIM {
        return Err(Error::operator(check.0, "head_dim", format!("1 to {MAX_HEAD_DIM}"), heads.head_dim));
    }
    Ok(key_of(dtype, cache.keys.dtype(), heads.head_dim))
}

/// The same without checks.
pub(super) fn key_of(dtype: DType, cache: DType, head_dim: usize) -> [(&'static str, Value); 3] {
    let laid_out_for = head_dim.next_power_of_two().max(64) as u32;
    [("dtype", named(dtype)), ("cache", named(cache)), ("head_dim", Value::Int(laid_out_for))]
}

impl Checked {
    /// # Errors
    /// Shapes or dtypes do not match; the error names kernel and field.
    pub fn new(
        check: Check,
        query: Slice<'_>,
        out: &SliceMut<'_>,
        cache: &KvCache<'_>,
        of: Heads,
        scoring: Scoring<'_>,
        masks: Option<Slice<'_>>,
    ) -> Result<Self> {
        let refuse = |field, expected: String, found: String| Err(Error::operator(check.0, field, expected, found));
        let Heads { tokens, heads, kv_heads, head_dim } = of;
        let &KvCache { keys, values, scales, pages, page_size } = cache;
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return refuse("heads", format!("a multiple of {kv_heads}"), heads.to_string());
        }
        if !page_size.is_power_of_two() || page_size > MAX_PAGE_SIZE {
            return refuse("page_size", format!("a power of two up to {MAX_PAGE_SIZE}"), page_size.to_string());
        }
        let entries = pages.checked_mul(kv_heads).and_then(|entries| entries.checked_mul(page_size));
        if entries.is_none_or(|entries| entries >= u32::MAX as usize) {
            return refuse("pages", "entries that 32 bits can number".to_owned(), pages.to_string());
        }
        check.len("query", query, &[tokens, heads, head_dim])?;
        check.slice("out", out.as_slice(), query.dtype(), &[tokens, heads, head_dim])?;
        check.len("keys", keys, &[pages, kv_heads, page_size, head_dim])?;
        check.slice("values", values, keys.dtype(), &[pages, kv_heads, page_size, head_dim])?;
        let (key_scales, value_scales, key_scale, value_scale) = match (scales, keys.dtype()) {
            (KvScales::None, DType::BF16 | DType::F16) => (0, 0, 1.0, 1.0),
            (KvScales::Layer { key, value }, DType::E4M3 | DType::E5M2) => (0, 0, key, value),
            (KvScales::Entry { keys, values }, DType::I8) => {
                check.slice("key_scales", keys, DType::F32, &[pages, kv_heads, page_size])?;
                check.slice("value_scales", values, DType::F32, &[pages, kv_heads, page_size])?;
                (keys.address(), values.address(), 1.0, 1.0)
            }
            (_, DType::I8) => return refuse("scales", "one an entry for i8".to_owned(), "others".to_owned()),
            (_, DType::E4M3 | DType::E5M2) => {
                return refuse("scales", format!("one a layer for {}", keys.dtype()), "others".to_owned());
            }
            (_, dtype) => return refuse("scales", format!("none for {dtype}"), "some".to_owned()),
        };
        for (field, factor) in [("scale", scoring.scale), ("key_scale", key_scale), ("value_scale", value_scale)] {
            if !factor.is_finite() {
                return refuse(field, "a finite number".to_owned(), factor.to_string());
            }
        }
        if let Some(cap) = scoring.soft_cap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
            return refuse("soft_cap", "a finite number above 0".to_owned(), cap.to_string());
        }
        for (field, positions) in [("window", scoring.window), ("chunk", scoring.chunk)] {
            if positions == Some(0) {
                return refuse(field, "at least 1".to_owned(), "0".to_owned());
            }
        }
        for (field, factors) in [("slopes", scoring.slopes), ("sinks", scoring.sinks)] {
            if let Some(factors) = factors {
                check.slice(field, factors, DType::F32, &[heads])?;
            }
        }
        if let Some(masks) = masks {
            check.slice("masks", masks, DType::U32, &[tokens, MASK_WORDS])?;
            aligned(check, "masks", masks, MASK_WORDS * 4)?;
        }
        let address = |slice: Option<Slice<'_>>| slice.map_or(0, |slice| slice.address());
        Ok(Self {
            key_scales,
            value_scales,
            heads: check.size("heads", heads)?,
            kv_heads: check.size("kv_heads", kv_heads)?,
            head_dim: check.size("head_dim", head_dim)?,
            page_bits: page_size.trailing_zeros(),
            // A window or chunk longer than every sequence limits nothing.
            window: scoring.window.map_or(0, |window| u32::try_from(window).unwrap_or(0)),
            chunk: scoring.chunk.map_or(0, |chunk| u32::try_from(chunk).unwrap_or(0)),
            slopes: address(scoring.slopes),
            sinks: address(scoring.sinks),
            masks: address(masks),
            soft_cap: scoring.soft_cap.unwrap_or(0.0),
            key_scale,
            value_scale,
        })
    }
}

/// Warps that hold rows, per block or per warpgroup.
const WARPS: usize = 4;
/// Rows of a warp, or of several warps that share them.
const ROW_TILE: usize = 16;

/// Row tiles of warps, and how many warps share each. Kernels without that axis share among all warps.
pub(super) fn row_tiles(variant: &Variant) -> [usize; 2] {
    let axis = |name| variant.int(name).map_or(WARPS, |value| value.max(1) as usize);
    if by_warpgroups(variant) {
        // Producer warps do not count: one warp, or a warpgroup.
        [axis("threads").saturating_sub(32) / 128 * WARPS, 1]
    } else {
        let share = axis("share").min(WARPS);
        [WARPS / share, share]
    }
}

/// Rows of a block.
pub(super) fn rows_of(variant: &Variant) -> usize {
    row_tiles(variant)[0] * ROW_TILE
}

/// Whether a variant is Hopper's form: TMA copies and wgmma.
pub(super) fn by_warpgroups(variant: &Variant) -> bool {
    variant.value("instruction") == Some(Value::Text("m64k16"))
}

/// Tensor maps of keys and values for TMA and the rows of a box; 0 rows if threads copy instead.
pub(super) struct CacheBoxes {
    pub keys: tensor_map,
    pub values: tensor_map,
    pub rows: u32,
}

impl CacheBoxes {
    /// Positions of a KV tile, columns of a box, and the period of the swizzle in rows.
    const TILE: usize = 64;
    const COLUMNS: u32 = 64;
    const LEAST_ROWS: usize = 8;

    /// # Errors
    /// The device has no TMA for such a cache.
    pub fn new(stream: &Stream, variant: &Variant, cache: &KvCache<'_>, heads: Heads) -> Result<Self> {
        let &KvCache { keys, values, pages, page_size, .. } = cache;
        let entry_bytes = heads.head_dim * keys.dtype().size();
        let entries = pages * heads.kv_heads * page_size;
        let aligned = (entry_bytes as u64 | keys.address() | values.address()).is_multiple_of(16);
        // TMA coordinates are signed.
        let numbered = (1..=i32::MAX as usize).contains(&entries);
        if !(by_warpgroups(variant) && aligned && numbered && page_size >= Self::LEAST_ROWS) {
            let none = tensor_map { opaque: [0; 16] };
            return Ok(Self { keys: none, values: none, rows: 0 });
        }
        let rows = page_size.min(Self::TILE) as u32;
        let boxes = |plane: Slice<'_>| -> Result<tensor_map> {
            let boxes = Boxes {
                address: plane.address(),
                element_bytes: plane.dtype().size() as u32,
                dims: &[heads.head_dim as u64, entries as u64],
                strides: &[entry_bytes as u64],
                sides: &[Self::COLUMNS, rows],
                swizzle: Swizzle::Bytes128,
            };
            Ok(tensor_map { opaque: stream.tensor_map(&boxes)? })
        };
        Ok(Self { keys: boxes(keys)?, values: boxes(values)?, rows })
    }
}

/// The number of records of `words` words in a list, which must be aligned for the kernels' vector loads.
pub(super) fn records(check: Check, field: &'static str, list: Slice<'_>, words: usize) -> Result<usize> {
    check.dtype(field, list.dtype(), &[DType::U32])?;
    if !list.len().is_multiple_of(words) {
        return Err(Error::operator(check.0, field, format!("a multiple of {words} elements"), list.len()));
    }
    aligned(check, field, list, words * 4)?;
    Ok(list.len() / words)
}

/// # Errors
/// The slice is not aligned to `bytes` bytes.
pub(super) fn aligned(check: Check, field: &'static str, slice: Slice<'_>, bytes: usize) -> Result<()> {
    if !slice.address().is_multiple_of(bytes as u64) {
        return Err(Error::operator(check.0, field, format!("an address aligned to {bytes} bytes"), slice.address()));
    }
    Ok(())
}
