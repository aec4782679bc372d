//! How products are walked through: rows of `x` against rows of a block of the weight.
//!
//! Two walks over the same arithmetic. For few rows every weight is read once from memory, four rows of it side by side
//! (memory likes several streams), and used as it comes. For many rows blocks of the weight are packed, converted once,
//! and multiplied from the caches. `k` is cut into blocks of a fixed size whose sums are added in order, so a result
//! depends on its row and column alone: not on the number of rows, on tiles, nor on threads.

use crate::cpu::buffer::Block;
use crate::cpu::simd::{Bf16, Isa, Kernel, PairKernel, Paired, Pairs, Product, Simd, Single, Weight, with_element};
use crate::cpu::tile::{block_steps, direct, pack, packed, packed_shape, step_bytes};
use crate::dtype::DType;

/// At most so many rows of the weight are packed by a task: a multiple of every tile's width, and a block of them with
/// the sums of its tiles fits the second-level cache.
pub(super) const PACKED_COLUMNS: usize = 96;

/// Rows of `x` that are multiplied together.
///
/// `x` has `rows · k` elements, and so has each block for each of its rows; `prepared` has room for the rows of `x`
/// rounded up to panels, in steps.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    pub isa: Isa,
    /// By pairs: `x` and the blocks are bf16.
    pub paired: bool,
    pub rows: usize,
    pub k: usize,
    pub x: *const u8,
    pub x_dtype: DType,
    pub prepared: *mut u8,
}

/// A block, and where its results go: that of its row `n` for row `m` of `x` to `out + m · stride + n`.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub block: &'a Block,
    pub out: *mut f32,
    pub stride: usize,
}

