//! Which variant computes a product, and how many blocks share a tile: what the cost model finds cheapest.

use super::MatMul;
use super::abi::{BURRSTONE_MATMUL_COUNTERS, BURRSTONE_MATMUL_SPAN};
use super::call::named;
use super::cost::{Floor, Machine};
use super::tables::MATMUL;
use crate::device::{Value, Variant};
use crate::dtype::DType;
use crate::error::Result;

/// The shape of a product: x is `[m, k]` of `dtype`, the result `[m, n]` of `out`, a quantized one too; the weight is `[n, k]`, a gate's has
/// as many rows again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatMulShape {
    pub dtype: DType,
    pub out: DType,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub gated: bool,
    /// Whether the result is added to what is there.
    pub accumulate: bool,
}

/// How a product is computed.
#[derive(Clone, Copy, Debug)]
pub struct MatMulPlan {
    pub variant: &'static Variant,
    /// Blocks that share the spans of k of a tile, at most as many as there are spans. More than one needs a workspace.
    pub splits: usize,
    /// Whether blocks are pairs, which bring each other half of what both multiply. On Hopper, with one split.
    pub pair: Option<MatMulPair>,
    /// What the model expects.
    pub seconds: f64,
}

/// What the two blocks of a cluster both multiply, with tiles side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatMulPair {
    /// Rows of x: the tiles are neighbours along n.
    X,
    /// Rows of the weight: the tiles are neighbours along m.
    Weight,
}

/// Words of a workspace that count arrivals: tiles of a product whose tiles are shared.
const COUNTERS: usize = BURRSTONE_MATMUL_COUNTERS as usize;
/// Elements of k in a span.
const SPAN: usize = BURRSTONE_MATMUL_SPAN as usize;
/// Elements of k in a stage.
pub(super) const STAGE: usize = 64;
/// Threads of a warpgroup, and bytes of a grain of a row: what Hopper's form copies in.
const WARPGROUP: usize = 128;
const GRAIN: u64 = 16;

impl MatMulShape {
    /// The axes that the problem decides.
    pub(super) fn key(&self, arch: u32) -> [(&'static str, Value); 3] {
        let instruction = match arch {
            ..75 => "m8n8k4",
            75..80 => "m16n8k8",
            80..90 => "m16n8k16",
            _ => "m64k16",
        };
        // Codes are of results in x's dtype.
        let out = if self.out.size() == 1 { self.dtype } else { self.out };
        [("dtype", named(self.dtype)), ("out", named(out)), ("instruction", Value::Text(instruction))]
    }

    /// Rows of the weight.
    pub fn weight_rows(&self) -> usize {
        if self.gated { MatMul::gated_rows(self.n) } else { self.n }
    }

    /// x and the weight are read once, results are written, and read before where they are added to.
    fn bytes(&self) -> f64 {
        let [m, n, k, rows] = [self.m, self.n, self.k, self.weight_rows()].map(|size| size as f64);
        let passes = if self.accumulate { 2.0 } else { 1.0 };
        k * (m + rows) * self.dtype.size() as f64 + passes * m * n * self.out.size() as f64
    }

    /// What no plan can be faster than.
    pub fn floor(&self, machine: &Machine) -> Floor {
        let [m, rows, k] = [self.m, self.weight_rows(), self.k].map(|size| size as f64);
        machine.floor(self.bytes(), m * rows * k)
    }

    /// Spans that k is cut into.
    pub fn spans(&self) -> usize {
        self.k.div_ceil(SPAN)
    }
}

impl MatMulPlan {
    /// The cheapest of the variants that every build has, for a product with a workspace of so many words (0: none).
    ///
    /// # Errors
    /// This build has no variant for the device.
    pub fn choose(machine: &Machine, shape: &MatMulShape, workspace: usize) -> Result<Self> {
        let plan = |variant| Self::of(machine, shape, workspace, variant);
        let variant = MATMUL.best(machine.arch, &shape.key(machine.arch), |variant| plan(variant).seconds)?;
        Ok(plan(variant))
    }

