//! How products are walked through: rows of `x` against rows of a block of the weight, which are columns of the result.
//!
//! Rows of `x` are converted to words once. Up to [`DIRECT_ROWS`] of them are multiplied with the weight as it streams from
//! memory, four rows of it side by side. For more, sixteen columns at a time are packed to the first-level cache, one
//! block of `k` deep, and all rows of `x` are multiplied with them while the next ones are fetched. The sums of the blocks
//! of `k` are added in order, so a result depends on its row and column alone: not on the number of rows, on tiles, nor
//! on threads.

use crate::cpu::buffer::Block;
use crate::cpu::simd::{Bf16, Isa, Kernel, PairKernel, Paired, Pairs, Product, Simd, Single, Weight, with_element};
use crate::cpu::tile::{
    Ahead, PACKED_COLUMNS, STEP_BYTES, TILE_ROWS, direct, direct_tile_rows, finish, pack, packed, padded_rows,
    prepare_row, steps, tile_rows,
};
use crate::dtype::DType;

/// Bytes of a prepared row in one block of `k`: packed columns of it take half of the first-level cache.
const BLOCK_BYTES: usize = 1024;
/// Bytes of the columns that are packed at a time.
pub(super) const PACKED_BYTES: usize = PACKED_COLUMNS * BLOCK_BYTES;
/// Up to so many rows the weight is used as it is stored: up to two tiles, reordering it for each costs no more than packing
/// it, and it is multiplied while it streams from memory.
const DIRECT_ROWS: usize = 2 * TILE_ROWS;
/// Prepared rows of up to so many bytes stay in the second-level cache beside all else.
const CACHED_BYTES: usize = 512 << 10;

/// Rows of `x` that are multiplied together. `x` has `rows · k` elements; `prepared` has [`Walk::prepared_bytes`].
#[derive(Clone, Copy)]
pub(super) struct Walk {
    pub isa: Isa,
    /// By pairs: `x` and the blocks are bf16.
    pub paired: bool,
    pub rows: usize,
    pub k: usize,
    pub x: *const u8,
    pub x_dtype: DType,
    /// `[block of k][row][words]`.
    pub prepared: *mut u8,
}

/// Some columns, all of one block, and where their results go: that of column `first + n` for row `m` to
/// `sums + m · stride + n`. There are places for [`padded_rows`], and for whole groups of packed columns.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub block: &'a Block,
    pub first: usize,
    pub count: usize,
    pub sums: *mut f32,
    pub stride: usize,
}

impl Walk {
    /// Whether there are so few rows that the weight is used as it is stored.
    pub fn is_direct(&self) -> bool {
        self.rows <= DIRECT_ROWS
    }

    /// Bytes that `rows` rows of `k` elements take when they are prepared.
    pub fn prepared_bytes(rows: usize, k: usize) -> Option<usize> {
        padded_rows(rows).checked_mul(k.div_ceil(BLOCK_BYTES / 4).checked_mul(BLOCK_BYTES)?)
    }

    /// Elements of one block of `k`.
    fn block_k(&self) -> usize {
        BLOCK_BYTES / if self.paired { 2 } else { 4 }
    }

    fn blocks(&self) -> usize {
        self.k.div_ceil(self.block_k())
    }

    /// First element and number of elements of a block of `k`.
    fn block(&self, block: usize) -> (usize, usize) {
        let from = block * self.block_k();
        (from, self.block_k().min(self.k - from))
    }

    /// The first prepared row of a block of `k`.
    fn prepared(&self, block: usize) -> *mut u8 {
        self.prepared.wrapping_add(block * padded_rows(self.rows) * BLOCK_BYTES)
    }

    /// Prepares rows `first..first + count`; no two threads the same.
    pub fn prepare(&self, first: usize, count: usize) {
        self.run(Part::Prepare { first, count });
    }

    /// The results of some columns. `room` has [`PACKED_BYTES`].
    pub fn multiply(&self, columns: Columns<'_>, room: *mut u8) {
        if self.is_direct() {
            return self.run(Part::Direct { columns });
        }
        let (groups, blocks) = (columns.count.div_ceil(PACKED_COLUMNS), self.blocks());
        // Where all of `x` stays in the second-level cache, the weight is read row by row; else `x` is, block by block.
        let by_rows = blocks * padded_rows(self.rows) * BLOCK_BYTES <= CACHED_BYTES;
        for i in 0..groups * blocks {
            let at = |i: usize| if by_rows { (i / blocks, i % blocks) } else { (i % groups, i / groups) };
            let (group, block) = at(i);
            self.run(Part::Pack { columns, group, block, to: room });
            let ahead =
                (i + 1 < groups * blocks).then(|| at(i + 1)).map(|(group, block)| self.place(columns, group, block));
            let panels = Panels {
                rows: padded_rows(self.rows),
                x: self.prepared(block),
                columns: room,
                k: self.block(block).1,
                is_first: block == 0,
                sums: columns.sums.wrapping_add(group * PACKED_COLUMNS),
                stride: columns.stride,
                ahead,
            };
            if self.paired { self.isa.run_pairs(panels) } else { self.isa.run(panels) }
        }
    }

