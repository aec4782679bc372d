//! Products with weights of codes: integers times integers, added up exactly over a unit of `k`, then scaled.

use std::sync::atomic::{Ordering, compiler_fence};

use crate::cpu::simd::{IntKernel, Integers, prefetch_l2};

use super::rows::Layout;
use super::tiles::{MOST_PANELS, TILE_ROWS, Task, Tile, tile_panels, with_tile};
use crate::cpu::panels::{BLOCK_BYTES, COLUMNS, Format, PanelZeros, Scaling};

/// Codes of a column that are loaded together.
const CODES: usize = 8;

/// How codes are stored.
trait Codes<S: Integers> {
    /// Bytes of eight codes of one column.
    const COLUMN: usize;
    /// Rows of the largest tile.
    const TILE_ROWS: usize = 4;

    /// The first four of eight codes, or the last four (`half` 1), of as many columns as there are lanes.
    ///
    /// # Safety
    /// They are readable at `p`, the first of a panel's step and `lane` columns on.
    unsafe fn load(s: S, p: *const u8, lane: usize, half: usize, table: S::I) -> S::I;

    fn dot(s: S, sum: S::I, codes: S::I, x: S::I) -> S::I;
}

struct U4;
/// Four bits that a table translates.
struct Table;
struct U8;

impl<S: Integers> Codes<S> for U4 {
    const COLUMN: usize = 4;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8, lane: usize, half: usize, _table: S::I) -> S::I {
        // SAFETY: as the caller promises.
        let bytes = unsafe { s.load_bytes(p.add(lane * 4)) };
        if half == 0 { s.low_nibbles(bytes) } else { s.high_nibbles(bytes) }
    }
    #[inline(always)]
    fn dot(s: S, sum: S::I, codes: S::I, x: S::I) -> S::I {
        s.dot_small(sum, codes, x)
    }
}

impl<S: Integers> Codes<S> for Table {
    const COLUMN: usize = 4;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8, lane: usize, half: usize, table: S::I) -> S::I {
        // SAFETY: as the caller promises.
        s.look_up(table, unsafe { <U4 as Codes<S>>::load(s, p, lane, half, table) })
    }
    #[inline(always)]
    fn dot(s: S, sum: S::I, codes: S::I, x: S::I) -> S::I {
        s.dot_small(sum, codes, x)
    }
}

impl<S: Integers> Codes<S> for U8 {
    const COLUMN: usize = 8;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8, lane: usize, half: usize, _table: S::I) -> S::I {
        // SAFETY: as the caller promises.
        unsafe { s.load_bytes(p.add(half * 4 * COLUMNS + lane * 4)) }
    }
    #[inline(always)]
    fn dot(s: S, sum: S::I, codes: S::I, x: S::I) -> S::I {
        s.dot(sum, codes, x)
    }
}

/// Codes that were copied, a byte each: of up to 31, or any.
struct Unpacked<const IS_SMALL: bool>;

impl<S: Integers, const IS_SMALL: bool> Codes<S> for Unpacked<IS_SMALL> {
    const COLUMN: usize = 8;
    const TILE_ROWS: usize = TILE_ROWS;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8, lane: usize, half: usize, table: S::I) -> S::I {
        // SAFETY: as the caller promises.
        unsafe { <U8 as Codes<S>>::load(s, p, lane, half, table) }
    }
    #[inline(always)]
    fn dot(s: S, sum: S::I, codes: S::I, x: S::I) -> S::I {
        if IS_SMALL { s.dot_small(sum, codes, x) } else { s.dot(sum, codes, x) }
    }
}

/// From so many rows on, codes are copied to the first-level cache, a byte each, and all rows multiplied with them there.
/// Four bits are unpacked once then, and one stream instead of four leaves registers for tiles of six rows.
const COPIED_ROWS: usize = 64;
/// Bytes of copied codes: of all panels of a tile, in one block of `k`.
const COPIED_BYTES: usize = MOST_PANELS * BLOCK_BYTES;

/// Room for copied codes.
#[repr(align(64))]
struct Room([u8; COPIED_BYTES]);

/// Products with codes.
pub(super) struct Coded<'a> {
    pub task: Task<'a>,
    pub scaling: &'a Scaling,
    pub layout: &'a Layout,
    /// Parts of a number of `x`.
    pub parts: usize,
}