    /// The cheapest use of each of those variants, cheapest first: what [`choose`](Self::choose) takes comes first.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn ranked(machine: &Machine, shape: &MatMulShape, workspace: usize) -> Result<Vec<Self>> {
        let plan = |variant| Self::of(machine, shape, workspace, variant);
        MATMUL.ranked(machine.arch, &shape.key(machine.arch), plan, |plan| plan.seconds)
    }

    /// The cheapest use of one variant.
    pub fn of(machine: &Machine, shape: &MatMulShape, workspace: usize, variant: &'static Variant) -> Self {
        let tile = Tile::of(variant);
        let plan = |splits, pair| {
            let seconds = tile.seconds(machine, shape, splits, pair);
            Self { variant, splits, pair, seconds }
        };
        let most = if tile.workspace(shape) <= workspace { shape.spans() } else { 1 };
        let split = (2..=most).map(|splits| plan(splits, None));
        // Where one tile has all rows of x, these are the least of what is copied.
        let pairs = tile.may_pair() && shape.m > tile.m && has_boxes(shape, 0) && machine.processors > 1;
        let paired = [MatMulPair::X, MatMulPair::Weight].map(|pair| plan(1, Some(pair)));
        let others = split.chain(paired.into_iter().filter(|_| pairs));
        others.fold(plan(1, None), |best, plan| if plan.seconds < best.seconds { plan } else { best })
    }

    /// Tiles times splits: what blocks compute. With pairs the tiles beyond the matrix too that make an even number of them.
    pub fn items(&self, shape: &MatMulShape) -> usize {
        Tile::of(self.variant).tiles(shape, self.pair).saturating_mul(self.splits)
    }

    /// Blocks of the launch: one an item; on Hopper no more than the device holds at once, which share the items.
    pub fn blocks(&self, machine: &Machine, shape: &MatMulShape) -> usize {
        let tile = Tile::of(self.variant);
        let items = self.items(shape);
        if !tile.by_warpgroups {
            return items;
        }
        let resident = machine.processors as usize * tile.resident(machine) as usize;
        let most = if self.pair.is_some() { (resident & !1).max(2) } else { resident };
        items.min(most)
    }

    /// Tokens and rows of the weight in a box: those of a tile, or half of them where a pair shares them.
    pub(super) fn boxes(&self) -> [usize; 2] {
        let tile = Tile::of(self.variant);
        match self.pair {
            None => [tile.m, tile.n],
            Some(MatMulPair::X) => [tile.m / 2, tile.n],
            Some(MatMulPair::Weight) => [tile.m, tile.n / 2],
        }
    }

    /// Whether the variant's blocks can be pairs.
    pub(super) fn may_pair(&self) -> bool {
        Tile::of(self.variant).may_pair()
    }

    /// Whether tiles are copied by boxes, where `addresses` are those of both operands, their bits joined. Else threads
    /// copy them.
    pub(super) fn copies_boxes(&self, shape: &MatMulShape, addresses: u64) -> bool {
        Tile::of(self.variant).by_warpgroups && has_boxes(shape, addresses)
    }

    /// Words of workspace that more than one split needs.
    pub(super) fn workspace(&self, shape: &MatMulShape) -> usize {
        Tile::of(self.variant).workspace(shape)
    }
}

/// Whether rows, the first of which is at `addresses`, are whole grains.
fn has_boxes(shape: &MatMulShape, addresses: u64) -> bool {
    let rows = (shape.k * shape.dtype.size()) as u64;
    rows > 0 && (rows | addresses).is_multiple_of(GRAIN)
}

