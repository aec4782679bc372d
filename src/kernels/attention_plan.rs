//! Chooses the kernel and variant for a step's attention: the one with the lowest predicted time. Every choice gives
//! the same bits.

use super::attention::{Heads, key_of, row_tiles, rows_of, wgmma};
use super::attention_decode::{SPLIT, SplitStates};
use super::call::pieces;
use super::cost::{CostModel, Floor};
use super::step::TILE_QUERIES;
use super::tables::{ATTENTION_DECODE, ATTENTION_PREFILL};
use crate::device::{Value, Variant};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::CacheShape;

/// The properties of a step's attention that the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    pub dtype: DType,
    pub cache: DType,
    pub heads: Heads,
    /// Sequences; the model assumes that they share the step's tokens equally.
    pub spans: usize,
    /// Query tiles of prefill, and queries per tile.
    pub tiles: usize,
    pub tile_queries: usize,
    /// Positions that a query tile of the longest sequence sees.
    pub kv_len: usize,
    /// Rows of splits that decode's workspace holds.
    pub records: usize,
}

/// How attention is computed.
#[derive(Clone, Copy, Debug)]
pub struct AttentionPlan {
    pub variant: &'static Variant,
    /// True for the decode kernel, which splits sequences among all blocks.
    pub decodes: bool,
    /// Queries that a block of prefill handles: one tile of the shape, or several that fit together.
    pub tile_queries: usize,
    /// Prefill: tiles × key heads, and blocks per tile; blocks whose tile is handled by an earlier one exit at once.
    /// Decode: work items, and 1.
    pub blocks: [usize; 2],
    /// Predicted time.
    pub seconds: f64,
}

/// Positions of a KV tile.
const TILE: f64 = 64.0;
/// Registers per thread: close to the maximum.
const REGISTERS: u32 = 255;
/// Instructions per score besides the products, and instructions that an SM issues per cycle, both counted in lanes.
const SCORE_INSTRUCTIONS: f64 = 12.0;
const LANES: f64 = 128.0;
/// Spans that a warp of decode scans at once, and splits that a thread has in flight while merging.
const SPANS: usize = 32;
const MERGED: usize = 8;

impl AttentionPlan {
    /// The plan with the lowest predicted time among the fallback variants of both kernels.
    ///
    /// # Errors
    /// This build has no variant for the device.
    pub fn choose(model: &CostModel, shape: &AttentionShape) -> Result<Self> {
        let (decode, prefill) = (Self::choose_decode(model, shape)?, Self::choose_prefill(model, shape)?);
        Ok(if decode.seconds < prefill.seconds { decode } else { prefill })
    }

