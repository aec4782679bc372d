//! Attention of the newest queries of each sequence.

use super::abi::{attention_decode_args, attention_span};
use super::attention::{CacheBoxes, Checked, Heads, KvCache, Scoring, aligned, by_warpgroups, key, records, rows_of};
use super::call::{Call, Check};
use super::tables::ATTENTION_DECODE;
use crate::device::{Slice, SliceMut, Stream, Value, Variant};
use crate::dtype::DType;
use crate::error::Result;

const CHECK: Check = Check("attention_decode");

/// Blocks for each multiprocessor: as many as have room on those with most shared memory. By warpgroups one has room,
/// whose copies run ahead from item to item.
const BLOCKS_PER_PROCESSOR: usize = 4;
/// Positions of a split, as in csrc/kernels. The blocks take items until none is left, so a wrong size here would cost
/// time, and nothing else.
pub(super) const SPLIT: usize = 512;

/// Where the states of splits wait for the last one of their sequence, which merges them.
///
/// A sequence whose splits find no room here is walked by one block, with the same result.
#[derive(Debug)]
pub struct SplitStates<'a> {
    /// u32, zeros; they are zeros again after each launch.
    pub counters: SliceMut<'a>,
    /// f32. A row of a split takes `head_dim` (one more if it is odd) + 2 of them, and a counter.
    pub partials: SliceMut<'a>,
}

impl SplitStates<'_> {
    /// States of rows after a split that there is room for.
    pub fn records(&self, head_dim: usize) -> usize {
        Self::room(self.counters.len(), self.partials.len(), head_dim)
    }

    /// The same of so many elements.
    pub(super) fn room(counters: usize, partials: usize, head_dim: usize) -> usize {
        counters.min(partials / (head_dim.next_multiple_of(2) + 2))
    }
}

/// Softmax attention of one query, or a few, of each sequence over the paged cache.
///
/// A query gets the same bits here as from [`AttentionPrefill`](super::AttentionPrefill), and in any company. A fixed
/// number of blocks divides sequences, key heads and splits of 512 positions among itself on the device, so that a
/// recorded launch serves sequences of any length.
#[derive(Debug)]
pub struct AttentionDecode<'a> {
    /// `[tokens, heads, head_dim]`, bf16 or f16.
    pub query: Slice<'a>,
    /// The same.
    pub out: SliceMut<'a>,
    /// Keys and values, those of these queries included.
    pub cache: KvCache<'a>,
    /// u32 `[spans, 4]`: first token of the batch, number of queries (0 writes nothing), tokens in the cache, first
    /// entry in the page table. Aligned to 16 bytes.
    pub spans: Slice<'a>,
    /// u32. Entry `p / page_size` of a sequence holds position `p`. What spans and entries name must exist.
    pub page_table: Slice<'a>,
    pub states: SplitStates<'a>,
    /// u32 `[tokens, 4]`, or `None` where every query sees all positions up to its own. Begin and end of a range of
    /// positions around the query's that it sees besides, as do all queries of the range, whose keys are in the cache;
    /// and 64 bits, the lower half first, of the span's queries that are on the way from the root of a tree to this
    /// one, parents before their children, itself included. It sees those, and what was in the cache before the span;
    /// for window and chunk it stands behind the queries above it, for slopes where its key is, which is not what a
    /// tree wants. All zeros leave a query as it is; those of a span have branches or have none. Aligned to 16 bytes.
    pub masks: Option<Slice<'a>>,
    pub heads: Heads,
    pub scoring: Scoring<'a>,
}

impl AttentionDecode<'_> {
    /// Checks the shapes, picks the device's variant and enqueues it.
    ///
    /// # Errors
    /// Shapes or types do not belong together, the build has no variant for the device, or the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = ATTENTION_DECODE.pick(stream.arch(), &self.key()?)?;
        self.launch_variant(stream, variant)
    }

    fn key(&self) -> Result<[(&'static str, Value); 3]> {
        key(CHECK, self.query, &self.cache, self.heads)
    }

    /// The same with a variant of the caller's choice, for tuning and tests.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); or the variant is for other types.
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        let call = Call { kernel: &ATTENTION_DECODE, key: &self.key()? };
        let checked = Checked::new(CHECK, self.query, &self.out, &self.cache, self.heads, self.scoring, self.masks)?;
        let spans = records(CHECK, "spans", self.spans, size_of::<attention_span>() / 4)?;
        records(CHECK, "page_table", self.page_table, 1)?;
        let SplitStates { counters, partials } = &self.states;
        CHECK.dtype("counters", counters.dtype(), &[DType::U32])?;
        CHECK.dtype("partials", partials.dtype(), &[DType::F32])?;
        aligned(CHECK, "partials", partials.as_slice(), 8)?;
        let records = self.states.records(self.heads.head_dim);
        if spans == 0 {
            return Ok(());
        }
        let boxes = CacheBoxes::new(stream, variant, &self.cache, self.heads)?;
        let args = attention_decode_args {
            key_boxes: boxes.keys,
            value_boxes: boxes.values,
            query: self.query.address(),
            out: self.out.address(),
            keys: self.cache.keys.address(),
            values: self.cache.values.address(),
            key_scales: checked.key_scales,
            value_scales: checked.value_scales,
            slopes: checked.slopes,
            sinks: checked.sinks,
            masks: checked.masks,
            spans: self.spans.address(),
            page_table: self.page_table.address(),
            counters: counters.address(),
            partials: partials.address(),
            records: CHECK.size("partials", records)?,
            spans_len: CHECK.size("spans", spans)?,
            heads: checked.heads,
            kv_heads: checked.kv_heads,
            head_dim: checked.head_dim,
            page_bits: checked.page_bits,
            box_rows: boxes.rows,
            window: checked.window,
            chunk: checked.chunk,
            scale: self.scoring.scale,
            soft_cap: checked.soft_cap,
            key_scale: checked.key_scale,
            value_scale: checked.value_scale,
            unused: [0; 9],
        };
        let shape = format_args!("{spans} spans, {:?}", self.heads);
        // No more than there can be items, however long the sequences become: a recording serves them all.
        let Heads { tokens, heads, kv_heads, .. } = self.heads;
        let row_tiles = spans.saturating_add(tokens.saturating_mul(heads / kv_heads) / rows_of(variant));
        let splits = self.cache.pages.saturating_mul(self.cache.page_size).div_ceil(SPLIT).max(1);
        let items = row_tiles.saturating_mul(splits).saturating_mul(kv_heads);
        let per_processor = if by_warpgroups(variant) { 1 } else { BLOCKS_PER_PROCESSOR };
        let blocks = items.min(stream.info().processors as usize * per_processor);
        // SAFETY: the slices are device memory of the sizes that were checked above; what spans and page table say is
        // the caller's promise.
        unsafe { call.launch(stream, variant, [blocks, 1, 1], &args, &shape) }
    }
}