/// A variant's tile, as far as the model knows it.
#[derive(Clone, Copy)]
struct Tile {
    m: usize,
    n: usize,
    stages: usize,
    /// Those that multiply.
    threads: usize,
    shared_bytes: u32,
    /// Hopper's form: a warpgroup copies, the others multiply, and blocks take item after item.
    by_warpgroups: bool,
    /// Units of eight tokens that there are not are not multiplied; workers have them in turns.
    skips: bool,
    /// Warps, or warpgroups, that multiply: along the tokens, and along the rows of the weight.
    workers: [usize; 2],
}

impl Tile {
    fn of(variant: &Variant) -> Self {
        // Every variant has these axes, and none of them is 0.
        let axis = |name| variant.int(name).unwrap_or(1).max(1) as usize;
        let (m, n, stages, threads) = (axis("m"), axis("n"), axis("stages"), axis("threads"));
        let is = |instruction| variant.value("instruction") == Some(Value::Text(instruction));
        let (by_warpgroups, skips) = (is("m64k16"), is("m16n8k16") && m > 32);
        let threads = if by_warpgroups { threads.saturating_sub(WARPGROUP).max(WARPGROUP) } else { threads };
        let workers = match m {
            _ if by_warpgroups => [1, threads / WARPGROUP],
            17.. => [2, threads / 64],
            _ => [1, threads / 32],
        };
        Self { m, n, stages, threads, shared_bytes: variant.shared_bytes, by_warpgroups, skips, workers }
    }

    /// Blocks that a multiprocessor holds. A thread that multiplies has twice its sums in registers, and 64 more.
    fn resident(&self, machine: &Machine) -> u32 {
        let registers = 64 + 2 * self.m * self.n / self.threads;
        let copying = if self.by_warpgroups { WARPGROUP } else { 0 };
        machine.resident((self.threads + copying) as u32, registers as u32, self.shared_bytes)
    }

    /// Halves of a tile's rows are whole patterns of the swizzle, of eight rows.
    fn may_pair(&self) -> bool {
        self.by_warpgroups && self.m.is_multiple_of(16) && self.n.is_multiple_of(16)
    }

    /// Tiles along the tokens, and along the rows of the weight.
    fn grid(&self, shape: &MatMulShape, pair: Option<MatMulPair>) -> [usize; 2] {
        let [m, n] = [shape.m.div_ceil(self.m), shape.weight_rows().div_ceil(self.n)];
        match pair {
            None => [m, n],
            Some(MatMulPair::X) => [m, n.next_multiple_of(2)],
            Some(MatMulPair::Weight) => [m.next_multiple_of(2), n],
        }
    }

    /// Elements of k that a block multiplies at the most.
    fn depth(&self, shape: &MatMulShape, splits: usize) -> f64 {
        (shape.spans().div_ceil(splits) * SPAN).min(shape.k) as f64
    }

    /// Tokens that are multiplied in the last tiles along them.
    fn last_tokens(&self, shape: &MatMulShape) -> usize {
        let left = shape.m.saturating_sub(1) % self.m + 1;
        if self.skips { left.next_multiple_of(8 * self.workers[0]).min(self.m) } else { self.m }
    }

    fn tiles(&self, shape: &MatMulShape, pair: Option<MatMulPair>) -> usize {
        let [m, n] = self.grid(shape, pair);
        m.saturating_mul(n)
    }

    /// Words for the arrivals at each tile, and for the sums of each span of it.
    fn workspace(&self, shape: &MatMulShape) -> usize {
        let tiles = self.tiles(shape, None);
        if tiles > COUNTERS {
            return usize::MAX;
        }
        shape.spans().saturating_mul(tiles * self.m * self.n).saturating_add(COUNTERS)
    }

