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

    /// Eight codes of as many columns as there are lanes: the first four of each, and the next four.
    ///
    /// # Safety
    /// They are readable at `p`, the first of a panel's step and `lane` columns on.
    unsafe fn load(s: S, p: *const u8, lane: usize, table: S::I) -> [S::I; 2];

    fn dot(s: S, sum: S::I, codes: S::I, x: S::I) -> S::I;
}

struct U4;
/// Four bits that a table translates.
struct Table;
struct U8;

impl<S: Integers> Codes<S> for U4 {
    const COLUMN: usize = 4;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8, lane: usize, _table: S::I) -> [S::I; 2] {
        // SAFETY: as the caller promises.
        s.nibbles(unsafe { s.load_bytes(p.add(lane * 4)) })
    }
    #[inline(always)]
    fn dot(s: S, sum: S::I, codes: S::I, x: S::I) -> S::I {
        s.dot_small(sum, codes, x)
    }
}

impl<S: Integers> Codes<S> for Table {
    const COLUMN: usize = 4;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8, lane: usize, table: S::I) -> [S::I; 2] {
        // SAFETY: as the caller promises.
        s.nibbles(unsafe { s.load_bytes(p.add(lane * 4)) }).map(|codes| s.look_up(table, codes))
    }
    #[inline(always)]
    fn dot(s: S, sum: S::I, codes: S::I, x: S::I) -> S::I {
        s.dot_small(sum, codes, x)
    }
}

impl<S: Integers> Codes<S> for U8 {
    const COLUMN: usize = 8;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8, lane: usize, _table: S::I) -> [S::I; 2] {
        // SAFETY: as the caller promises.
        unsafe { [s.load_bytes(p.add(lane * 4)), s.load_bytes(p.add(4 * COLUMNS + lane * 4))] }
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
        self.task.for_each_tile::<S>(units.div_ceil(block_units), |block, tile| {
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
        });
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
        let table = scaling.table.map_or(s.zero_integers(), |table| s.table(&table));
        let (scales, sums) = (layout.scales(), layout.sums());
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
            let mut integers = [[s.zero_integers(); NV]; MR];
            for part in 0..PARTS {
                if part == 0 && PARTS == 2 {
                    // The sum belongs to the lower part, behind the upper one's shift.
                } else {
                    for (row, integers) in integers.iter_mut().enumerate() {
                        // SAFETY: a row has a sum for each unit.
                        let sum = unsafe { s.broadcast_bytes(x.add(row * task.x_stride + sums + 4 * u)) };
                        for (integer, &zero) in integers.iter_mut().zip(&zeros) {
                            let sum = match scaling.zeros {
                                PanelZeros::All(_) => sum,
                                PanelZeros::Each(_) => s.mul_integers(sum, zero),
                            };
                            let above = if PARTS == 2 { s.times_128(*integer) } else { *integer };
                            *integer = s.add_integers(above, sum);
                        }
                    }
                }
                let mut x = x.wrapping_add(part * layout.part() + start);
                let mut from = from;
                for _ in 0..steps {
                    let mut codes = [[s.zero_integers(); 2]; NV];
                    for (v, (codes, from)) in codes.iter_mut().zip(&mut from).enumerate() {
                        let lane = v * S::LANES % COLUMNS;
                        if part == 0 && lane == 0 {
                            prefetch_l2(from.wrapping_add(tile.ahead));
                        }
                        // SAFETY: the panel has these codes.
                        *codes = unsafe { C::load(s, *from, lane, table) };
                        *from = from.wrapping_add(COLUMNS * C::COLUMN);
                    }
                    for half in 0..2 {
                        for (row, integers) in integers.iter_mut().enumerate() {
                            // SAFETY: there are the tile's rows, padding included, with all codes' integers.
                            let x = unsafe { s.broadcast_bytes(x.add(row * task.x_stride + half * 4)) };
                            for (integer, codes) in integers.iter_mut().zip(&codes) {
                                *integer = C::dot(s, *integer, codes[half], x);
                            }
                        }
                    }
                    x = x.wrapping_add(CODES);
                }
            }
            for (row, (totals, integers)) in totals.iter_mut().zip(&integers).enumerate() {
                // SAFETY: a row has a scale for each unit.
                let x_scale = unsafe { s.broadcast(x.add(row * task.x_stride + scales + 4 * u).cast()) };
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
}
