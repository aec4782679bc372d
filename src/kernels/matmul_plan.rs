//! Chooses the variant, split-K and clusters of a product: the plan with the lowest predicted time.

use super::abi::{BURRSTONE_MATMUL_COUNTERS, BURRSTONE_MATMUL_GATES, BURRSTONE_MATMUL_K_SLICE};
use super::call::named;
use super::cost::{CostModel, Floor};
use super::tables::MATMUL;
use crate::device::{Value, Variant};
use crate::dtype::DType;
use crate::error::Result;

/// The shape of a product: x is `[m, k]` of `dtype`, the result `[m, n]` of `out`, the weight `[n, k]`, with twice as
/// many rows if gated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatMulShape {
    pub dtype: DType,
    pub out: DType,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub gated: bool,
    /// Whether the result is added to `out`.
    pub accumulate: bool,
    pub weight: WeightKind,
}

/// What a weight consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// Elements of the activations' dtype.
    Dense,
    /// Codes of 4 or 8 bits, with a scale for each `group` of them along k.
    Codes { bits: usize, group: usize },
}

impl WeightKind {
    /// Bits of a code; 0 of a dense weight.
    pub(super) fn bits(self) -> usize {
        match self {
            Self::Dense => 0,
            Self::Codes { bits, .. } => bits,
        }
    }

    /// Bytes of an element with its share of a scale, beside activations of `dtype`.
    fn bytes(self, dtype: DType) -> f64 {
        match self {
            Self::Dense => dtype.size() as f64,
            Self::Codes { bits, group } => bits as f64 / 8.0 + SCALE_BYTES / group.max(1) as f64,
        }
    }

    fn axis(self) -> Value {
        Value::Text(match self {
            Self::Dense => "dense",
            Self::Codes { bits: 4, .. } => "u4",
            Self::Codes { .. } => "u8",
        })
    }
}

/// How a product is computed.
#[derive(Clone, Copy, Debug)]
pub struct MatMulPlan {
    pub variant: &'static Variant,
    /// Split-K: blocks per tile, at most the number of K slices. More than one needs a workspace.
    pub splits: usize,
    /// Clusters of two blocks that share an operand by multicast. Only on Hopper, without split-K.
    pub pair: Option<MatMulPair>,
    /// Predicted time.
    pub seconds: f64,
}

/// The operand that the two blocks of a cluster share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatMulPair {
    /// x: the tiles are neighbours along n.
    X,
    /// The weight: the tiles are neighbours along m.
    Weight,
}

/// Counters in a workspace: the largest number of tiles with split-K.
const COUNTERS: usize = BURRSTONE_MATMUL_COUNTERS as usize;
/// Elements of a K slice.
const K_SLICE: usize = BURRSTONE_MATMUL_K_SLICE as usize;
/// Elements of K per stage.
pub(super) const STAGE: usize = 64;
/// Threads of a warpgroup, and the alignment of rows for TMA in bytes.
const WARPGROUP: usize = 128;
const TMA_ALIGNMENT: u64 = 16;
/// Bytes of a group's scale and zero point.
const SCALE_BYTES: f64 = 4.0;
/// Instructions that dequantize a pair of codes, and threads that an SM issues them for in a cycle.
const DEQUANTIZING: f64 = 5.0;
const ISSUED: f64 = 128.0;

/// Rows of a gated weight with `n` outputs: groups of as many rows of the gate projection as of up.
pub(super) const fn gated_rows(n: usize) -> usize {
    let group = BURRSTONE_MATMUL_GATES as usize;
    n.div_ceil(group).saturating_mul(2 * group)
}

