//! The online softmax of one tile after another: scores to weights, weights times values, states merged in order.

use std::ops::Range;

use super::TILE;
use super::scores::Operands;
use crate::cpu::simd::{Kernel, Simd, exp, tanh};

/// The running maximum before any score: finite, so that differences with it are numbers.
const LOWEST: f32 = -1e30;

/// Where things lie in a task's room. Rows are rounded up to whole panels, widths to whole vectors.
pub(super) struct Room {
    /// Packed queries and keys.
    pub query: *mut u8,
    pub keys: *mut u8,
    /// `[TILE, width]` words.
    pub values: *mut f32,
    /// Scores, then words of weights, `[rows, TILE]`.
    pub scores: *mut f32,
    /// What the sums so far are multiplied by, `[rows]`.
    pub decay: *mut f32,
    pub split: State,
    pub total: State,
}

/// Sums of weighted values so far, `[rows, width]`, and for each row the maximum that its weights are relative to and
/// their sum.
#[derive(Clone, Copy)]
pub(super) struct State {
    out: *mut f32,
    max: *mut f32,
    sum: *mut f32,
    rows: usize,
    width: usize,
}

/// Hands out f32 places from a pointer on, each on a cache line of its own if the pointer is.
struct Places {
    at: *mut f32,
    taken: usize,
}

impl Places {
    fn take(&mut self, n: usize) -> *mut f32 {
        let n = n.next_multiple_of(16);
        self.taken += n;
        let place = self.at;
        self.at = place.wrapping_add(n);
        place
    }
}

impl Room {
    /// The room of `rows` rows from `at` on, and the f32 places that it takes.
    pub fn new<S: Simd>(at: *mut f32, rows: usize, head_dim: usize) -> (Self, usize) {
        let (padded, width) = padded::<S>(rows, head_dim);
        let mut places = Places { at, taken: 0 };
        let room = Self {
            query: places.take(padded * width).cast(),
            keys: places.take(TILE * width).cast(),
            values: places.take(TILE * width),
            scores: places.take(padded * TILE),
            decay: places.take(padded),
            split: State::take(&mut places, padded, width),
            total: State::take(&mut places, padded, width),
        };
        (room, places.taken)
    }
}

fn padded<S: Simd>(rows: usize, head_dim: usize) -> (usize, usize) {
    // Values are added to six rows at a time, or four.
    let rows = rows.next_multiple_of(if S::MANY_REGISTERS { 6 } else { 4 });
    (rows, head_dim.next_multiple_of(S::LANES))
}

impl State {
    fn take(places: &mut Places, rows: usize, width: usize) -> Self {
        Self { out: places.take(rows * width), max: places.take(rows), sum: places.take(rows), rows, width }
    }

    /// The state of `rows` rows from `at` on, and the f32 places that it takes.
    pub fn new<S: Simd>(at: *mut f32, rows: usize, head_dim: usize) -> (Self, usize) {
        let (padded, width) = padded::<S>(rows, head_dim);
        let mut places = Places { at, taken: 0 };
        (Self::take(&mut places, padded, width), places.taken)
    }

    /// # Safety
    /// The state's memory is writable.
    pub unsafe fn reset(self) {
        // SAFETY: as the caller promises; zero bits are the number 0.
        unsafe {
            self.out.write_bytes(0, self.rows * self.width);
            self.sum.write_bytes(0, self.rows);
            std::slice::from_raw_parts_mut(self.max, self.rows).fill(LOWEST);
        }
    }

    /// Adds a later state of the same rows.
    ///
    /// # Safety
    /// The memory of both is there, and `rows` of it are initialized.
    #[inline(always)]
    pub unsafe fn merge<S: Simd>(self, s: S, later: Self, rows: usize) {
        for r in 0..rows {
            // SAFETY: `r < rows`, and every vector lies in a row.
            unsafe {
                let (old, new) = (*self.max.add(r), *later.max.add(r));
                let max = if new > old { new } else { old };
                let (keep, take) = (exp_one(s, old - max), exp_one(s, new - max));
                *self.max.add(r) = max;
                *self.sum.add(r) = *self.sum.add(r) * keep + *later.sum.add(r) * take;
                let (keep, take) = (s.splat(keep), s.splat(take));
                let mut i = 0;
                while i < self.width {
                    let (to, from) = (self.out.add(r * self.width + i), later.out.add(r * self.width + i));
                    s.store(to, s.fma(s.load(from), take, s.mul(s.load(to), keep)));
                    i += S::LANES;
                }
            }
        }
    }

