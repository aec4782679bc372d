//! Which variant of prefill attention serves a step: what the cost model finds cheapest.

use super::attention::{Heads, by_warpgroups, key_of, row_tiles, rows_of};
use super::call::pieces;
use super::cost::Machine;
use super::tables::ATTENTION_PREFILL;
use crate::device::Variant;
use crate::dtype::DType;
use crate::error::Result;

/// A step's prefill attention, as far as the choice goes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    pub dtype: DType,
    pub cache: DType,
    pub heads: Heads,
    /// Tiles of queries, and queries of one.
    pub tiles: usize,
    pub tile_queries: usize,
    /// Tokens of the longest sequence, those of the step included.
    pub kv_len: usize,
}

/// How prefill attention is computed.
#[derive(Clone, Copy, Debug)]
pub struct AttentionPlan {
    pub variant: &'static Variant,
    /// Tiles times key heads, and the blocks that share the rows of each.
    pub blocks: [usize; 2],
    /// What the model expects.
    pub seconds: f64,
}

/// Positions that a block walks at a time.
const TILE: f64 = 64.0;
/// Registers of a thread: nearly all that there can be.
const REGISTERS: u32 = 255;
/// Instructions, of all lanes, that a score takes beside the products, and what a multiprocessor begins of them a cycle.
const SCORE_INSTRUCTIONS: f64 = 12.0;
const LANES: f64 = 128.0;

impl AttentionPlan {
    /// The cheapest of the variants that every build has.
    ///
    /// # Errors
    /// This build has no variant for the device.
    pub fn choose(machine: &Machine, shape: &AttentionShape) -> Result<Self> {
        let key = key_of(shape.dtype, shape.cache, shape.heads.head_dim);
        let seconds = |variant| Self::of(machine, shape, variant).seconds;
        Ok(Self::of(machine, shape, ATTENTION_PREFILL.best(machine.arch, &key, seconds)?))
    }