impl MatMulShape {
    /// The axes that the problem decides.
    pub(super) fn key(&self, arch: u32) -> [(&'static str, Value); 4] {
        let instruction = match arch {
            ..75 => "m8n8k4",
            75..80 => "m16n8k8",
            80..90 => "m16n8k16",
            _ => "m64k16",
        };
        // The kernel quantizes results that are in x's dtype.
        let out = if self.out.size() == 1 { self.dtype } else { self.out };
        [
            ("dtype", named(self.dtype)),
            ("out", named(out)),
            ("instruction", Value::Text(instruction)),
            ("weight", self.weight.axis()),
        ]
    }

    /// Rows of the weight.
    pub fn weight_rows(&self) -> usize {
        if self.gated { gated_rows(self.n) } else { self.n }
    }

    /// Bytes: x and the weight once, results once, and once more to read if accumulated.
    fn bytes(&self) -> f64 {
        let [m, n, k, rows] = [self.m, self.n, self.k, self.weight_rows()].map(|size| size as f64);
        let passes = if self.accumulate { 2.0 } else { 1.0 };
        k * (m * self.dtype.size() as f64 + rows * self.weight.bytes(self.dtype))
            + passes * m * n * self.out.size() as f64
    }

    /// Lower bound of any plan.
    pub fn floor(&self, model: &CostModel) -> Floor {
        let [m, rows, k] = [self.m, self.weight_rows(), self.k].map(|size| size as f64);
        model.floor(self.bytes(), m * rows * k)
    }

    /// K slices.
    pub fn k_slices(&self) -> usize {
        self.k.div_ceil(K_SLICE)
    }
}

impl MatMulPlan {
    /// The plan with the lowest predicted time among the fallback variants, with a workspace of `workspace` words (0:
    /// none).
    ///
    /// # Errors
    /// This build has no variant for the device.
    pub fn choose(model: &CostModel, shape: &MatMulShape, workspace: usize) -> Result<Self> {
        let plan = |variant| Self::of(model, shape, workspace, variant);
        let variant = MATMUL.best(model.arch, &shape.key(model.arch), |variant| plan(variant).seconds)?;
        Ok(plan(variant))
    }

    /// The best plan of each fallback variant, fastest first.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn ranked(model: &CostModel, shape: &MatMulShape, workspace: usize) -> Result<Vec<Self>> {
        let plan = |variant| Self::of(model, shape, workspace, variant);
        MATMUL.ranked(model.arch, &shape.key(model.arch), plan, |plan| plan.seconds)
    }

    /// The best plan of one variant.
    pub fn of(model: &CostModel, shape: &MatMulShape, workspace: usize, variant: &'static Variant) -> Self {
        let tile = Tile::of(variant);
        let plan = |splits, pair| {
            let seconds = tile.seconds(model, shape, splits, pair);
            Self { variant, splits, pair, seconds }
        };
        let most = if tile.workspace(shape) <= workspace { shape.k_slices() } else { 1 };
        let split = (2..=most).map(|splits| plan(splits, None));
        // If one tile holds all rows of x, x is the smaller part of what is copied.
        let pairs = shape.m > tile.m && has_boxes(shape, 0) && model.sms > 1;
        let paired = [MatMulPair::X, MatMulPair::Weight].into_iter().filter(|&pair| pairs && tile.may_pair(pair));
        let others = split.chain(paired.map(|pair| plan(1, Some(pair))));
        others.fold(plan(1, None), |best, plan| if plan.seconds < best.seconds { plan } else { best })
    }

    /// Work items: tiles × splits, padded to an even number of tiles for clusters.
    pub fn items(&self, shape: &MatMulShape) -> usize {
        Tile::of(self.variant).tiles(shape, self.pair).saturating_mul(self.splits)
    }

    /// Blocks of the launch: one per item; on Hopper at most what the device holds at once (persistent blocks).
    pub fn blocks(&self, model: &CostModel, shape: &MatMulShape) -> usize {
        let tile = Tile::of(self.variant);
        let items = self.items(shape);
        if !tile.wgmma {
            return items;
        }
        let resident = model.sms as usize * tile.resident(model) as usize;
        let most = if self.pair.is_some() { (resident & !1).max(2) } else { resident };
        items.min(most)
    }

    /// Tokens and weight rows of a TMA box: a tile's, or half of it if a cluster shares the operand.
    pub(super) fn tma_box(&self) -> [usize; 2] {
        let tile = Tile::of(self.variant);
        match self.pair {
            None => [tile.m, tile.n],
            Some(MatMulPair::X) => [tile.m / 2, tile.n],
            Some(MatMulPair::Weight) => [tile.m, tile.n / 2],
        }
    }

    /// Whether the variant has the plan's cluster form, if the plan has one.
    pub(super) fn may_pair(&self) -> bool {
        self.pair.is_none_or(|pair| Tile::of(self.variant).may_pair(pair))
    }

    /// Whether tiles are copied by TMA; `addresses` is the bitwise or of both operands'. Otherwise threads copy.
    pub(super) fn copies_by_tma(&self, shape: &MatMulShape, addresses: u64) -> bool {
        Tile::of(self.variant).wgmma && has_boxes(shape, addresses)
    }