/// A part of a walk that one thread does alone.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    /// Rows `first..` of `x`, a panel of `panel` of them, at its place in `prepared`.
    Prepare { first: usize, panel: usize },
    /// Rows `first..first + count` of a block, from memory.
    Direct { to: Columns<'a>, first: usize, count: usize },
    /// Rows `first..first + count` of a block, packed to `room`, with the tiles' sums behind.
    Packed { to: Columns<'a>, first: usize, count: usize, room: *mut u8 },
}

impl Walk {
    /// Rows of a panel of `x` and of one of the weight, and bytes of room that a packed part takes.
    pub fn packed_shape(&self) -> (usize, usize, usize) {
        self.isa.run(PanelShape { rows: self.rows })
    }

    pub fn part(&self, part: Part<'_>) {
        if self.paired { self.isa.run_pairs(Do(self, part)) } else { self.isa.run(Do(self, part)) }
    }

    #[inline(always)]
    fn prepare<S: Simd, P: Product<S>, X: Weight<S, P>>(&self, s: S, first: usize, panel: usize) {
        let rows = panel.min(self.rows - first);
        let bytes = step_bytes::<S>();
        let steps = self.k.div_ceil(P::STEP);
        // A panel of one is kept whole; larger ones are cut into blocks of `k`, all panels of a block together.
        let block = if panel == 1 { steps } else { block_steps::<S>() };
        let panels = self.rows.div_ceil(panel);
        let mut from = 0;
        while from < steps {
            let count = block.min(steps - from);
            let k = (count * P::STEP).min(self.k - from * P::STEP);
            let offset = (from * panels * panel + count * first) * bytes;
            // SAFETY: rows `first..first + rows` of `x` hold `k` elements from `from` on; the panel of this block lies
            // `first` rows of `count` steps behind the block's first, inside `prepared`, and no other task writes it.
            unsafe {
                let source = |r: usize| self.x.add(((first + r) * self.k + from * P::STEP) * X::SIZE);
                pack::<S, P, X>(s, source, rows, panel, k, self.prepared.add(offset));
            }
            from += count;
        }
    }

    #[inline(always)]
    fn direct<S: Simd, P: Product<S>, W: Weight<S, P>>(&self, s: S, to: Columns<'_>, first: usize, count: usize) {
        // Four rows a quarter of the part from each other: so each of the four streams runs on from row to row, however
        // short the rows are.
        let quarter = count / 4;
        for i in 0..quarter {
            self.direct_rows::<S, P, W, 4>(s, to, first + i, quarter);
        }
        for i in 4 * quarter..count {
            self.direct_rows::<S, P, W, 1>(s, to, first + i, 0);
        }
    }

    /// `NR` rows of a block, `apart` from each other, against all rows of `x`.
    #[inline(always)]
    fn direct_rows<S: Simd, P: Product<S>, W: Weight<S, P>, const NR: usize>(
        &self,
        s: S,
        to: Columns<'_>,
        first: usize,
        apart: usize,
    ) {
        let rows: [usize; NR] = std::array::from_fn(|n| first + n * apart);
        let block_k = block_steps::<S>() * P::STEP;
        let mut from = 0;
        while from < self.k {
            let k = block_k.min(self.k - from);
            let mut m = 0;
            while m < self.rows {
                match self.rows - m {
                    1 => self.direct_tile::<S, P, W, 1, NR>(s, to, rows, m, from, k),
                    2 => self.direct_tile::<S, P, W, 2, NR>(s, to, rows, m, from, k),
                    _ => self.direct_tile::<S, P, W, 3, NR>(s, to, rows, m, from, k),
                }
                m += 3;
            }
            from += block_k;
        }
    }

    /// `NR` rows of a block against `MR` rows of `x` from `m`, over `k` elements from `from`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn direct_tile<S: Simd, P: Product<S>, W: Weight<S, P>, const MR: usize, const NR: usize>(
        &self,
        s: S,
        to: Columns<'_>,
        rows: [usize; NR],
        m: usize,
        from: usize,
        k: usize,
    ) {
        let x_stride = self.k.div_ceil(P::STEP) * step_bytes::<S>();
        let data = to.block.data.as_ptr();
        let mut w = [data; NR];
        for (row, at) in rows.into_iter().zip(&mut w) {
            *at = data.wrapping_add((row * self.k + from) * W::SIZE);
        }
        // SAFETY: `rows` are rows of the block, `m..m + MR` prepared rows of `x`, and `from` is a multiple of a step, with
        // `k` elements behind it in both.
        let sums = unsafe {
            let x = self.prepared.add(m * x_stride + from / P::STEP * step_bytes::<S>());
            direct::<S, P, W, MR, NR>(s, x, x_stride, w, k)
        };
        let ends = Ends { first: from == 0, last: from + k == self.k };
        for (r, row) in sums.iter().enumerate() {
            // A lone row's sum is taken four times, and the others dropped.
            let four = s.sum4([row[0], row[1 % NR], row[2 % NR], row[3 % NR]]);
            for (n, sum) in rows.into_iter().zip(four) {
                self.emit(to, m + r, n, sum, ends);
            }
        }
    }

    #[inline(always)]
    fn packed<S: Simd, P: Product<S>, W: Weight<S, P>, const MR: usize, const NR: usize>(
        &self,
        s: S,
        to: Columns<'_>,
        first: usize,
        count: usize,
        room: *mut u8,
    ) {
        let bytes = step_bytes::<S>();
        let steps = self.k.div_ceil(P::STEP);
        let panels = self.rows.div_ceil(MR);
        // SAFETY: the room begins with a block of packed columns.
        let sums = unsafe { room.add(PACKED_COLUMNS * block_steps::<S>() * bytes).cast::<f32>() };
        let mut from = 0;
        while from < steps {
            let depth = block_steps::<S>().min(steps - from);
            let k = (depth * P::STEP).min(self.k - from * P::STEP);
            let ends = Ends { first: from == 0, last: from + depth == steps };
            for panel in 0..panels {
                let offset = (from * panels * MR + depth * panel * MR) * bytes;
                let mut n = 0;
                while n < count {
                    let source = |r: usize| {
                        let element = (first + n + r) * self.k + from * P::STEP;
                        to.block.data.as_ptr().wrapping_add(element * W::SIZE)
                    };
                    // SAFETY: rows `first + n..` up to `first + count` are rows of the block with `k` elements from `from`
                    // on; `room` begins with that for a block of all of them, rounded up to tiles, which the first panel
                    // finds in the first-level cache. The panel is where `prepare` put it, both `depth` steps deep; the
                    // tile's sums have their place behind the columns.
                    unsafe {
                        let (a, b) = (self.prepared.add(offset), room.add(n * depth * bytes));
                        if panel == 0 {
                            pack::<S, P, W>(s, source, NR.min(count - n), NR, k, b);
                        }
                        let tile = sums.add(panel * MR * PACKED_COLUMNS + n * MR).cast::<[[f32; NR]; MR]>();
                        let before = if ends.first { None } else { Some(*tile) };
                        let total = add_tile(s, &packed::<S, P, MR, NR>(s, a, b, depth), before);
                        if ends.last {
                            self.emit_tile(to, panel * MR, first + n, count - n, &total);
                        } else {
                            *tile = total;
                        }
                    }
                    n += NR;
                }
            }
            from += depth;
        }
    }

    /// Writes a finished tile to its columns as far as they go.
    #[inline(always)]
    fn emit_tile<const MR: usize, const NR: usize>(
        &self,
        to: Columns<'_>,
        m: usize,
        n: usize,
        columns: usize,
        tile: &[[f32; NR]; MR],
    ) {
        let ends = Ends { first: true, last: true };
        for (r, row) in tile.iter().enumerate().take(self.rows - m) {
            for (c, &sum) in row.iter().enumerate().take(columns) {
                self.emit(to, m + r, n + c, sum, ends);
            }
        }
    }

    /// Adds the sum over one block of `k` to row `m` of column `n`.
    #[inline(always)]
    fn emit(&self, to: Columns<'_>, m: usize, n: usize, sum: f32, ends: Ends) {
        // SAFETY: `m < rows` and `n` is one of the task's rows of the block: this task alone writes its column. A bias
        // has an element for each row of its block.
        unsafe {
            let out = to.out.wrapping_add(m * to.stride + n);
            let mut total = if ends.first { sum } else { *out + sum };
            if ends.last
                && let Some(bias) = &to.block.bias
            {
                total += bias.get_unchecked(n);
            }
            *out = total;
        }
    }
}