    /// The best plan of the decode kernel.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn choose_decode(model: &CostModel, shape: &AttentionShape) -> Result<Self> {
        let plan = |variant| Self::decode(model, shape, variant);
        Ok(plan(ATTENTION_DECODE.best(model.arch, &shape.key(), |variant| plan(variant).seconds)?))
    }

    /// The best plan of the prefill kernel.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn choose_prefill(model: &CostModel, shape: &AttentionShape) -> Result<Self> {
        let plan = |variant| Self::prefill(model, shape, variant);
        Ok(plan(ATTENTION_PREFILL.best(model.arch, &shape.key(), |variant| plan(variant).seconds)?))
    }

    /// All plans with fallback variants, fastest first; the first has the time of what [`choose`](Self::choose)
    /// returns.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn ranked(model: &CostModel, shape: &AttentionShape) -> Result<Vec<Self>> {
        let (arch, key, seconds) = (model.arch, shape.key(), |plan: &Self| plan.seconds);
        let mut plans = ATTENTION_PREFILL.ranked(arch, &key, |v| Self::prefill(model, shape, v), seconds)?;
        plans.extend(ATTENTION_DECODE.ranked(arch, &key, |v| Self::decode(model, shape, v), seconds)?);
        plans.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        Ok(plans)
    }

    /// Prediction for a variant of prefill. Every block is assumed to walk the longest sequence, even where a causal
    /// mask hides half of it.
    pub fn prefill(model: &CostModel, shape: &AttentionShape, variant: &'static Variant) -> Self {
        let Heads { heads, kv_heads, .. } = shape.heads;
        let rows = shape.tile_queries.saturating_mul(heads / kv_heads.max(1)).max(1);
        let taken = (rows_of(variant) / rows).max(1);
        let spans = shape.spans.max(1);
        let tiles = shape.tiles.div_ceil(spans).div_ceil(taken).saturating_mul(spans).min(shape.tiles);
        let batches = pieces(rows.saturating_mul(taken), rows_of(variant) as u32);
        let items = tiles.saturating_mul(kv_heads).saturating_mul(batches);
        let seconds = walk(model, shape, variant, spans, items, shape.kv_len) + CostModel::LAUNCH + CostModel::LATENCY;
        let tile_queries = shape.tile_queries.saturating_mul(taken);
        Self { variant, decodes: false, tile_queries, blocks: [shape.tiles.saturating_mul(kv_heads), batches], seconds }
    }

    /// Prediction for a variant of decode. Assumptions:
    /// - every sequence is as long as the longest; those whose splits do not fit the workspace are not split, and run
    ///   last;
    /// - before its first work item a block scans the spans, 32 at a time;
    /// - partial results go to L2 and back, merged by one block per row tile with eight splits in flight; signalling
    ///   takes three L2 latencies.
    pub fn decode(model: &CostModel, shape: &AttentionShape, variant: &'static Variant) -> Self {
        let Heads { tokens, heads, kv_heads, head_dim } = shape.heads;
        let spans = shape.spans.max(1);
        // Rows per span.
        let rows = tokens.saturating_mul(heads / kv_heads.max(1)).div_ceil(spans);
        let row_tiles = pieces(rows, rows_of(variant) as u32);
        let splits = shape.kv_len.div_ceil(SPLIT);
        let records = splits.saturating_mul(rows).saturating_mul(kv_heads);
        let shared_out = if splits > 1 { spans.min(shape.records / records.max(1)) } else { 0 };
        let others = spans - shared_out;

        let of_spans = |spans: usize, splits: usize| {
            let items = spans.saturating_mul(row_tiles).saturating_mul(kv_heads).saturating_mul(splits);
            let positions = if splits > 1 { SPLIT } else { shape.kv_len };
            let seconds = if items > 0 { walk(model, shape, variant, spans, items, positions) } else { 0.0 };
            (items, seconds)
        };
        let ((first, walking), (last, after)) = (of_spans(shared_out, splits.max(1)), of_spans(others, 1));
        let finding = spans.div_ceil(SPANS) as f64 * CostModel::CACHE_LATENCY;
        let merging = if shared_out > 0 {
            let bytes = 2.0 * 4.0 * (shared_out * records * (head_dim + 2)) as f64;
            let turns = (rows.div_ceil(row_tiles) * head_dim / 2).div_ceil(128) * splits.div_ceil(MERGED);
            (3 + turns) as f64 * CostModel::CACHE_LATENCY + bytes / model.cache_bandwidth
        } else {
            0.0
        };
        let seconds = CostModel::LAUNCH + CostModel::LATENCY + finding + walking + after + merging;
        let blocks = [first.saturating_add(last), 1];
        Self { variant, decodes: true, tile_queries: shape.tile_queries, blocks, seconds }
    }
}

impl AttentionShape {
    /// The shape that [`Gpu`](super::Gpu) uses for a step of `sequences` sequences that share the tokens equally, each
    /// with `kv_len` positions in the cache.
    pub fn of_step(dtype: DType, cache: DType, heads: Heads, sequences: usize, kv_len: usize) -> Self {
        let tiles = sequences * heads.tokens.div_ceil(sequences.max(1)).div_ceil(TILE_QUERIES);
        let (spans, tile_queries) = (sequences, TILE_QUERIES);
        let records = SplitStates::records_of_gpu(heads.head_dim);
        Self { dtype, cache, heads, spans, tiles, tile_queries, kv_len, records }
    }

