//! Decode attention: the newest queries of each sequence, split over the KV cache.

use super::abi::{attention_decode_args, attention_span};
use super::attention::{CacheTma, Checked, Heads, KvCache, Scoring, aligned, key, records, rows_of, wgmma};
use super::call::{Call, Check};
use super::tables::ATTENTION_DECODE;
use crate::device::{Slice, SliceMut, Stream, Value, Variant};
use crate::dtype::DType;
use crate::error::Result;

const CHECK: Check = Check("attention_decode");

/// Blocks per SM: what fits on GPUs with the most shared memory. The wgmma form has one, whose copies run ahead across
/// work items.
const BLOCKS_PER_PROCESSOR: usize = 4;
/// Positions of a split, as in csrc/kernels. Blocks take work items until none is left, so a wrong value would only
/// cost time.
pub(super) const SPLIT: usize = 512;

/// Workspace for the partial results of splits, merged by the last block of a sequence to finish.
///
/// A sequence whose splits do not fit is processed by one block, with the same result.
#[derive(Debug)]
pub struct SplitStates<'a> {
    /// u32, zero before and after each launch.
    pub counters: SliceMut<'a>,
    /// f32. A row of a split takes `head_dim` (rounded up to even) + 2 elements, and one counter.
    pub partials: SliceMut<'a>,
}

impl SplitStates<'_> {
    /// Elements of `partials` in a [`Gpu`](super::Gpu). 16 MiB: enough for half a million positions with 32 heads of
    /// 128. Beyond that there are enough sequences to give each its own block.
    pub(super) const PARTIALS: usize = (128 + 2) << 15;
    /// Its counters: one per row of the smallest common head size.
    pub(super) const COUNTERS: usize = Self::PARTIALS / 64;

    /// Rows of splits that fit.
    pub fn records(&self, head_dim: usize) -> usize {
        Self::room(self.counters.len(), self.partials.len(), head_dim)
    }

    /// Rows of splits that fit into those of [`Gpu`](super::Gpu).
    pub(super) fn records_of_gpu(head_dim: usize) -> usize {
        Self::room(Self::COUNTERS, Self::PARTIALS, head_dim)
    }

    /// Rows of splits that fit into this many elements.
    fn room(counters: usize, partials: usize, head_dim: usize) -> usize {
        counters.min(partials / (head_dim.next_multiple_of(2) + 2))
    }
}

/// Softmax attention of one or a few queries per sequence over the paged cache.
///
/// A query gets the same bits here as from [`AttentionPrefill`](super::AttentionPrefill), whatever else is in the
/// batch. A fixed number of blocks divides the work (sequences, key heads, splits of 512 positions) on the device, so a
/// captured launch serves sequences of any length.
#[derive(Debug)]
pub struct AttentionDecode<'a> {
    /// `[tokens, heads, head_dim]`, bf16 or f16.
    pub query: Slice<'a>,
    /// The same.
    pub out: SliceMut<'a>,
    /// Keys and values; those of these queries are already written.
    pub cache: KvCache<'a>,
    /// u32 `[spans, 4]`: first token in the batch, number of queries (0 for padding), tokens in the cache, first entry
    /// in the page table. Aligned to 16 bytes.
    pub spans: Slice<'a>,
    /// u32: entry `p / page_size` of a sequence is the page of position `p`. All entries that spans refer to must
    /// exist.
    pub page_table: Slice<'a>,
    pub states: SplitStates<'a>,
    /// Masks beyond causal, u32 `[tokens, 4]`; `None` if every query sees exactly the positions up to its own. Words 0
    /// and 1: begin and end of a range of positions around the query that it sees in both directions, as do all queries
    /// of the range (their keys are in the cache). Words 2 and 3: 64 bits, low word first, for tree attention: the
    /// queries of the span on the path from the root to this one, parents first, this one included. A tree query sees
    /// those and everything cached before the span; window and chunk count from the nodes above it, ALiBi slopes from
    /// its key's slot (not meaningful for trees). Zeros mean causal; in a span either all queries have branches or
    /// none. Aligned to 16 bytes.
    pub masks: Option<Slice<'a>>,
    pub heads: Heads,
    pub scoring: Scoring<'a>,
}

impl AttentionDecode<'_> {
    /// Checks shapes, picks a variant for the device and enqueues it.
    ///
    /// # Errors
    /// Shapes or dtypes do not match; this build has no variant for the device; the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = ATTENTION_DECODE.pick(stream.arch(), &self.key()?)?;
        self.launch_variant(stream, variant)
    }

    fn key(&self) -> Result<[(&'static str, Value); 3]> {
        key(CHECK, self.query, &self.cache, self.heads)
    }

    /// Launches a given variant, for tuning and tests.
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
        let boxes = CacheTma::new(stream, variant, &self.cache, self.heads)?;
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
        // An upper bound of the work items for sequences of any length, because a captured launch serves them all.
        let Heads { tokens, heads, kv_heads, .. } = self.heads;
        let row_tiles = spans.saturating_add(tokens.saturating_mul(heads / kv_heads) / rows_of(variant));
        let splits = self.cache.pages.saturating_mul(self.cache.page_size).div_ceil(SPLIT).max(1);
        let items = row_tiles.saturating_mul(splits).saturating_mul(kv_heads);
        let per_processor = if wgmma(variant) { 1 } else { BLOCKS_PER_PROCESSOR };
        let blocks = items.min(stream.info().sms as usize * per_processor);
        // SAFETY: the slices are device memory of the sizes checked above; the contents of spans and page table are the
        // caller's responsibility.
        unsafe { call.launch(stream, variant, [blocks, 1, 1], &args, &shape) }
    }
}