    fn run(&self, part: Part<'_>) {
        if self.paired { self.isa.run_pairs(Do(self, part)) } else { self.isa.run(Do(self, part)) }
    }

    /// Where the columns of a group begin in a block of `k`.
    fn place(&self, columns: Columns<'_>, group: usize, block: usize) -> Ahead {
        let size = columns.block.dtype.size();
        let element = (columns.first + group * PACKED_COLUMNS) * self.k + self.block(block).0;
        Ahead { first: columns.block.data.as_ptr().wrapping_add(element * size), stride: self.k * size }
    }

    #[inline(always)]
    fn prepare_rows<S: Simd, P: Product<S>, X: Weight<S, P>>(&self, s: S, first: usize, count: usize) {
        for block in 0..self.blocks() {
            let (from, k) = self.block(block);
            for row in first..first + count {
                // SAFETY: the row has `k` elements from `from` on, and a place of a block's bytes in `prepared` that no
                // other task writes.
                unsafe {
                    let from = self.x.add((row * self.k + from) * X::SIZE);
                    prepare_row::<S, P, X>(s, from, k, self.prepared(block).add(row * BLOCK_BYTES));
                }
            }
        }
    }

    #[inline(always)]
    fn direct<S: Simd, P: Product<S>, W: Weight<S, P>, const NV: usize>(&self, s: S, columns: Columns<'_>) {
        // Four columns a quarter of all from each other: so each of the four streams runs on from row to row, however
        // short the rows are.
        let quarter = columns.count.div_ceil(4);
        for n in 0..quarter {
            for block in 0..self.blocks() {
                let four = Four { columns, n, quarter, block };
                let (mut m, end) = (0, padded_rows(self.rows));
                while m < end {
                    m += match tile_rows(end - m, direct_tile_rows::<S>()) {
                        1 => self.direct_tile::<S, P, W, 1, NV>(s, four, m),
                        2 => self.direct_tile::<S, P, W, 2, NV>(s, four, m),
                        TILE_ROWS if S::MANY_REGISTERS => self.direct_tile::<S, P, W, TILE_ROWS, NV>(s, four, m),
                        _ => self.direct_tile::<S, P, W, 4, NV>(s, four, m),
                    };
                }
            }
        }
    }

    /// Four columns against `MR` rows from `m`, over one block of `k`; returns `MR`.
    #[inline(always)]
    fn direct_tile<S: Simd, P: Product<S>, W: Weight<S, P>, const MR: usize, const NV: usize>(
        &self,
        s: S,
        four: Four<'_>,
        m: usize,
    ) -> usize {
        let Four { columns, block, .. } = four;
        let (from, k) = self.block(block);
        let mut w = [columns.block.data.as_ptr(); 4];
        for (i, w) in w.iter_mut().enumerate() {
            // A column too many is a copy of the last.
            let row = columns.first + four.column(i).min(columns.count - 1);
            *w = w.wrapping_add((row * self.k + from) * W::SIZE);
        }
        // SAFETY: the columns are rows of the block, with `k` elements from `from` on, and so have rows `m..m + MR` of this
        // block of `k`; the sums have a place for each of these rows and each column.
        unsafe {
            let x = self.prepared(block).add(m * BLOCK_BYTES);
            let tile = finish(s, &direct::<S, P, W, MR, NV>(s, x, BLOCK_BYTES, w, k));
            for (r, sums) in tile.chunks_exact(4).enumerate().take(MR) {
                for (i, sum) in sums.iter().enumerate().filter(|&(i, _)| four.column(i) < columns.count) {
                    let total = columns.sums.add((m + r) * columns.stride + four.column(i));
                    *total = sum + if block == 0 { 0.0 } else { *total };
                }
            }
        }
        MR
    }

    #[inline(always)]
    fn pack<S: Simd, P: Product<S>, W: Weight<S, P>>(
        &self,
        s: S,
        columns: Columns<'_>,
        group: usize,
        block: usize,
        to: *mut u8,
    ) {
        let (from, k) = self.block(block);
        let column = |i: usize| {
            let row = columns.first + (group * PACKED_COLUMNS + i).min(columns.count - 1);
            columns.block.data.as_ptr().wrapping_add((row * self.k + from) * W::SIZE)
        };
        // SAFETY: the columns are rows of the block, with `k` elements from `from` on; the room is for a block of `k`.
        unsafe { pack::<S, P, W>(s, column, k, to) };
    }
}