    /// Row `r`, divided by the sum of its weights and of that of `sink`, a score without a value.
    ///
    /// # Safety
    /// The state has row `r`.
    #[inline(always)]
    pub unsafe fn finish<S: Simd>(self, s: S, r: usize, sink: Option<f32>) -> *const f32 {
        // SAFETY: every vector lies in the row.
        unsafe {
            let sink = sink.map_or(0.0, |sink| exp_one(s, sink - *self.max.add(r)));
            let (row, sum) = (self.out.add(r * self.width), s.splat(*self.sum.add(r) + sink));
            let mut i = 0;
            while i < self.width {
                s.store(row.add(i), s.div(s.load(row.add(i)), sum));
                i += S::LANES;
            }
            row
        }
    }
}

/// f32 places of a task's room, and of a state alone.
pub(super) struct Sizes {
    pub rows: usize,
    pub head_dim: usize,
}

impl Kernel for Sizes {
    type Out = (usize, usize);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (usize, usize) {
        let nowhere = std::ptr::null_mut();
        (Room::new::<S>(nowhere, self.rows, self.head_dim).1, State::new::<S>(nowhere, self.rows, self.head_dim).1)
    }
}

/// What becomes of a product, beside its mask: `cap · tanh(scale · product / cap) + slope · distance`, where the key of
/// column `i` is `ahead + i` positions behind the query.
pub(super) struct Bend {
    pub scale: f32,
    pub soft_cap: Option<f32>,
    pub slope: f32,
    pub ahead: f32,
}

/// Turns row `r` of products into scores.
///
/// # Safety
/// The room has row `r`.
#[inline(always)]
pub(super) unsafe fn bend<S: Simd>(s: S, room: &Room, r: usize, to: Bend) {
    let mut lanes = [0f32; 16];
    lanes.iter_mut().enumerate().for_each(|(i, lane)| *lane = i as f32);
    let mut i = 0;
    while i < TILE {
        // SAFETY: `i + LANES ≤ TILE`, a multiple of the lanes, of which there are at most 16.
        unsafe {
            let p = room.scores.add(r * TILE + i);
            let mut score = s.mul(s.load(p), s.splat(to.scale));
            if let Some(cap) = to.soft_cap {
                score = s.mul(s.splat(cap), tanh(s, s.mul(score, s.splat(1.0 / cap))));
            }
            let distance = s.add(s.load(lanes.as_ptr()), s.splat(to.ahead + i as f32));
            s.store(p, s.fma(s.splat(to.slope), distance, score));
        }
        i += S::LANES;
    }
}

/// Turns row `r` of the scores into weights; only columns `seen` count. Brings the running maximum and sum up to
/// date and notes the decay.
///
/// # Safety
/// Room and state have row `r`; `seen` ends at `TILE` or before.
#[inline(always)]
pub(super) unsafe fn softmax<S: Simd, P: Operands<S>>(
    s: S,
    room: &Room,
    state: State,
    r: usize,
    seen: Range<usize>,
    scale: f32,
) {
    // SAFETY: the two have these, and nothing else refers to them now.
    let (scores, max, sum, decay) = unsafe {
        let scores = std::slice::from_raw_parts_mut(room.scores.add(r * TILE), TILE);
        (scores, &mut *state.max.add(r), &mut *state.sum.add(r), &mut *room.decay.add(r))
    };
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end.max(seen.start)..].fill(f32::NEG_INFINITY);
    let p = scores.as_mut_ptr();
    let mut highest = s.splat(LOWEST);
    let mut i = 0;
    while i < TILE {
        // SAFETY: `i + LANES ≤ TILE`, a multiple of the lanes.
        unsafe {
            let scaled = s.mul(s.load(p.add(i)), s.splat(scale));
            s.store(p.add(i), scaled);
            highest = s.max(highest, scaled);
        }
        i += S::LANES;
    }
    let before = *max;
    let highest = s.reduce_max(highest);
    if highest > before {
        *max = highest;
    }
    let (mut total, mut i) = (s.zero(), 0);
    while i < TILE {
        // SAFETY: as above.
        unsafe {
            let weight = exp(s, s.sub(s.load(p.add(i)), s.splat(*max)));
            // What weights overwrite was read before: their words take no more room than the scores.
            P::store_weights(s, p, i, weight);
            total = s.add(total, weight);
        }
        i += S::LANES;
    }
    // The usual case, and exp(0) is 1.
    *decay = if *max == before { 1.0 } else { exp_one(s, before - *max) };
    *sum = *sum * *decay + s.sum(total);
}

