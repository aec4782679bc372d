//! Optional head norm, rotary embedding of queries and keys, and the write of keys and values to the paged cache, in
//! one launch.

use super::abi::rotary_kv_write_args;
use super::call::{Call, Check, named};
use super::tables::ROTARY_KV_WRITE;
use crate::device::{Slice, SliceMut, Stream, Value, Variant};
use crate::dtype::DType;
use crate::error::{Error, Result};

const CHECK: Check = Check("rotary_kv_write");

/// One layer of the paged cache, to write.
pub struct KvCacheMut<'a> {
    /// `[pages, kv_heads, page_size, head_dim]`, of the activations' dtype, e4m3, e5m2 or i8.
    pub keys: SliceMut<'a>,
    /// The same.
    pub values: SliceMut<'a>,
    pub scales: KvScalesMut<'a>,
    pub pages: usize,
    pub page_size: usize,
}

/// Scales of an 8-bit cache.
pub enum KvScalesMut<'a> {
    /// None: the cache has the activations' dtype.
    None,
    /// e4m3 and e5m2: `x / scale` is stored, with one scale per layer.
    Layer { key: f32, value: f32 },
    /// i8: f32 `[pages, kv_heads, page_size]`, a dequantization scale per entry. An entry's largest magnitude becomes
    /// code 127.
    Entry { keys: SliceMut<'a>, values: SliceMut<'a> },
}

/// The norm of each head of queries and keys.
#[derive(Clone, Copy)]
pub struct QkGains<'a> {
    /// `[head_dim]`, of the activations' dtype.
    pub query: Slice<'a>,
    /// `[head_dim]`, of the activations' dtype.
    pub key: Slice<'a>,
    pub eps: f32,
    /// Added to the gains: 1 if the checkpoint stores `gain - 1`, else 0.
    pub offset: f32,
}

/// Rotary factors, f32 `[rows, 2, rotary_dim / 2]`: cosines, then sines. Most are in a table by position.
#[derive(Clone, Copy)]
pub struct RopeRows<'a> {
    /// u32 `[tokens]`: rows of the table and, after its last, of the batch's own factors. A token with an index beyond
    /// both writes nothing.
    pub of_tokens: Slice<'a>,
    pub table: Slice<'a>,
    pub table_rows: usize,
    pub others: Slice<'a>,
    pub other_rows: usize,
}

/// The step between the QKV projection and attention.
pub struct RotaryKvWrite<'a> {
    /// `[tokens, heads + 2 · kv_heads, head_dim]` of bf16 or f16: queries, keys, values.
    pub qkv: Slice<'a>,
    /// `[tokens, heads, head_dim]`, of the same dtype.
    pub query: SliceMut<'a>,
    pub cache: KvCacheMut<'a>,
    /// u32 `[tokens]`: `page * page_size + position % page_size`, no two alike. A token with a slot beyond the cache
    /// writes nothing, not even its query.
    pub slots: Slice<'a>,
    pub rope: RopeRows<'a>,
    pub gains: Option<QkGains<'a>>,
    pub tokens: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Rotated elements at the start of a head; element `i` pairs with `i + rotary_dim / 2`.
    pub rotary_dim: usize,
}