/// The sums of a tile over one block of `k`, added to those of the blocks before. `MR · NR` is a multiple of four.
#[inline(always)]
fn add_tile<S: Simd, const MR: usize, const NR: usize>(
    s: S,
    sums: &[[S::V; NR]; MR],
    before: Option<[[f32; NR]; MR]>,
) -> [[f32; NR]; MR] {
    let mut total = [[0.0; NR]; MR];
    let (of_lanes, of_tile) = (sums.as_flattened(), total.as_flattened_mut());
    for i in (0..MR * NR).step_by(4) {
        let four = s.sum4([of_lanes[i], of_lanes[i + 1], of_lanes[i + 2], of_lanes[i + 3]]);
        of_tile[i..i + 4].copy_from_slice(&four);
    }
    if let Some(before) = before {
        for (total, before) in of_tile.iter_mut().zip(before.as_flattened()) {
            *total += before;
        }
    }
    total
}

/// Whether a block of `k` is the first or the last.
#[derive(Clone, Copy)]
struct Ends {
    first: bool,
    last: bool,
}

/// Rows of a panel of `x` and of one of the weight, and bytes that a task's packed columns and sums take.
struct PanelShape {
    rows: usize,
}

impl Kernel for PanelShape {
    type Out = (usize, usize, usize);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (usize, usize, usize) {
        let (panel, tile) = packed_shape::<S>();
        let sums = self.rows.next_multiple_of(panel) * 4;
        (panel, tile, PACKED_COLUMNS * (block_steps::<S>() * step_bytes::<S>() + sums))
    }
}

struct Do<'a>(&'a Walk, Part<'a>);

impl Do<'_> {
    #[inline(always)]
    fn go<S: Simd, P: Product<S>, W: Weight<S, P>>(&self, s: S) {
        let walk = self.0;
        match self.1 {
            Part::Prepare { first, panel } => walk.prepare::<S, P, W>(s, first, panel),
            Part::Direct { to, first, count } => walk.direct::<S, P, W>(s, to, first, count),
            Part::Packed { to, first, count, room } => {
                if S::MANY_REGISTERS {
                    walk.packed::<S, P, W, 6, 4>(s, to, first, count, room);
                } else {
                    walk.packed::<S, P, W, 4, 3>(s, to, first, count, room);
                }
            }
        }
    }

    /// The dtype that this part reads.
    fn dtype(&self) -> DType {
        match self.1 {
            Part::Prepare { .. } => self.0.x_dtype,
            Part::Direct { to, .. } | Part::Packed { to, .. } => to.block.dtype,
        }
    }
}

impl Kernel for Do<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_element!(self.dtype(), E => self.go::<S, Single, E>(s));
    }
}

impl PairKernel for Do<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Pairs>(self, s: S) {
        self.go::<S, Paired, Bf16>(s);
    }
}