/// [`exp`] of one number.
#[inline(always)]
fn exp_one<S: Simd>(s: S, x: f32) -> f32 {
    let mut lanes = [0f32; 16];
    // SAFETY: no vector has more than 16 lanes.
    unsafe { s.store(lanes.as_mut_ptr(), exp(s, s.splat(x))) };
    lanes[0]
}

/// The values of a tile, as words by which weights are multiplied.
#[allow(clippy::missing_safety_doc)]
pub(super) trait Values<S: Simd> {
    /// A vector from column `column` on of the values that go with word `n` of the weights.
    ///
    /// # Safety
    /// The values have these columns.
    unsafe fn load(&self, s: S, n: usize, column: usize) -> S::V;
}

/// `out = out · decay + weights · values` for `MR` rows from `r`, all columns, vectors of them at a time: `NV`, or `FEW`
/// where fewer are left, or one. There are `count` words of weights.
///
/// # Safety
/// Room and state have those rows, and the values the columns of the state's width.
#[inline(always)]
pub(super) unsafe fn add_values<S: Simd, P: Operands<S>, const MR: usize, const NV: usize, const FEW: usize>(
    s: S,
    room: &Room,
    state: State,
    r: usize,
    values: &impl Values<S>,
    count: usize,
) {
    let mut column = 0;
    while column < state.width {
        let left = (state.width - column) / S::LANES;
        // SAFETY: the caller's promise, and so many vectors are left.
        column += S::LANES
            * unsafe {
                if left >= NV {
                    add_columns::<S, P, MR, NV>(s, room, state, r, column, values, count)
                } else if left >= FEW {
                    add_columns::<S, P, MR, FEW>(s, room, state, r, column, values, count)
                } else {
                    add_columns::<S, P, MR, 1>(s, room, state, r, column, values, count)
                }
            };
    }
}

/// [`add_values`] for `NV` vectors from `column`; returns `NV`.
///
/// # Safety
/// As there; the vectors lie inside the width.
#[inline(always)]
unsafe fn add_columns<S: Simd, P: Operands<S>, const MR: usize, const NV: usize>(
    s: S,
    room: &Room,
    state: State,
    r: usize,
    column: usize,
    values: &impl Values<S>,
    count: usize,
) -> usize {
    // SAFETY: all that is touched lies in the rows and columns that the caller vouches for.
    unsafe {
        let out = state.out.add(r * state.width + column);
        let mut sums = [[s.zero(); NV]; MR];
        for (i, row) in sums.iter_mut().enumerate() {
            let decay = s.splat(*room.decay.add(r + i));
            for (j, sum) in row.iter_mut().enumerate() {
                *sum = s.mul(s.load(out.add(i * state.width + j * S::LANES)), decay);
            }
        }
        let mut weight = room.scores.add(r * TILE);
        for n in 0..count {
            let mut words = [s.zero(); NV];
            for (j, words) in words.iter_mut().enumerate() {
                *words = values.load(s, n, column + j * S::LANES);
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let weight = s.splat(*weight.add(i * TILE));
                for (sum, &words) in row.iter_mut().zip(&words) {
                    *sum = P::accumulate(s, *sum, weight, words);
                }
            }
            weight = weight.add(1);
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                s.store(out.add(i * state.width + j * S::LANES), sum);
            }
        }
    }
    NV
}