impl RotaryKvWrite<'_> {
    /// Checks shapes, picks a variant for the device and launches it.
    ///
    /// # Errors
    /// A slice is too short or of the wrong dtype; this build has no variant for the device; the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = ROTARY_KV_WRITE.pick(stream.arch(), &self.key()?)?;
        self.launch_variant(stream, variant)
    }

    fn key(&self) -> Result<[(&'static str, Value); 2]> {
        let (dtype, cache) = (self.qkv.dtype(), self.cache.keys.dtype());
        CHECK.dtype("qkv", dtype, &[DType::BF16, DType::F16])?;
        CHECK.dtype("keys", cache, &[dtype, DType::E4M3, DType::E5M2, DType::I8])?;
        Ok([("dtype", named(dtype)), ("cache", named(cache))])
    }

    /// Launches a given variant, for tuning and tests. All variants for a problem give the same bits.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); the variant is not one for this problem.
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        let key = self.key()?;
        let call = Call { kernel: &ROTARY_KV_WRITE, key: &key };
        call.check(variant)?;
        let args = self.args()?;
        let Self { qkv, tokens, heads, kv_heads, head_dim, .. } = self;
        let lanes = variant.int("lanes").filter(|&lanes| lanes > 0);
        let lanes = lanes.ok_or_else(|| Error::operator(CHECK.0, "variant", "lanes of a head", variant.name))?;
        let all = heads + 2 * kv_heads;
        if tokens == 0 || all == 0 || head_dim == 0 {
            return Ok(());
        }
        let blocks = [tokens, all.div_ceil((variant.threads / lanes) as usize), 1];
        let cache = self.cache.keys.dtype();
        let shape = format_args!(
            "{tokens} tokens of {heads} + 2 · {kv_heads} heads of {head_dim} {}, cache {cache}",
            qkv.dtype()
        );
        // SAFETY: every slice was checked against the shape; the kernel writes only slots that lie in the cache.
        unsafe { call.launch(stream, variant, blocks, &args, &shape) }
    }

    fn args(&self) -> Result<rotary_kv_write_args> {
        let Self { qkv, query, cache, slots, rope, gains, tokens, heads, kv_heads, head_dim, rotary_dim } = self;
        let (dtype, stored) = (qkv.dtype(), cache.keys.dtype());
        let (tokens, heads, kv_heads, head_dim) = (*tokens, *heads, *kv_heads, *head_dim);
        // Each term is small, so the sum cannot overflow.
        let sizes = [CHECK.size("heads", heads)?, CHECK.size("kv_heads", kv_heads)?, CHECK.size("head_dim", head_dim)?];
        CHECK.len("qkv", *qkv, &[tokens, heads + 2 * kv_heads, head_dim])?;
        CHECK.slice("query", query.as_slice(), dtype, &[tokens, heads, head_dim])?;
        if !rotary_dim.is_multiple_of(2) || *rotary_dim > head_dim {
            let expected = format!("an even number up to {head_dim}");
            return Err(Error::operator(CHECK.0, "rotary_dim", expected, rotary_dim));
        }
        CHECK.slice("slots", *slots, DType::U32, &[tokens])?;
        CHECK.slice("rope.of_tokens", rope.of_tokens, DType::U32, &[tokens])?;
        CHECK.slice("rope.table", rope.table, DType::F32, &[rope.table_rows, *rotary_dim])?;
        CHECK.slice("rope.others", rope.others, DType::F32, &[rope.other_rows, *rotary_dim])?;
        if let Some(gains) = gains {
            CHECK.slice("gains.query", gains.query, dtype, &[head_dim])?;
            CHECK.slice("gains.key", gains.key, dtype, &[head_dim])?;
        }
        let slot_count = cache.pages.checked_mul(cache.page_size).and_then(|slots| u32::try_from(slots).ok());
        let (Some(slot_count), true) = (slot_count, cache.page_size > 0) else {
            let found = format!("{} pages of {}", cache.pages, cache.page_size);
            return Err(Error::operator(CHECK.0, "pages", "slots that 32 bits can number", found));
        };
        let entries = [cache.pages, kv_heads, cache.page_size];
        let plane = [cache.pages, kv_heads, cache.page_size, head_dim];
        CHECK.len("keys", cache.keys.as_slice(), &plane)?;
        CHECK.slice("values", cache.values.as_slice(), stored, &plane)?;
        let mut args = rotary_kv_write_args {
            qkv: qkv.address(),
            query: query.address(),
            keys: cache.keys.address(),
            values: cache.values.address(),
            key_scales: 0,
            value_scales: 0,
            slots: slots.address(),
            rope_rows: rope.of_tokens.address(),
            rope_table: rope.table.address(),
            rope: rope.others.address(),
            query_gain: gains.map_or(0, |gains| gains.query.address()),
            key_gain: gains.map_or(0, |gains| gains.key.address()),
            tokens: CHECK.rows("tokens", tokens)?,
            heads: sizes[0],
            kv_heads: sizes[1],
            head_dim: sizes[2],
            rotary_dim: *rotary_dim as u32,
            page_size: CHECK.size("page_size", cache.page_size)?,
            eps: gains.map_or(0.0, |gains| gains.eps),
            gain_offset: gains.map_or(0.0, |gains| gains.offset),
            key_scale: 1.0,
            value_scale: 1.0,
            slot_count,
            table_rows: CHECK.size("rope.table_rows", rope.table_rows)?,
            rows: CHECK.size("rope.other_rows", rope.other_rows)?,
            padding: 0,
        };
        match (&cache.scales, stored) {
            (KvScalesMut::None, _) if stored == dtype => {}
            (KvScalesMut::Layer { key, value }, DType::E4M3 | DType::E5M2) => {
                (args.key_scale, args.value_scale) = (*key, *value);
            }
            (KvScalesMut::Entry { keys, values }, DType::I8) => {
                CHECK.slice("scales.keys", keys.as_slice(), DType::F32, &entries)?;
                CHECK.slice("scales.values", values.as_slice(), DType::F32, &entries)?;
                (args.key_scales, args.value_scales) = (keys.address(), values.address());
            }
            (found, _) => {
                let expected = match stored {
                    DType::E4M3 | DType::E5M2 => "one for the layer",
                    DType::I8 => "one for each entry",
                    _ => "none",
                };
                let found = match found {
                    KvScalesMut::None => "none",
                    KvScalesMut::Layer { .. } => "one for the layer",
                    KvScalesMut::Entry { .. } => "one for each entry",
                };
                return Err(Error::operator(CHECK.0, "scales", format!("{expected} for {stored}"), found));
            }
        }
        Ok(args)
    }
}