    /// Lower bound of any plan under causal attention.
    pub fn floor(&self, model: &CostModel) -> Floor {
        let Self { heads: Heads { tokens, heads, head_dim, .. }, spans, kv_len, .. } = *self;
        let queries = tokens / spans.max(1);
        // The last query sees all positions, each earlier one sees one less.
        let pairs = tokens * kv_len - spans * (queries * queries.saturating_sub(1) / 2);
        model.floor(self.bytes(spans), (2 * pairs * heads * head_dim) as f64)
    }

    /// Bytes of `spans` sequences: keys, values, queries and results.
    fn bytes(&self, spans: usize) -> f64 {
        let Heads { tokens, heads, kv_heads, head_dim } = self.heads;
        let page = CacheShape { layers: 1, pages: 1, page_size: 1, kv_heads, head_dim, dtype: self.cache };
        let rows = 2 * tokens.div_ceil(self.spans.max(1)) * heads * head_dim * self.dtype.size();
        spans as f64 * (self.kv_len * page.bytes() + rows) as f64
    }

    fn key(&self) -> [(&'static str, Value); 3] {
        key_of(self.dtype, self.cache, self.heads.head_dim)
    }
}

/// Predicted seconds for blocks that walk `items` times over `positions` of `spans` sequences. Assumptions beyond those
/// of the cost model:
/// - warps that share rows read keys and values once, and exchange scores through shared memory;
/// - a block waits one L2 latency per KV tile in addition to its compute time; the wgmma form only for the first tile;
/// - in the wgmma form the softmax overlaps the previous tile's product with the values; with two consumer warpgroups
///   it overlaps any product of the other;
/// - keys, values and queries come from memory once per sequence, and results go there; every block reads keys and
///   values from L2; nothing is in flight while the last tile is computed.
fn walk(
    model: &CostModel,
    shape: &AttentionShape,
    variant: &Variant,
    spans: usize,
    items: usize,
    positions: usize,
) -> f64 {
    let [row_tiles, share] = row_tiles(variant);
    let wgmma = wgmma(variant);
    let rows = rows_of(variant);
    // Warps that read keys and values from shared memory separately.
    let readers = if wgmma { rows / 64 } else { row_tiles };
    let sizes = [rows, shape.heads.head_dim, positions, share, readers, items];
    let [rows, head_dim, positions, share, readers, items] = sizes.map(|size| size as f64);
    let sms = f64::from(model.sms);

    // Cycles per position: each of the two products, and the work on scores.
    let product = rows * head_dim / model.tensor_rate;
    let scores = rows * SCORE_INSTRUCTIONS / LANES;
    let exchanged = if share > 1.0 { 4.0 * rows * (1.0 + share) } else { 0.0 };
    let read = 2.0 * 2.0 * head_dim * (1.0 + readers) + exchanged;
    let beside = scores.max(read / CostModel::SHARED_BANDWIDTH);
    let cycles = match (wgmma, readers > 1.0) {
        (false, _) => 2.0 * product + beside,
        (true, false) => product + product.max(beside),
        (true, true) => (2.0 * product).max(beside),
    };
    let computing = (items / sms).ceil() * positions * cycles / model.clock;

    let resident = f64::from(model.resident(variant.threads, REGISTERS, variant.shared_bytes));
    let rounds = (items / (sms * resident)).ceil();
    let waits = if wgmma { 1.0 } else { positions / TILE };
    let walking = rounds * (positions * cycles / model.clock + waits * CostModel::CACHE_LATENCY);

    let busy = (items / sms).min(1.0);
    let entry = 2.0 * head_dim * shape.cache.size() as f64;
    let from_cache = items * positions * entry / (model.cache_bandwidth * busy);
    let from_memory = shape.bytes(spans) / (model.memory_bandwidth * busy);
    let last = TILE * cycles / model.clock;
    computing.max(walking).max(from_cache).max(from_memory) + last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::GpuSpec;

    /// Sequences of so many positions, of which the last `queries` are computed.
    fn shape(heads: [usize; 3], sequences: usize, queries: usize, kv_len: usize) -> AttentionShape {
        let [heads, kv_heads, head_dim] = heads;
        let heads = Heads { tokens: sequences * queries, heads, kv_heads, head_dim };
        let tiles = sequences * queries.div_ceil(64);
        let (dtype, cache) = (DType::F16, DType::F16);
        AttentionShape { dtype, cache, heads, spans: sequences, tiles, tile_queries: 64, kv_len, records: RECORDS }
    }

    /// What there is room for of states of heads of 64.
    const RECORDS: usize = 1 << 16;

    /// Sums differ by their order.
    const ROUNDED: f64 = 1.0 + 1e-9;

    const HEADS: [[usize; 3]; 5] = [[12, 12, 64], [32, 8, 128], [16, 8, 128], [64, 8, 128], [16, 4, 256]];
    /// Queries, and positions with them: prompts, chunks behind others, speculations, decoded tokens.
    const LENGTHS: [(usize, usize); 12] = [
        (1, 1),
        (33, 33),
        (128, 128),
        (512, 512),
        (4096, 4096),
        (32_768, 32_768),
        (64, 4096),
        (512, 4096),
        (4, 700),
        (16, 4096),
        (1, 700),
        (1, 4096),
    ];

    fn every(mut check: impl FnMut(&CostModel, [usize; 3], (usize, usize))) {
        for card in &GpuSpec::ALL {
            for heads in HEADS {
                for lengths in LENGTHS {
                    check(&CostModel::from(card), heads, lengths);
                }
            }
        }
    }

    fn choose(model: &CostModel, shape: &AttentionShape) -> AttentionPlan {
        AttentionPlan::choose(model, shape).unwrap()
    }

    /// What no launch can be faster than no plan is; and they come in order.
    #[test]
    fn plans_are_ranked_above_the_floor() {
        every(|model, heads, (queries, kv_len)| {
            for sequences in [1, 16] {
                let shape = shape(heads, sequences, queries, kv_len);
                let plans = AttentionPlan::ranked(model, &shape).unwrap();
                assert!(plans.is_sorted_by(|a, b| a.seconds <= b.seconds), "{model:?}, {shape:?}");
                assert_eq!(plans[0].seconds, choose(model, &shape).seconds, "{model:?}, {shape:?}");
                let floor = shape.floor(model);
                assert!(floor.seconds() > 0.0 && floor.seconds() < plans[0].seconds, "{model:?}, {shape:?}");
            }
            // A prompt sees half of what as many queries behind it would.
            let [prompt, behind] = [4096, 8192].map(|kv_len| shape(heads, 1, 4096, kv_len).floor(model).products);
            assert!((2.99..3.0).contains(&(behind / prompt)), "{model:?}, {heads:?}: {prompt} {behind}");
        });
    }

    /// Where more than half of the multiprocessors are left over, nothing else would have used more of them for less.
    #[test]
    fn no_wave_is_empty_that_could_be_full() {
        every(|model, heads, (queries, kv_len)| {
            let shape = shape(heads, 1, queries, kv_len);
            let used = |plan: &AttentionPlan| (plan.blocks[0] * plan.blocks[1]).min(model.sms as usize);
            let plan = AttentionPlan::choose_prefill(model, &shape).unwrap();
            let key = shape.key();
            let others = ATTENTION_PREFILL.variants.iter().filter(|variant| {
                let fits = |(axis, value): &(&str, _)| variant.value(axis) == Some(*value);
                variant.fallback && variant.archs.contains(&model.arch) && key.iter().all(fits)
            });
            for other in others {
                let other = AttentionPlan::prefill(model, &shape, other);
                assert!(2 * used(&plan) >= used(&other), "{model:?}, {shape:?}: {plan:?}, {other:?}");
            }
            // Long sequences leave none idle that splits of them could occupy.
            let decode = AttentionPlan::choose_decode(model, &shape).unwrap();
            if kv_len >= 8 * SPLIT && 4 * used(&plan) <= used(&decode) {
                assert!(choose(model, &shape).decodes, "{model:?}, {shape:?}: {plan:?}, {decode:?}");
            }
        });
    }

    /// A sequence more takes no less time, and twice the sequences no more than twice the time, as long as decode has
    /// room for the states of all splits. No batch has less than half of the throughput of a smaller one: its last
    /// round of blocks may be nearly empty.
    #[test]
    fn throughput_does_not_fall_as_the_batch_grows() {
        every(|model, heads, (queries, kv_len)| {
            let seconds = |sequences| choose(model, &shape(heads, sequences, queries, kv_len)).seconds;
            let times: Vec<f64> = (1..=64).map(seconds).collect();
            let mut best: f64 = 0.0;
            for (i, &now) in times.iter().enumerate() {
                let sequences = i + 1;
                let what = format!("{model:?}, {heads:?}: {sequences} of {queries} in {kv_len}: {now}");
                assert!(i == 0 || times[i - 1] <= now * ROUNDED, "{what} after {}", times[i - 1]);
                let has_room = sequences * queries * heads[0] * kv_len.div_ceil(SPLIT) <= RECORDS;
                if sequences.is_multiple_of(2) && has_room {
                    assert!(
                        now <= 2.0 * times[sequences / 2 - 1] * ROUNDED,
                        "{what} after {}",
                        times[sequences / 2 - 1]
                    );
                }
                let throughput = sequences as f64 / now;
                assert!(throughput >= 0.5 * best, "{what}: {throughput} after {best}");
                best = best.max(throughput);
            }
        });
    }

    /// Few rows of long sequences are split, among as many multiprocessors as there are; prompts are not.
    #[test]
    fn each_kernel_has_its_steps() {
        for card in &GpuSpec::ALL {
            let model = CostModel::from(card);
            for heads in HEADS {
                let decodes =
                    |sequences, queries, kv_len| choose(&model, &shape(heads, sequences, queries, kv_len)).decodes;
                for queries in [2, 5, 16] {
                    assert!(decodes(1, queries, 8192), "{model:?}, {heads:?}: {queries} queries");
                }
                assert!(!decodes(1, 512, 512) && !decodes(8, 512, 512), "{model:?}, {heads:?}");
                assert!(!decodes(1, 4096, 4096) && !decodes(1, 4096, 8192), "{model:?}, {heads:?}");
            }
        }
    }

    #[test]
    fn small_problems_have_small_tiles() {
        let (ampere, hopper) = (CostModel::new(80, 108), CostModel::new(90, 132));
        let rows = |model, shape| rows_of(AttentionPlan::choose_prefill(model, &shape).unwrap().variant);
        for tokens in [1, 33, 128] {
            assert_eq!(rows(&ampere, shape([12, 12, 64], 1, tokens, tokens)), 16);
            assert_eq!(rows(&hopper, shape([12, 12, 64], 1, tokens, tokens)), 64);
        }
        assert_eq!(rows(&ampere, shape([32, 8, 128], 1, 32_768, 32_768)), 64);
        assert_eq!(rows(&hopper, shape([32, 8, 128], 1, 32_768, 32_768)), 128);
    }

    /// Heads without a group fill blocks of 128 rows with two tiles, where there are enough of them.
    #[test]
    fn tiles_fill_the_rows_of_a_block() {
        let hopper = CostModel::new(90, 132);
        let queries = |heads, tokens| {
            let plan = AttentionPlan::choose_prefill(&hopper, &shape(heads, 1, tokens, tokens)).unwrap();
            (rows_of(plan.variant), plan.tile_queries)
        };
        assert_eq!(queries([32, 32, 128], 4096), (128, 128));
        assert_eq!(queries([32, 8, 128], 4096), (128, 64));
        assert_eq!(queries([12, 12, 64], 128), (64, 64));
    }
}
