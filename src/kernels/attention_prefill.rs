//! Prefill attention: many queries of each sequence, in tiles of queries.

use super::abi::{attention_prefill_args, attention_span, attention_tile};
use super::attention::{CacheBoxes, Checked, Heads, KvCache, Scoring, key, records};
use super::attention_plan::{AttentionPlan, AttentionShape};
use super::call::{Call, Check};
use super::cost::Machine;
use super::tables::ATTENTION_PREFILL;
use crate::device::{Slice, SliceMut, Stream, Value, Variant};
use crate::error::{Error, Result};

const CHECK: Check = Check("attention_prefill");

/// Words of a tile record.
const TILE_WORDS: usize = size_of::<attention_tile>() / 4;

/// Softmax attention of many queries per sequence over the paged cache.
///
/// Queries are processed in tiles, with one or a few blocks per tile and key head. The tiling does not change a query's
/// bits, which equal those of [`AttentionDecode`](super::AttentionDecode).
#[derive(Debug)]
pub struct AttentionPrefill<'a> {
    /// `[tokens, heads, head_dim]`, bf16 or f16.
    pub query: Slice<'a>,
    /// The same.
    pub out: SliceMut<'a>,
    /// Keys and values; those of these queries are already written.
    pub cache: KvCache<'a>,
    /// u32 `[spans, 4]`: first token in the batch, number of queries, tokens in the cache, first entry in the page
    /// table. Aligned to 16 bytes.
    pub spans: Slice<'a>,
    /// u32 `[tiles, 2]`: span, and first query relative to the span's first: each multiple of `tile_queries` once.
    /// Aligned to 8 bytes. The last tiles of a prompt take longest, so listing them first finishes earliest.
    pub tiles: Slice<'a>,
    /// Queries per tile; the last tile of a span may be shorter. Variants with more rows than a tile handle the
    /// following tiles too.
    pub tile_queries: usize,
    /// Cached tokens of the longest sequence: guides the choice of the variant, and never changes a result.
    pub kv_len: usize,
    /// u32: entry `p / page_size` of a sequence is the page of position `p`. All entries that spans and tiles refer to
    /// must exist.
    pub page_table: Slice<'a>,
    /// Masks beyond causal, u32 `[tokens, 4]`, as in [`AttentionDecode`](super::AttentionDecode). A chunk of a prompt
    /// must not end inside a bidirectional range.
    pub masks: Option<Slice<'a>>,
    pub heads: Heads,
    pub scoring: Scoring<'a>,
}

impl AttentionPrefill<'_> {
    /// Checks shapes, picks a variant for the device and enqueues it.
    ///
    /// # Errors
    /// Shapes or dtypes do not match; this build has no variant for the device; the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        self.key()?;
        let plan = AttentionPlan::choose_prefill(&Machine::of(stream.info()), &self.shape())?;
        self.launch_variant(stream, plan.variant)
    }

    /// Launches whichever of prefill and decode is faster; decode needs a workspace for the rows.
    pub(super) fn plan(&self, stream: &Stream, records: usize) -> Result<AttentionPlan> {
        self.key()?;
        AttentionPlan::choose(&Machine::of(stream.info()), &AttentionShape { records, ..self.shape() })
    }

    fn shape(&self) -> AttentionShape {
        let Scoring { window, chunk, .. } = self.scoring;
        let seen = |limit: usize| limit.saturating_add(self.tile_queries);
        AttentionShape {
            dtype: self.query.dtype(),
            cache: self.cache.keys.dtype(),
            heads: self.heads,
            spans: self.spans.len() / (size_of::<attention_span>() / 4),
            tiles: self.tiles.len() / TILE_WORDS,
            tile_queries: self.tile_queries,
            kv_len: [window, chunk].into_iter().flatten().map(seen).fold(self.kv_len, usize::min),
            records: 0,
        }
    }

    fn key(&self) -> Result<[(&'static str, Value); 3]> {
        key(CHECK, self.query, &self.cache, self.heads)
    }

    /// Launches a given variant, for tuning and tests.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); or the variant is for other types.
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        self.launch_batches(stream, variant, usize::MAX)
    }

    /// The same by at most `batches` blocks for the rows of a tile and key head: a block may take several parts of them.
    ///
    /// # Errors
    /// As [`launch_variant`](Self::launch_variant).
    pub fn launch_batches(self, stream: &Stream, variant: &'static Variant, batches: usize) -> Result<()> {
        let call = Call { kernel: &ATTENTION_PREFILL, key: &self.key()? };
        let checked = Checked::new(CHECK, self.query, &self.out, &self.cache, self.heads, self.scoring, self.masks)?;
        records(CHECK, "spans", self.spans, size_of::<attention_span>() / 4)?;
        records(CHECK, "page_table", self.page_table, 1)?;
        let tiles = records(CHECK, "tiles", self.tiles, TILE_WORDS)?;
        if self.tile_queries == 0 {
            return Err(Error::operator(CHECK.0, "tile_queries", "at least 1", 0));
        }
        if tiles == 0 {
            return Ok(());
        }
        let plan = AttentionPlan::prefill(&Machine::of(stream.info()), &self.shape(), variant);
        let boxes = CacheBoxes::new(stream, variant, &self.cache, self.heads)?;
        let args = attention_prefill_args {
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
            tiles: self.tiles.address(),
            tiles_len: CHECK.size("tiles", tiles)?,
            tile_queries: CHECK.size("tile_queries", plan.tile_queries)?,
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
            unused: [0; 11],
        };
        let shape = format_args!("{tiles} tiles of {} queries, {:?}", self.tile_queries, self.heads);
        let [tiles, all] = plan.blocks;
        let batches = all.min(batches.max(1));
        // SAFETY: the slices are device memory of the sizes checked above; the contents of spans, tiles and page table
        // are the caller's responsibility.
        unsafe { call.launch(stream, variant, [tiles, batches, 1], &args, &shape) }
    }
}