impl IntKernel for Coded<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Integers>(self, s: S) {
        let few = self.task.rows < COPIED_ROWS;
        match (self.task.panels.format, &self.scaling.table) {
            (Format::U8, _) if few => self.tiles::<S, U8>(s),
            (Format::U8, _) => self.copied_tiles::<S, U8, false>(s),
            (_, None) if few => self.tiles::<S, U4>(s),
            (_, None) => self.copied_tiles::<S, U4, true>(s),
            (_, Some(_)) if few => self.tiles::<S, Table>(s),
            (_, Some(_)) => self.copied_tiles::<S, Table, true>(s),
        }
    }
}

impl Coded<'_> {
    /// Units of `k` in a block, where eight codes of a column take so many bytes.
    #[inline(always)]
    fn block_units(&self, column: usize) -> usize {
        (BLOCK_BYTES * CODES / (COLUMNS * column * self.scaling.unit)).max(1)
    }

    #[inline(always)]
    fn tiles<S: Integers, C: Codes<S>>(&self, s: S) {
        let (units, block_units) = (self.task.panels.k.div_ceil(self.scaling.unit), self.block_units(C::COLUMN));
        let mut tiles = self.task.tiles(units.div_ceil(block_units));
        while let Some((block, tile)) = tiles.next::<S>(C::TILE_ROWS) {
            let first = block * block_units;
            let from = self.panels::<S>(tile, first * self.scaling.unit / CODES * COLUMNS * C::COLUMN);
            self.any_tile::<S, C>(s, tile, first, block_units.min(units - first), from);
        }
    }

    /// Like [`tiles`](Self::tiles), but codes are copied before the first tile of rows.
    #[inline(always)]
    fn copied_tiles<S: Integers, C: Codes<S>, const IS_SMALL: bool>(&self, s: S) {
        const COLUMN: usize = 8;
        let (k, unit) = (self.task.panels.k, self.scaling.unit);
        let (units, block_units) = (k.div_ceil(unit), self.block_units(COLUMN));
        let table = s.table(&self.scaling.table.unwrap_or_default());
        let mut room = Room([0; COPIED_BYTES]);
        let room = room.0.as_mut_ptr();
        let panel_bytes = block_units * unit * COLUMNS;
        let mut tiles = self.task.tiles(units.div_ceil(block_units));
        while let Some((block, tile)) = tiles.next::<S>(TILE_ROWS) {
            let first = block * block_units;
            if tile.m == 0 {
                let steps = (block_units * unit).min(k - first * unit).div_ceil(CODES);
                let from = self.panels::<S>(tile, first * unit / CODES * COLUMNS * C::COLUMN);
                for (panel, from) in from.into_iter().enumerate().take(tile_panels::<S>()) {
                    let to = room.wrapping_add(panel * panel_bytes);
                    // SAFETY: the panel has these codes, and the room is for a block of each panel.
                    unsafe { copy::<S, C>(s, from, steps, to, table) };
                }
            }
            let mut from = [std::ptr::null(); MOST_PANELS];
            for (panel, from) in from.iter_mut().enumerate() {
                *from = room.wrapping_add(panel * panel_bytes).cast_const();
            }
            let tile = Tile { ahead: 0, ..tile };
            self.any_tile::<S, Unpacked<IS_SMALL>>(s, tile, first, block_units.min(units - first), from);
        }
    }

    /// Where the panels of a tile begin, `offset` bytes in.
    #[inline(always)]
    fn panels<S: Integers>(&self, tile: Tile, offset: usize) -> [*const u8; MOST_PANELS] {
        let mut from = [std::ptr::null(); MOST_PANELS];
        for (panel, from) in from.iter_mut().enumerate().take(tile_panels::<S>()) {
            let (panel, _) = self.task.panel(tile, panel, COLUMNS);
            *from = self.task.panels.panel(panel).wrapping_add(offset);
        }
        from
    }

    #[inline(always)]
    fn any_tile<S: Integers, C: Codes<S>>(
        &self,
        s: S,
        tile: Tile,
        first: usize,
        units: usize,
        from: [*const u8; MOST_PANELS],
    ) {
        macro_rules! call {
            ($mr:literal, $nv:literal) => {
                if self.parts == 2 {
                    self.tile::<S, C, 2, $mr, $nv>(s, tile, first, units, from)
                } else {
                    self.tile::<S, C, 1, $mr, $nv>(s, tile, first, units, from)
                }
            };
        }
        with_tile!(S, tile.rows, C::TILE_ROWS, call);
    }

    /// `MR` rows against `NV` vectors of columns, `units` units of `k` from unit `first` on, whose codes begin at `base`.
    #[inline(always)]
    fn tile<S: Integers, C: Codes<S>, const PARTS: usize, const MR: usize, const NV: usize>(
        &self,
        s: S,
        tile: Tile,
        first: usize,
        units: usize,
        base: [*const u8; MOST_PANELS],
    ) {
        let Self { task, scaling, layout, .. } = self;
        let (k, unit, group) = (task.panels.k, scaling.unit, scaling.group);
        let table = s.table(&scaling.table.unwrap_or_default());
        let (x_scales, x_sums) = (layout.scales(), layout.sums());
        let x = task.row(tile);
        let mut totals = [[s.zero(); NV]; MR];
        if first > 0 {
            for (row, totals) in totals.iter_mut().enumerate() {
                for (v, total) in totals.iter_mut().enumerate().filter(|(v, _)| task.panel(tile, *v, S::LANES).1) {
                    // SAFETY: there is a place for each row, padding included, and each column of the task's panels.
                    *total = unsafe { s.load(task.place(tile, row, v, S::LANES)) };
                }
            }
        }
        for u in first..first + units {
            let (start, steps) = (u * unit, unit.min(k - u * unit).div_ceil(CODES));
            let mut from = [std::ptr::null(); NV];
            let mut scale = [s.zero(); NV];
            let mut zeros = [s.zero_integers(); NV];
            for v in 0..NV {
                let (panel, lane) = (task.panel(tile, v, S::LANES).0, v * S::LANES % COLUMNS);
                let before = (u - first) * unit / CODES * COLUMNS * C::COLUMN;
                from[v] = base[v * S::LANES / COLUMNS].wrapping_add(before);
                let place = (panel * k.div_ceil(group) + start / group) * COLUMNS + lane;
                // SAFETY: each panel has sixteen scales, and zero points if any, for each group.
                unsafe {
                    scale[v] = s.load(scaling.scales.as_ptr().add(place));
                    if let PanelZeros::Each(each) = &scaling.zeros {
                        zeros[v] = s.load_bytes(each.as_ptr().add(place).cast());
                    }
                }
            }
            let mut sums = [[s.zero_integers(); NV]; MR];
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: a row has a sum for each unit.
                let sum = unsafe { s.broadcast_bytes(x.add(row * task.x_stride + x_sums + 4 * u)) };
                for (to, &zero) in sums.iter_mut().zip(&zeros) {
                    *to = match scaling.zeros {
                        PanelZeros::All(_) => sum,
                        PanelZeros::Each(_) => s.mul_integers(sum, zero),
                    };
                }
            }
            let x_unit = x.wrapping_add(start);
            let mut integers = sums;
            if PARTS == 2 {
                integers = [[s.zero_integers(); NV]; MR];
                if MR <= 2 {
                    // Few rows leave room for both parts, so codes are loaded once.
                    let low = x_unit.wrapping_add(layout.part());
                    for step in 0..steps {
                        for half in 0..2 {
                            // SAFETY: the panels have these codes, and the rows their integers.
                            unsafe {
                                let codes = Self::load::<S, C, NV>(s, from, step, half, tile, table);
                                let at = step * CODES + half * 4;
                                self.multiply::<S, C, MR, NV>(s, &mut integers, codes, x_unit.add(at));
                                self.multiply::<S, C, MR, NV>(s, &mut sums, codes, low.add(at));
                            }
                        }
                    }
                } else {
                    // SAFETY: as above.
                    unsafe { self.unit::<S, C, MR, NV>(s, &mut integers, from, steps, tile, table, x_unit) };
                }
                for (integers, sums) in integers.iter_mut().zip(&sums) {
                    for (integer, &sum) in integers.iter_mut().zip(sums) {
                        *integer = s.add_integers(s.times_128(*integer), sum);
                    }
                }
            }
            if PARTS == 1 || MR > 2 {
                let x_unit = x_unit.wrapping_add((PARTS - 1) * layout.part());
                // SAFETY: as above.
                unsafe { self.unit::<S, C, MR, NV>(s, &mut integers, from, steps, tile, table, x_unit) };
            }
            for (row, (totals, integers)) in totals.iter_mut().zip(&integers).enumerate() {
                // SAFETY: a row has a scale for each unit.
                let x_scale = unsafe { s.broadcast(x.add(row * task.x_stride + x_scales + 4 * u).cast()) };
                for ((total, &integer), &scale) in totals.iter_mut().zip(integers).zip(&scale) {
                    *total = s.fma(s.mul(s.to_floats(integer), x_scale), scale, *total);
                }
            }
        }
        for (row, totals) in totals.iter().enumerate() {
            for (v, &total) in totals.iter().enumerate().filter(|(v, _)| task.panel(tile, *v, S::LANES).1) {
                // SAFETY: as above.
                unsafe { s.store(task.place(tile, row, v, S::LANES), total) };
            }
        }
    }

    /// Adds the products of a unit, `steps` times eight codes.
    ///
    /// # Safety
    /// The panels have the codes at `from`, and the tile's rows their integers at `x`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn unit<S: Integers, C: Codes<S>, const MR: usize, const NV: usize>(
        &self,
        s: S,
        sums: &mut [[S::I; NV]; MR],
        from: [*const u8; NV],
        steps: usize,
        tile: Tile,
        table: S::I,
        x: *const u8,
    ) {
        for step in 0..steps {
            for half in 0..2 {
                // Loading both halves at once would take more registers than there are.
                compiler_fence(Ordering::SeqCst);
                // SAFETY: as the caller promises.
                unsafe {
                    let codes = Self::load::<S, C, NV>(s, from, step, half, tile, table);
                    self.multiply::<S, C, MR, NV>(s, sums, codes, x.add(step * CODES + half * 4));
                }
            }
        }
    }

    /// # Safety
    /// The panels have these codes.
    #[inline(always)]
    unsafe fn load<S: Integers, C: Codes<S>, const NV: usize>(
        s: S,
        from: [*const u8; NV],
        step: usize,
        half: usize,
        tile: Tile,
        table: S::I,
    ) -> [S::I; NV] {
        let mut codes = [s.zero_integers(); NV];
        // By index: other loops are not unrolled, and leave the codes on the stack.
        for v in 0..NV {
            let (lane, from) = (v * S::LANES % COLUMNS, from[v].wrapping_add(step * COLUMNS * C::COLUMN));
            if half == 0 && lane == 0 {
                prefetch_l2(from.wrapping_add(tile.ahead));
            }
            // SAFETY: as the caller promises.
            codes[v] = unsafe { C::load(s, from, lane, half, table) };
        }
        codes
    }

    /// Adds the products of four codes of each column with four integers of each row.
    ///
    /// # Safety
    /// The tile's rows have them at `x`.
    #[inline(always)]
    unsafe fn multiply<S: Integers, C: Codes<S>, const MR: usize, const NV: usize>(
        &self,
        s: S,
        sums: &mut [[S::I; NV]; MR],
        codes: [S::I; NV],
        x: *const u8,
    ) {
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            let x = unsafe { s.broadcast_bytes(x.add(row * self.task.x_stride)) };
            for v in 0..NV {
                sums[v] = C::dot(s, sums[v], codes[v], x);
            }
        }
    }
}

/// Writes eight codes of each column of a panel, `steps` times, as bytes.
///
/// # Safety
/// The panel has the codes, and `to` room for them.
#[inline(always)]
unsafe fn copy<S: Integers, C: Codes<S>>(s: S, from: *const u8, steps: usize, to: *mut u8, table: S::I) {
    for step in 0..steps {
        for half in 0..2 {
            for lane in (0..COLUMNS).step_by(S::LANES) {
                // SAFETY: as the caller promises.
                unsafe {
                    let codes = C::load(s, from.add(step * COLUMNS * C::COLUMN), lane, half, table);
                    s.store_bytes(to.add(((step * 2 + half) * COLUMNS + lane) * 4), codes);
                }
            }
        }
    }
}
