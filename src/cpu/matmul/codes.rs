//! Products with weights of codes: integers times integers, added up exactly over a unit of `k`, then scaled.

use crate::cpu::simd::{IntKernel, Integers, prefetch_l2};

use super::panels::{COLUMNS, Format, PanelZeros, Scaling};
use super::rows::Layout;
use super::tiles::{BLOCK_BYTES, Task, Tile, with_tile};

/// Codes of a column that are loaded together.
const CODES: usize = 8;

/// How codes are stored.
trait Codes<S: Integers> {
    /// Bytes of eight codes of one column.
    const COLUMN: usize;

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
        match (self.task.panels.format, &self.scaling.table) {
            (Format::U8, _) => self.tiles::<S, U8>(s),
            (_, None) => self.tiles::<S, U4>(s),
            (_, Some(_)) => self.tiles::<S, Table>(s),
        }
    }
}

impl Coded<'_> {
    #[inline(always)]
    fn tiles<S: Integers, C: Codes<S>>(&self, s: S) {
        let (k, unit) = (self.task.panels.k, self.scaling.unit);
        let block_units = (BLOCK_BYTES * CODES / (COLUMNS * C::COLUMN * unit)).max(1);
        let units = k.div_ceil(unit);
        let mut tiles = self.task.tiles(units.div_ceil(block_units));
        while let Some((block, tile)) = tiles.next::<S>() {
            let first = block * block_units;
            let units = block_units.min(units - first);
            macro_rules! call {
                ($mr:literal, $nv:literal) => {
                    if self.parts == 2 {
                        self.tile::<S, C, 2, $mr, $nv>(s, tile, first, units)
                    } else {
                        self.tile::<S, C, 1, $mr, $nv>(s, tile, first, units)
                    }
                };
            }
            with_tile!(S, tile.rows, call);
        }
    }

    /// `MR` rows against `NV` vectors of columns, `units` units of `k` from unit `first` on.
    #[inline(always)]
    fn tile<S: Integers, C: Codes<S>, const PARTS: usize, const MR: usize, const NV: usize>(
        &self,
        s: S,
        tile: Tile,
        first: usize,
        units: usize,
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
                from[v] = task.panels.panel(panel).wrapping_add(start / CODES * COLUMNS * C::COLUMN);
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