/// Columns `n`, `n + quarter`, … of some, and a block of `k`.
#[derive(Clone, Copy)]
struct Four<'a> {
    columns: Columns<'a>,
    n: usize,
    quarter: usize,
    block: usize,
}

impl Four<'_> {
    fn column(&self, i: usize) -> usize {
        self.n + i * self.quarter
    }
}

/// A part of a walk that depends on the dtype of what it reads.
#[derive(Clone, Copy)]
enum Part<'a> {
    Prepare { first: usize, count: usize },
    Direct { columns: Columns<'a> },
    Pack { columns: Columns<'a>, group: usize, block: usize, to: *mut u8 },
}

struct Do<'a>(&'a Walk, Part<'a>);

impl Do<'_> {
    #[inline(always)]
    fn go<S: Simd, P: Product<S>, W: Weight<S, P>>(&self, s: S) {
        let walk = self.0;
        match self.1 {
            Part::Prepare { first, count } => walk.prepare_rows::<S, P, W>(s, first, count),
            Part::Direct { columns } => match S::LANES {
                4 => walk.direct::<S, P, W, 4>(s, columns),
                8 => walk.direct::<S, P, W, 2>(s, columns),
                _ => walk.direct::<S, P, W, 1>(s, columns),
            },
            Part::Pack { columns, group, block, to } => walk.pack::<S, P, W>(s, columns, group, block, to),
        }
    }

    fn dtype(&self) -> DType {
        match self.1 {
            Part::Prepare { .. } => self.0.x_dtype,
            Part::Direct { columns } | Part::Pack { columns, .. } => columns.block.dtype,
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

/// All prepared rows of a block of `k` against sixteen packed columns, added to `sums`.
struct Panels {
    rows: usize,
    x: *const u8,
    columns: *const u8,
    k: usize,
    /// Nothing is in `sums` yet.
    is_first: bool,
    sums: *mut f32,
    stride: usize,
    /// The columns that will be packed next.
    ahead: Option<Ahead>,
}

impl Panels {
    #[inline(always)]
    fn go<S: Simd, P: Product<S>, const NV: usize>(self, s: S) {
        let mut m = 0;
        while m < self.rows {
            let rows = tile_rows(self.rows - m, TILE_ROWS);
            match rows {
                1 => self.tiles::<S, P, 1, NV>(s, m),
                2 => self.tiles::<S, P, 2, NV>(s, m),
                4 => self.tiles::<S, P, 4, NV>(s, m),
                _ => self.tiles::<S, P, TILE_ROWS, NV>(s, m),
            }
            m += rows;
        }
    }

    #[inline(always)]
    fn tiles<S: Simd, P: Product<S>, const MR: usize, const NV: usize>(&self, s: S, m: usize) {
        let steps = steps::<S, P>(self.k);
        let width = NV * S::LANES / 4;
        for n in (0..PACKED_COLUMNS).step_by(width) {
            // The first tiles fetch the next columns; the others, the rows of the next tile.
            let fetched = Ahead::rows(steps) * (m.div_ceil(TILE_ROWS) * PACKED_COLUMNS + n) / width;
            let ahead = match self.ahead {
                Some(ahead) if fetched < PACKED_COLUMNS => ahead.skip_rows(fetched),
                _ => Ahead { first: self.x.wrapping_add((m + MR) * BLOCK_BYTES), stride: BLOCK_BYTES },
            };
            // SAFETY: rows `m..m + MR` are prepared and the columns packed, both with the steps of `k` elements; the sums
            // have a place for each.
            unsafe {
                let (x, columns) = (self.x.add(m * BLOCK_BYTES), self.columns.add(n * STEP_BYTES));
                let tile = finish(s, &packed::<S, P, MR, NV>(s, x, BLOCK_BYTES, columns, steps, ahead));
                for r in 0..MR {
                    let to = std::slice::from_raw_parts_mut(self.sums.add((m + r) * self.stride + n), width);
                    for (total, sum) in to.iter_mut().zip(&tile[r * width..]) {
                        *total = sum + if self.is_first { 0.0 } else { *total };
                    }
                }
            }
        }
    }
}

impl Kernel for Panels {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if S::MANY_REGISTERS { self.go::<S, Single, 4>(s) } else { self.go::<S, Single, 2>(s) }
    }
}

impl PairKernel for Panels {
    type Out = ();

    #[inline(always)]
    fn run<S: Pairs>(self, s: S) {
        self.go::<S, Paired, 4>(s);
    }
}