    /// The use of one variant. Beside the machine's assumptions:
    /// - every block walks the longest sequence, though a mask may hide half of it;
    /// - warps that share rows read keys and values once among them, and exchange their scores through shared memory;
    /// - a block waits a latency of the L2 cache for each tile of positions, besides what it computes; by warpgroups
    ///   only for the first, and two warpgroups multiply and weigh in turns;
    /// - keys and values come from the L2 cache for every block; nothing is on its way while the last tile is computed.
    pub fn of(machine: &Machine, shape: &AttentionShape, variant: &'static Variant) -> Self {
        let [row_tiles, share] = row_tiles(variant);
        let by_warpgroups = by_warpgroups(variant);
        let Heads { heads, kv_heads, head_dim, .. } = shape.heads;
        let rows = rows_of(variant);
        let batches = pieces(shape.tile_queries.saturating_mul(heads / kv_heads.max(1)), rows as u32);
        let blocks = [shape.tiles.saturating_mul(kv_heads), batches];

        // Who reads keys and values from shared memory on its own.
        let readers = if by_warpgroups { rows / 64 } else { row_tiles };
        let [rows, head_dim, kv_len, share, readers] =
            [rows, head_dim, shape.kv_len, share, readers].map(|size| size as f64);
        let all = blocks[0] as f64 * blocks[1] as f64;
        let processors = f64::from(machine.processors);
        let products = 2.0 * rows * head_dim / machine.tensor_rate;
        let scores = rows * SCORE_INSTRUCTIONS / LANES;
        let exchanged = if share > 1.0 { 4.0 * rows * (1.0 + share) } else { 0.0 };
        let read = 2.0 * 2.0 * head_dim * (1.0 + readers) + exchanged;
        let beside = scores.max(read / Machine::SHARED_BANDWIDTH);
        let cycles = if readers > 1.0 && by_warpgroups { products.max(beside) } else { products + beside };
        let computing = (all / processors).ceil() * kv_len * cycles / machine.clock;

        let resident = machine.resident(variant.threads, REGISTERS, variant.shared_bytes(machine.arch));
        let rounds = (all / (processors * f64::from(resident))).ceil();
        let waits = if by_warpgroups { 1.0 } else { kv_len / TILE };
        let walking = rounds * (kv_len * cycles / machine.clock + waits * Machine::CACHE_LATENCY);

        let busy = (all / processors).min(1.0);
        let entry = 2.0 * head_dim * shape.cache.size() as f64;
        let from_cache = all * kv_len * entry / (machine.cache_bandwidth * busy);
        let last = TILE * cycles / machine.clock;
        let seconds = Machine::LAUNCH + Machine::LATENCY + computing.max(walking).max(from_cache) + last;
        Self { variant, blocks, seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Card;

    fn shape(heads: usize, kv_heads: usize, head_dim: usize, sequences: usize, tokens: usize) -> AttentionShape {
        let heads = Heads { tokens: sequences * tokens, heads, kv_heads, head_dim };
        let tiles = sequences * tokens.div_ceil(64);
        AttentionShape { dtype: DType::F16, cache: DType::F16, heads, tiles, tile_queries: 64, kv_len: tokens }
    }

    const HEADS: [(usize, usize, usize); 5] = [(12, 12, 64), (32, 8, 128), (16, 8, 128), (64, 8, 128), (16, 4, 256)];

    fn every(mut check: impl FnMut(&Machine, (usize, usize, usize), usize)) {
        for card in &Card::ALL {
            for heads in HEADS {
                for tokens in [1, 33, 128, 512, 4096, 32_768] {
                    check(&Machine::from(card), heads, tokens);
                }
            }
        }
    }

    fn seconds(machine: &Machine, shape: &AttentionShape) -> f64 {
        AttentionPlan::choose(machine, shape).unwrap().seconds
    }

    /// Where more than half of the multiprocessors are left over, no other variant would have used more of them.
    #[test]
    fn no_wave_is_empty_that_could_be_full() {
        every(|machine, (heads, kv_heads, head_dim), tokens| {
            let shape = shape(heads, kv_heads, head_dim, 1, tokens);
            let plan = AttentionPlan::choose(machine, &shape).unwrap();
            let used = |plan: &AttentionPlan| (plan.blocks[0] * plan.blocks[1]).min(machine.processors as usize);
            let key = key_of(shape.dtype, shape.cache, head_dim);
            let others = ATTENTION_PREFILL.variants.iter().filter(|variant| {
                let fits = |(axis, value): &(&str, _)| variant.value(axis) == Some(*value);
                variant.fallback && variant.archs.contains(&machine.arch) && key.iter().all(fits)
            });
            for other in others {
                let other = AttentionPlan::of(machine, &shape, other);
                assert!(2 * used(&plan) >= used(&other), "{machine:?}, {shape:?}: {plan:?}, {other:?}");
            }
        });
    }

    /// Twice the sequences take no more than twice the time, and no less than one of them.
    #[test]
    fn throughput_does_not_fall_as_the_batch_grows() {
        every(|machine, (heads, kv_heads, head_dim), tokens| {
            let mut before = seconds(machine, &shape(heads, kv_heads, head_dim, 1, tokens));
            for sequences in [2, 4, 8, 16, 32, 64] {
                let now = seconds(machine, &shape(heads, kv_heads, head_dim, sequences, tokens));
                assert!(before <= now && now <= 2.0 * before, "{sequences} of {tokens}: {before}, then {now}");
                before = now;
            }
        });
    }

    #[test]
    fn small_problems_have_small_tiles() {
        let (ampere, hopper) = (Machine::new(80, 108), Machine::new(90, 132));
        let rows = |machine, shape| rows_of(AttentionPlan::choose(machine, &shape).unwrap().variant);
        for tokens in [1, 33, 128] {
            assert_eq!(rows(&ampere, shape(12, 12, 64, 1, tokens)), 16);
            assert_eq!(rows(&hopper, shape(12, 12, 64, 1, tokens)), 64);
        }
        assert_eq!(rows(&ampere, shape(32, 8, 128, 1, 32_768)), 64);
        assert_eq!(rows(&hopper, shape(32, 8, 128, 1, 32_768)), 128);
    }
}