    /// Words of workspace that split-K needs.
    pub(super) fn workspace(&self, shape: &MatMulShape) -> usize {
        Tile::of(self.variant).workspace(shape)
    }
}

/// Whether all rows are aligned to 16 bytes.
fn has_boxes(shape: &MatMulShape, addresses: u64) -> bool {
    let rows = (shape.k * shape.dtype.size()) as u64;
    rows > 0 && (rows | addresses).is_multiple_of(TMA_ALIGNMENT)
}

/// A variant's tile in the cost model.
#[derive(Clone, Copy)]
struct Tile {
    m: usize,
    n: usize,
    stages: usize,
    /// Threads that multiply.
    threads: usize,
    shared_bytes: u32,
    /// Hopper's form: a producer warpgroup, consumer warpgroups, persistent blocks.
    wgmma: bool,
    /// The last tile skips 8-token units beyond M; workers take units in turns.
    skips: bool,
    /// Warps (or warpgroups) that multiply, along the tokens and along the weight's rows.
    workers: [usize; 2],
    coded: bool,
}

impl Tile {
    fn of(variant: &Variant) -> Self {
        // Every variant has these axes, none of them 0.
        let axis = |name| variant.int(name).unwrap_or(1).max(1) as usize;
        let (m, n, stages, threads) = (axis("m"), axis("n"), axis("stages"), axis("threads"));
        let is = |instruction| variant.value("instruction") == Some(Value::Text(instruction));
        let (wgmma, skips) = (is("m64k16"), is("m16n8k16") && m > 32);
        let threads = if wgmma { threads.saturating_sub(WARPGROUP).max(WARPGROUP) } else { threads };
        let workers = match m {
            _ if wgmma => [1, threads / WARPGROUP],
            17.. => [2, threads / 64],
            _ => [1, threads / 32],
        };
        let coded = variant.value("weight") != Some(WeightKind::Dense.axis());
        Self { m, n, stages, threads, shared_bytes: variant.shared_bytes, wgmma, skips, workers, coded }
    }

    /// Occupancy: a consumer thread needs twice its accumulators in registers, and 64 more.
    fn resident(&self, model: &CostModel) -> u32 {
        let registers = 64 + 2 * self.m * self.n / self.threads;
        let copying = if self.wgmma { WARPGROUP } else { 0 };
        model.resident((self.threads + copying) as u32, registers as u32, self.shared_bytes)
    }

    /// Half a tile must be whole periods of the swizzle, 8 rows. Codes are not shared.
    fn may_pair(&self, pair: MatMulPair) -> bool {
        self.wgmma
            && !(self.coded && pair == MatMulPair::Weight)
            && self.m.is_multiple_of(16)
            && self.n.is_multiple_of(16)
    }

    /// Tiles along the tokens, and along the weight's rows.
    fn grid(&self, shape: &MatMulShape, pair: Option<MatMulPair>) -> [usize; 2] {
        let [m, n] = [shape.m.div_ceil(self.m), shape.weight_rows().div_ceil(self.n)];
        match pair {
            None => [m, n],
            Some(MatMulPair::X) => [m, n.next_multiple_of(2)],
            Some(MatMulPair::Weight) => [m.next_multiple_of(2), n],
        }
    }

    /// Longest K range of a block.
    fn depth(&self, shape: &MatMulShape, splits: usize) -> f64 {
        (shape.k_slices().div_ceil(splits) * K_SLICE).min(shape.k) as f64
    }

    /// Tokens computed in the last row of tiles.
    fn last_tokens(&self, shape: &MatMulShape) -> usize {
        let left = shape.m.saturating_sub(1) % self.m + 1;
        if self.skips { left.next_multiple_of(8 * self.workers[0]).min(self.m) } else { self.m }
    }

    fn tiles(&self, shape: &MatMulShape, pair: Option<MatMulPair>) -> usize {
        let [m, n] = self.grid(shape, pair);
        m.saturating_mul(n)
    }

    /// Words for the counter of each tile, and the sums of each of its K slices.
    fn workspace(&self, shape: &MatMulShape) -> usize {
        let tiles = self.tiles(shape, None);
        if tiles > COUNTERS {
            return usize::MAX;
        }
        shape.k_slices().saturating_mul(tiles * self.m * self.n).saturating_add(COUNTERS)
    }