    /// Seconds of the multiply-adds, or of reading their operands from shared memory:
    /// - rows that there are not are multiplied too, but for units of tokens that the kernel leaves out;
    /// - each warp reads its rows of the weight and its tokens;
    /// - the block with the most spans decides; where the last tiles along the tokens have less to do than the others, the last
    ///   block begins at the latest when all multiprocessors have done the same.
    fn computing(&self, machine: &Machine, shape: &MatMulShape, splits: usize, pair: Option<MatMulPair>) -> f64 {
        let [tile_m, tile_n] = [self.m, self.n].map(|size| size as f64);
        let [workers_m, workers_n] = self.workers.map(|workers| workers as f64);
        let processors = f64::from(machine.processors);
        let depth = self.depth(shape, splits);
        let cycles = |tokens: f64| {
            let products = depth * tokens * tile_n / machine.tensor_rate;
            let shared = 2.0 * depth * (tile_n * (workers_m + 1.0) + tile_m + tokens * workers_n);
            products.max(shared / Machine::SHARED_BANDWIDTH)
        };
        let [rows, columns] = self.grid(shape, pair).map(|tiles| tiles as f64);
        let row = columns * splits as f64;
        let (blocks, whole, last) = (rows * row, cycles(tile_m), cycles(self.last_tokens(shape) as f64));
        let even = (blocks / processors).ceil() * if rows > 1.0 { whole } else { last };
        let uneven = ((blocks - row) * whole + row * last + (processors - 1.0) * whole) / processors;
        even.min(uneven) / machine.clock
    }

    /// What the launch takes. Beside the machine's assumptions, and what [`computing`](Self::computing) takes for granted:
    /// - x and the weight come from memory once, and from the L2 cache for each tile that uses them; rows that there are not
    ///   are not read; results go to memory, where there is a gate half as many; what they are added to comes from there, and
    ///   a block that is done with its products waits for it;
    /// - what a pair shares comes from the L2 cache once, and its way to both costs nothing more; the blocks of a pair wait for
    ///   each other twice, a latency of the L2 cache each;
    /// - sums of spans go to the L2 cache and come back, the latter to one block for each tile, which has four accesses
    ///   of each thread in flight; three latencies are spent on the arrival.
    fn seconds(&self, machine: &Machine, shape: &MatMulShape, splits: usize, pair: Option<MatMulPair>) -> f64 {
        let [m, rows] = [shape.m, shape.weight_rows()].map(|size| size as f64);
        let [tile_m, tile_n, threads] = [self.m, self.n, self.threads].map(|size| size as f64);
        let processors = f64::from(machine.processors);
        let tiles = self.tiles(shape, pair) as f64;
        let blocks = tiles * splits as f64;
        let depth = self.depth(shape, splits);
        let computing = self.computing(machine, shape, splits, pair);

        let [tiles_m, tiles_n] = self.grid(shape, pair).map(|tiles| tiles as f64);
        let copied = match pair {
            None => tiles_m * rows + tiles_n * m,
            Some(MatMulPair::X) => tiles_m * rows + tiles_n * m / 2.0,
            Some(MatMulPair::Weight) => tiles_m * rows / 2.0 + tiles_n * m,
        };
        let meeting = if pair.is_some() { 2.0 * Machine::CACHE_LATENCY } else { 0.0 };
        let busy = (blocks / processors).min(1.0);
        let from_memory = shape.bytes() / (machine.memory_bandwidth * busy);
        let from_cache = splits as f64 * depth * 2.0 * copied / (machine.cache_bandwidth * busy);
        let rounds = (blocks / (processors * f64::from(self.resident(machine)))).ceil();
        let in_flight = rounds * Machine::LATENCY * depth / (STAGE * (self.stages - 1)) as f64;
        let copying = from_memory.max(from_cache).max(in_flight);

        let adding = if splits > 1 {
            let sums = 4.0 * tiles * tile_m * tile_n * shape.spans() as f64;
            let reading = machine.cache_bandwidth.min(tiles * threads * 64.0 / Machine::CACHE_LATENCY);
            3.0 * Machine::CACHE_LATENCY + sums / machine.cache_bandwidth + sums / reading
        } else {
            0.0
        };
        let waiting = if shape.accumulate { rounds * Machine::LATENCY } else { 0.0 };
        Machine::LAUNCH + Machine::LATENCY + computing.max(copying) + adding + meeting + waiting
    }
}
