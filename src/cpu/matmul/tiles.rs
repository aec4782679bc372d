//! How a product is cut into tiles: some rows of `x` against one or four panels, one block of `k` at a time.
//!
//! A block of the panels stays in the first-level cache while all rows are multiplied with it. Sums of the blocks are
//! added in order, and each element is summed up in one order along `k`, so a result depends on its row and column alone:
//! not on the number of rows, on tiles, nor on threads.

use crate::cpu::simd::Simd;

use crate::cpu::panels::{COLUMNS, Panels};

/// How far ahead of what is multiplied a panel is fetched, in bytes.
const DISTANCE: usize = 4096;

/// Rows of `x` against some panels of a block of rows of the weight.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub panels: &'a Panels,
    pub rows: usize,
    /// The first prepared row, and bytes from a row to the next. There are [`padded_rows`].
    pub x: *const u8,
    pub x_stride: usize,
    /// The first panel, and how many.
    pub first: usize,
    pub count: usize,
    /// `[padded row][panel][column]`, rows `stride` elements apart.
    pub sums: *mut f32,
    pub stride: usize,
}

/// Rows of the largest tile.
pub(super) const TILE_ROWS: usize = 6;

/// Rows with what tiles may compute too many.
pub(super) const fn padded_rows(rows: usize) -> usize {
    rows + 2
}

/// Panels of the largest tile.
pub(super) const MOST_PANELS: usize = 4;

/// Panels that a tile has.
pub(super) const fn tile_panels<S: Simd>() -> usize {
    if S::LANES == COLUMNS { MOST_PANELS } else { 1 }
}

/// A tile: `rows` rows from row `m` on, against panel `panel` of the task and, on wide vectors, the next three.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub m: usize,
    pub rows: usize,
    pub panel: usize,
    /// Fetch the panel this many bytes ahead.
    pub ahead: usize,
}

impl Tile {
    /// Rows of the next tile where so many are left, at most two more than there are. The largest tile has `most`.
    #[inline(always)]
    const fn next_rows<S: Simd>(left: usize, most: usize) -> usize {
        match left {
            0 | 1 => 1,
            _ if S::IS_PORTABLE => 4,
            2 => 2,
            3 | 4 => 4,
            _ => most,
        }
    }
}

/// All tiles of a task, in order: panels, then blocks of `k`, then rows.
pub(super) struct Tiles {
    rows: usize,
    panels: usize,
    blocks: usize,
    block: usize,
    next: Tile,
}

impl Tiles {
    /// The next tile and its block of `k`. No closure takes it: what is not inlined loses the instruction set.
    #[inline(always)]
    pub fn next<S: Simd>(&mut self, most: usize) -> Option<(usize, Tile)> {
        if self.next.m >= self.rows {
            (self.next.m, self.block) = (0, self.block + 1);
            if self.block == self.blocks {
                (self.block, self.next.panel) = (0, self.next.panel + tile_panels::<S>());
            }
        }
        if self.next.panel >= self.panels || self.blocks == 0 {
            return None;
        }
        let m = self.next.m;
        let rows = Tile::next_rows::<S>(self.rows - m, most);
        self.next.m += rows;
        // The first tile reads the block from memory, the others find it in the cache.
        let ahead = if m == 0 { DISTANCE } else { 0 };
        Some((self.block, Tile { m, rows, ahead, ..self.next }))
    }
}

impl Task<'_> {
    #[inline(always)]
    pub fn tiles(&self, blocks: usize) -> Tiles {
        let next = Tile { m: 0, rows: 0, panel: 0, ahead: 0 };
        Tiles { rows: self.rows, panels: self.count, blocks, block: 0, next }
    }

    /// The panel of a tile's vector, and whether its results are wanted: at the end there are fewer panels than a tile has,
    /// and the first stands in for the others.
    #[inline(always)]
    pub fn panel(&self, tile: Tile, vector: usize, lanes: usize) -> (usize, bool) {
        let panel = tile.panel + vector * lanes / COLUMNS;
        (self.first + if panel < self.count { panel } else { tile.panel }, panel < self.count)
    }

    /// Where the results of a tile's row and vector go.
    #[inline(always)]
    pub fn place(&self, tile: Tile, row: usize, vector: usize, lanes: usize) -> *mut f32 {
        self.sums.wrapping_add((tile.m + row) * self.stride + tile.panel * COLUMNS + vector * lanes)
    }

    /// The first prepared row of a tile.
    #[inline(always)]
    pub fn row(&self, tile: Tile) -> *const u8 {
        self.x.wrapping_add(tile.m * self.x_stride)
    }
}

/// Calls a method with the tile's rows and vectors as constants.
macro_rules! with_tile {
    ($s:ty, $rows:expr, $most:expr, $call:ident) => {
        match ($rows, <$s>::LANES) {
            (1, 8) => $call!(1, 2),
            (1, _) => $call!(1, 4),
            (4, 8) => $call!(4, 2),
            (4, _) => $call!(4, 4),
            _ if <$s>::IS_PORTABLE => {}
            (2, 8) => $call!(2, 2),
            (2, _) => $call!(2, 4),
            _ if $most == 4 => {}
            (_, 8) => $call!(6, 2),
            _ => $call!(6, 4),
        }
    };
}
pub(super) use with_tile;