    /// Seconds of the multiply-adds, or of reading their operands from shared memory:
    /// - padding rows are computed too, except for units of tokens that the kernel skips;
    /// - each warp reads its own rows of the weight and its own tokens, and dequantizes codes itself;
    /// - the block with the most K slices decides; if the last row of tiles has less work, its last block starts no
    ///   later than when all SMs have done equal work.
    fn computing(&self, model: &CostModel, shape: &MatMulShape, splits: usize, pair: Option<MatMulPair>) -> f64 {
        let [tile_m, tile_n] = [self.m, self.n].map(|size| size as f64);
        let [workers_m, workers_n] = self.workers.map(|workers| workers as f64);
        let sms = f64::from(model.sms);
        let depth = self.depth(shape, splits);
        let cycles = |tokens: f64| {
            let products = depth * tokens * tile_n / model.tensor_rate;
            let of_weight = shape.weight.bytes(shape.dtype) * tile_n * (workers_m + 1.0);
            let shared = depth * (of_weight + 2.0 * (tile_m + tokens * workers_n));
            let dequantizing = if self.coded { depth * tile_n * workers_m / 2.0 * DEQUANTIZING / ISSUED } else { 0.0 };
            products.max(shared / CostModel::SHARED_BANDWIDTH).max(dequantizing)
        };
        let [rows, columns] = self.grid(shape, pair).map(|tiles| tiles as f64);
        let row = columns * splits as f64;
        let (blocks, whole, last) = (rows * row, cycles(tile_m), cycles(self.last_tokens(shape) as f64));
        let even = (blocks / sms).ceil() * if rows > 1.0 { whole } else { last };
        let uneven = ((blocks - row) * whole + row * last + (sms - 1.0) * whole) / sms;
        even.min(uneven) / model.clock
    }

    /// Predicted time of a launch. Assumptions beyond those of the cost model and of [`computing`](Self::computing):
    /// - x and the weight come from memory once, and from L2 for each tile that uses them; padding rows are not read;
    ///   results go to memory (half as many if gated); accumulated results are read after the products, and the block
    ///   waits for them;
    /// - a multicast operand is read from L2 once, at no extra cost; the blocks of a cluster wait for each other twice,
    ///   one L2 latency each;
    /// - split-K sums go to L2 and back, the latter to one block per tile with four accesses per thread in flight;
    ///   signalling takes three latencies.
    fn seconds(&self, model: &CostModel, shape: &MatMulShape, splits: usize, pair: Option<MatMulPair>) -> f64 {
        let [m, rows] = [shape.m, shape.weight_rows()].map(|size| size as f64);
        let [tile_m, tile_n, threads] = [self.m, self.n, self.threads].map(|size| size as f64);
        let sms = f64::from(model.sms);
        let tiles = self.tiles(shape, pair) as f64;
        let blocks = tiles * splits as f64;
        let depth = self.depth(shape, splits);
        let computing = self.computing(model, shape, splits, pair);

        let [tiles_m, tiles_n] = self.grid(shape, pair).map(|tiles| tiles as f64);
        let of_weight = tiles_m * rows * shape.weight.bytes(shape.dtype);
        let of_x = tiles_n * m * shape.dtype.size() as f64;
        let copied = match pair {
            None => of_weight + of_x,
            Some(MatMulPair::X) => of_weight + of_x / 2.0,
            Some(MatMulPair::Weight) => of_weight / 2.0 + of_x,
        };
        let meeting = if pair.is_some() { 2.0 * CostModel::CACHE_LATENCY } else { 0.0 };
        let busy = (blocks / sms).min(1.0);
        let from_memory = shape.bytes() / (model.memory_bandwidth * busy);
        let from_cache = splits as f64 * depth * copied / (model.cache_bandwidth * busy);
        let rounds = (blocks / (sms * f64::from(self.resident(model)))).ceil();
        let in_flight = rounds * CostModel::LATENCY * depth / (STAGE * (self.stages - 1)) as f64;
        let copying = from_memory.max(from_cache).max(in_flight);

        let adding = if splits > 1 {
            let sums = 4.0 * tiles * tile_m * tile_n * shape.k_slices() as f64;
            let reading = model.cache_bandwidth.min(tiles * threads * 64.0 / CostModel::CACHE_LATENCY);
            3.0 * CostModel::CACHE_LATENCY + sums / model.cache_bandwidth + sums / reading
        } else {
            0.0
        };
        let waiting = if shape.accumulate { rounds * CostModel::LATENCY } else { 0.0 };
        CostModel::LAUNCH + CostModel::LATENCY + computing.max(copying) + adding + meeting + waiting
    }
}
