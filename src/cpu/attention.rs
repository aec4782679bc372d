//! Causal softmax attention over the paged cache: one kernel for prefill and decode.
//!
//! A task is one sequence, one key head and a tile of its tokens; the query heads of the group times those tokens are
//! the rows. Keys and values are walked in tiles at absolute positions, with the online softmax of Milakov and
//! Gimelshein (2018); every [`SPLIT`] positions the state starts afresh and is merged in order into the total, so that
//! a long sequence can be shared out. Tiles that a row does not see change nothing in it, to the bit, so chunks and
//! neighbours do not either.

use crate::cpu::buffer::{Pages, Step, convert};
use crate::cpu::pool::Pool;
use crate::cpu::simd::{
    Bf16, Element, F32, Isa, Kernel, PairKernel, Paired, Pairs, Product, Simd, Single, exp, with_element,
};
use crate::cpu::tile::{pack, packed, packed_shape, step_bytes};
use crate::cpu::{Cpu, MAX_HEAD_DIM};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{Attention, Span};

const OP: &str = "attention";

/// Positions of a tile: a multiple of every register tile's width and of every vector's lanes.
const TILE: usize = 48;
/// Positions after which the softmax starts afresh.
const SPLIT: usize = 24 * TILE;
/// Rows that a task aims at: enough to pay for converting keys and values, few enough for the first-level cache.
const ROWS: usize = 48;
/// The running maximum before any score: finite, so that differences with it are numbers.
const LOWEST: f32 = -1e30;

/// Room that lasts from call to call, one per thread.
pub(crate) struct Scratch(Vec<Pages>);

impl Scratch {
    pub(crate) fn new(threads: usize) -> Result<Self> {
        Ok(Self((0..threads).map(|_| Pages::new(0)).collect::<Result<_>>()?))
    }
}

pub(crate) fn attention(
    isa: Isa,
    pool: &Pool,
    scratch: &mut Scratch,
    step: &Step,
    args: Attention<'_, Cpu>,
) -> Result<()> {
    let Attention { query, cache, layer, out, heads, scale, window } = args;
    let (batch, shape) = (step.batch(), cache.shape());
    let (kv_heads, head_dim) = (shape.kv_heads, shape.head_dim);
    cache.check_layer(OP, layer)?;
    if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 {
        return Err(Error::operator(OP, "heads", format!("a multiple of {kv_heads}"), heads));
    }
    if head_dim == 0 || head_dim > MAX_HEAD_DIM {
        return Err(Error::operator(OP, "head_dim", format!("1 to {MAX_HEAD_DIM}"), head_dim));
    }
    if window == Some(0) {
        return Err(Error::operator(OP, "window", "at least 1", 0));
    }
    let elements = batch.tokens.len().checked_mul(heads).and_then(|n| n.checked_mul(head_dim));
    query.check(OP, "query", elements)?;
    out.check(OP, "out", elements)?;
    for span in &batch.spans {
        let first = first_visible(span.kv_len - span.len, window) / shape.page_size;
        let last = span.kv_len.div_ceil(shape.page_size);
        let pages = span.pages.checked_add(last).and_then(|end| batch.page_table.get(span.pages + first..end));
        let Some(pages) = pages else {
            let expected = format!("{last} entries from {} for {} positions", span.pages, span.kv_len);
            return Err(Error::operator(OP, "page_table", expected, format!("{} in all", batch.page_table.len())));
        };
        if let Some(page) = pages.iter().find(|&&page| page as usize >= shape.pages) {
            return Err(Error::operator(OP, "page_table", format!("pages below {}", shape.pages), page));
        }
    }

    let group = heads / kv_heads;
    let tokens = (ROWS / group).max(1);
    let bytes = shape.dtype.size();
    // SAFETY: the layer is one of the cache's, so both planes lie inside it.
    let (keys, values) = unsafe {
        let keys = cache.as_ptr().add(cache.layer_offset(layer));
        (keys, keys.add(cache.plane() * bytes))
    };
    let call = Call {
        query: query.as_ptr(),
        query_dtype: query.dtype(),
        keys,
        values,
        cache_dtype: shape.dtype,
        out: out.as_mut_ptr(),
        out_dtype: out.dtype(),
        page_table: &batch.page_table,
        page_size: shape.page_size,
        kv_heads,
        group,
        head_dim,
        scale,
        window,
    };
    let room = isa.run(RoomFor { rows: group * tokens, head_dim });
    for pages in &mut scratch.0 {
        pages.reserve(room)?;
    }
    let paired = isa.has_pairs() && query.dtype() == DType::BF16 && shape.dtype == DType::BF16;
    let mut ends: Vec<usize> = Vec::with_capacity(batch.spans.len());
    for span in &batch.spans {
        ends.push(ends.last().copied().unwrap_or(0) + span.len.div_ceil(tokens) * kv_heads);
    }
    let tasks = ends.last().copied().unwrap_or(0);
    pool.run_with(&mut scratch.0, tasks, &|pages, task| {
        // The last tiles of a prompt see most: they go first, so that the threads end together.
        let task = tasks - 1 - task;
        let index = ends.partition_point(|&end| end <= task);
        let within = if index == 0 { task } else { task - ends[index - 1] };
        let (tile, kv_head) = (within / kv_heads, within % kv_heads);
        let span = batch.spans[index];
        let part = Part {
            call: &call,
            span,
            kv_head,
            first: tile * tokens,
            tokens: tokens.min(span.len - tile * tokens),
            scratch: pages.as_mut_ptr(),
        };
        if paired { isa.run_pairs(part) } else { isa.run(part) }
    });
    Ok(())
}

/// The first position that a query at `position` sees.
fn first_visible(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// `query` and `out` have a row of heads for each token of the batch; `keys` and `values` are one layer's; every page that
/// a span's positions need lies inside them.
struct Call<'a> {
    query: *const u8,
    query_dtype: DType,
    keys: *const u8,
    values: *const u8,
    cache_dtype: DType,
    out: *mut u8,
    out_dtype: DType,
    page_table: &'a [u32],
    page_size: usize,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    scale: f32,
    window: Option<usize>,
}

// SAFETY: tasks read the query and the cache, and each writes the heads of its own tokens in `out`.
unsafe impl Sync for Call<'_> {}

/// Tokens `first..first + tokens` of a span, the query heads of one key head. `scratch` has [`RoomFor`] them.
struct Part<'a> {
    call: &'a Call<'a>,
    span: Span,
    kv_head: usize,
    first: usize,
    tokens: usize,
    scratch: *mut u8,
}

/// Where things lie in a task's room. Rows are rounded up to whole panels, widths to whole vectors.
struct Room {
    /// Packed queries and keys.
    query: *mut u8,
    keys: *mut u8,
    /// `[TILE, width]` f32.
    values: *mut f32,
    /// Scores, then weights, `[rows, TILE]`.
    scores: *mut f32,
    /// Of the split and of the total: `[rows, width]`, and `[rows]` each for the running maximum and sum.
    split: State,
    total: State,
    /// What the sums so far are multiplied by, `[rows]`.
    decay: *mut f32,
    width: usize,
}

#[derive(Clone, Copy)]
struct State {
    out: *mut f32,
    max: *mut f32,
    sum: *mut f32,
}

/// f32 places that a task's room takes, in the order of [`Room`].
fn places<S: Simd>(rows: usize, head_dim: usize) -> [usize; 10] {
    let rows = rows.next_multiple_of(packed_shape::<S>().0);
    let width = head_dim.next_multiple_of(S::LANES);
    let state = rows * width;
    [rows * width, TILE * width, TILE * width, rows * TILE, state, rows, rows, state, rows, rows]
}

/// Bytes of room for a task.
struct RoomFor {
    rows: usize,
    head_dim: usize,
}

impl Kernel for RoomFor {
    type Out = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        let decay = self.rows.next_multiple_of(packed_shape::<S>().0);
        // Each place begins on a cache line.
        places::<S>(self.rows, self.head_dim).iter().chain([&decay]).map(|n| n.next_multiple_of(16) * 4).sum()
    }
}

/// A [`Product`] whose operands are found by their dtype.
trait Operands<S: Simd>: Product<S> {
    /// # Safety
    /// As [`pack`], for rows of `dtype`.
    unsafe fn pack(s: S, dtype: DType, source: impl Fn(usize) -> usize, base: *const u8, shape: Panel, to: *mut u8);
}

/// Rows of a panel that are there, rows of the panel, elements of a row.
#[derive(Clone, Copy)]
struct Panel {
    rows: usize,
    of: usize,
    k: usize,
}

impl<S: Simd> Operands<S> for Single {
    #[inline(always)]
    unsafe fn pack(s: S, dtype: DType, source: impl Fn(usize) -> usize, base: *const u8, shape: Panel, to: *mut u8) {
        let Panel { rows, of, k } = shape;
        with_element!(dtype, E => {
            let row = |r: usize| base.wrapping_add(source(r) * E::SIZE);
            // SAFETY: the caller's promise is this one's.
            unsafe { pack::<S, Single, E>(s, row, rows, of, k, to) }
        });
    }
}

impl<S: Pairs> Operands<S> for Paired {
    #[inline(always)]
    unsafe fn pack(s: S, _: DType, source: impl Fn(usize) -> usize, base: *const u8, shape: Panel, to: *mut u8) {
        let Panel { rows, of, k } = shape;
        let row = |r: usize| base.wrapping_add(source(r) * Bf16::SIZE);
        // SAFETY: the caller's promise is this one's; pair products are chosen only where both operands are bf16.
        unsafe { pack::<S, Paired, Bf16>(s, row, rows, of, k, to) }
    }
}

impl Kernel for Part<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.go::<S, Single>(s);
    }
}

impl PairKernel for Part<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Pairs>(self, s: S) {
        self.go::<S, Paired>(s);
    }
}

impl Part<'_> {
    #[inline(always)]
    fn go<S: Simd, P: Operands<S>>(&self, s: S) {
        if S::MANY_REGISTERS { self.tiled::<S, P, 6, 4>(s) } else { self.tiled::<S, P, 4, 3>(s) }
    }

    fn rows(&self) -> usize {
        self.tokens * self.call.group
    }

    /// Position of this part's token `t`.
    fn position(&self, t: usize) -> usize {
        self.span.kv_len - self.span.len + self.first + t
    }

    fn room<S: Simd>(&self) -> Room {
        let mut at = self.scratch.cast::<f32>();
        let mut take = |n: usize| {
            let place = at;
            at = at.wrapping_add(n.next_multiple_of(16));
            place
        };
        let [query, keys, values, scores, out, max, sum, total_out, total_max, total_sum] =
            places::<S>(self.rows(), self.call.head_dim).map(&mut take);
        Room {
            query: query.cast(),
            keys: keys.cast(),
            values,
            scores,
            split: State { out, max, sum },
            total: State { out: total_out, max: total_max, sum: total_sum },
            decay: take(self.rows()),
            width: self.call.head_dim.next_multiple_of(S::LANES),
        }
    }

    #[inline(always)]
    fn tiled<S: Simd, P: Operands<S>, const MR: usize, const NR: usize>(&self, s: S) {
        let call = self.call;
        let (rows, d) = (self.rows(), call.head_dim);
        let padded = rows.next_multiple_of(MR);
        let room = self.room::<S>();
        let panel_bytes = d.div_ceil(P::STEP) * step_bytes::<S>();
        let heads = call.group * call.kv_heads;
        let mut r = 0;
        while r < rows {
            let source = |i: usize| {
                let (t, g) = ((r + i) / call.group, (r + i) % call.group);
                ((self.span.start + self.first + t) * heads + self.kv_head * call.group + g) * d
            };
            let shape = Panel { rows: MR.min(rows - r), of: MR, k: d };
            // SAFETY: these are heads of tokens of the batch, each of `d` elements, and the room has a panel for them.
            unsafe { P::pack(s, call.query_dtype, source, call.query, shape, room.query.add(r * panel_bytes)) };
            r += MR;
        }
        // SAFETY: the room was made for these rows.
        unsafe { reset(room.total, padded, room.width) };
        let begin = first_visible(self.position(0), call.window) / TILE;
        let end = self.position(self.tokens - 1) / TILE + 1;
        let mut tile = begin;
        while tile < end {
            let split_end = end.min((tile * TILE / SPLIT + 1) * (SPLIT / TILE));
            // SAFETY: as above.
            unsafe { reset(room.split, padded, room.width) };
            while tile < split_end {
                self.tile::<S, P, MR, NR>(s, &room, tile * TILE);
                tile += 1;
            }
            // SAFETY: as above.
            unsafe { merge(s, room.total, room.split, rows, room.width) };
        }
        for r in 0..rows {
            let (t, g) = (r / call.group, r % call.group);
            let head = (self.span.start + self.first + t) * heads + self.kv_head * call.group + g;
            // SAFETY: the total has row `r`, and `out` this head, which this task alone writes.
            unsafe {
                let row = room.total.out.add(r * room.width);
                divide(s, row, *room.total.sum.add(r), room.width);
                with_element!(call.out_dtype, E => {
                    convert::<S, F32, E>(s, row.cast(), call.out.add(head * d * E::SIZE), d);
                });
            }
        }
    }

    /// One tile of keys and values, from position `base` on.
    #[inline(always)]
    fn tile<S: Simd, P: Operands<S>, const MR: usize, const NR: usize>(&self, s: S, room: &Room, base: usize) {
        let call = self.call;
        let (rows, d) = (self.rows(), call.head_dim);
        let count = TILE.min(self.position(self.tokens - 1) + 1 - base);
        // Positions before the first visible one may be gone from the cache: they are neither read nor used.
        let skip = first_visible(self.position(0), call.window).saturating_sub(base);
        let source = |i: usize| {
            let position = base + i.max(skip);
            let page = call.page_table[self.span.pages + position / call.page_size] as usize;
            ((page * call.kv_heads + self.kv_head) * call.page_size + position % call.page_size) * d
        };
        let panel_bytes = d.div_ceil(P::STEP) * step_bytes::<S>();
        let mut n = 0;
        while n < count {
            let shape = Panel { rows: NR.min(count - n), of: NR, k: d };
            // SAFETY: the positions are of the span and visible, so their page is in the table, and lies inside the
            // cache; the room has panels for a tile.
            unsafe {
                P::pack(s, call.cache_dtype, |i| source(n + i), call.keys, shape, room.keys.add(n * panel_bytes));
            }
            n += NR;
        }
        for i in 0..count {
            with_element!(call.cache_dtype, E => {
                // SAFETY: as above; the room has `TILE` rows of values, whose ends beyond `d` stay as they are and
                // reach no output.
                unsafe {
                    let from = call.values.add(source(i) * E::SIZE);
                    convert::<S, E, F32>(s, from, room.values.add(i * room.width).cast(), d);
                }
            });
        }
        let steps = d.div_ceil(P::STEP);
        let mut r = 0;
        while r < rows {
            let mut n = 0;
            while n < count {
                // SAFETY: both panels were packed, `steps` deep; the scores have `MR` rows from `r` and `NR` columns
                // from `n`, since both are multiples of the tile.
                unsafe {
                    let a = room.query.add(r * panel_bytes);
                    let sums = packed::<S, P, MR, NR>(s, a, room.keys.add(n * panel_bytes), steps);
                    store_tile(s, &sums, room.scores.add(r * TILE + n));
                }
                n += NR;
            }
            r += MR;
        }
        for r in 0..rows {
            let position = self.position(r / call.group);
            let from = first_visible(position, call.window).saturating_sub(base).min(TILE);
            let to = (position + 1).saturating_sub(base).min(TILE);
            // SAFETY: the room has this row.
            unsafe { softmax(s, room, r, from, to, call.scale) };
        }
        let mut r = 0;
        while r < rows {
            let mut column = 0;
            while column < room.width {
                // SAFETY: the room has `MR` rows from `r`, and the columns up to its width.
                unsafe {
                    column += S::LANES
                        * match (room.width - column) / S::LANES {
                            1 => add_values::<S, MR, 1>(s, room, r, column, count),
                            2 => add_values::<S, MR, 2>(s, room, r, column, count),
                            _ => add_values::<S, MR, 3>(s, room, r, column, count),
                        };
                }
            }
            r += MR;
        }
    }
}

/// # Safety
/// The state has `rows` rows of `width`.
unsafe fn reset(state: State, rows: usize, width: usize) {
    // SAFETY: as the caller promises; zero bits are the number 0.
    unsafe {
        state.out.write_bytes(0, rows * width);
        state.sum.write_bytes(0, rows);
        std::slice::from_raw_parts_mut(state.max, rows).fill(LOWEST);
    }
}

/// Writes a tile of sums to rows of scores.
///
/// # Safety
/// `MR` rows of `NR` elements, `TILE` apart, are writable at `to`.
#[inline(always)]
unsafe fn store_tile<S: Simd, const MR: usize, const NR: usize>(s: S, sums: &[[S::V; NR]; MR], to: *mut f32) {
    let mut i = 0;
    while i < MR * NR {
        let [a, b, c, d] = [i, i + 1, i + 2, i + 3];
        let four = s.sum4([sums[a / NR][a % NR], sums[b / NR][b % NR], sums[c / NR][c % NR], sums[d / NR][d % NR]]);
        for (j, sum) in four.into_iter().enumerate() {
            // SAFETY: the element lies in the tile.
            unsafe { *to.add((i + j) / NR * TILE + (i + j) % NR) = sum };
        }
        i += 4;
    }
}

/// Turns row `r` of the scores into weights; only columns `from..to` are seen. Brings the running maximum and sum up to
/// date and notes the decay.
///
/// # Safety
/// The room has row `r`; `from` and `to` are at most `TILE`.
#[inline(always)]
unsafe fn softmax<S: Simd>(s: S, room: &Room, r: usize, from: usize, to: usize, scale: f32) {
    // SAFETY: the room has these, and nothing else refers to them now.
    let (scores, max, sum, decay) = unsafe {
        let scores = std::slice::from_raw_parts_mut(room.scores.add(r * TILE), TILE);
        (scores, &mut *room.split.max.add(r), &mut *room.split.sum.add(r), &mut *room.decay.add(r))
    };
    scores[..from].fill(f32::NEG_INFINITY);
    scores[to.max(from)..].fill(f32::NEG_INFINITY);
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
            s.store(p.add(i), weight);
            total = s.add(total, weight);
        }
        i += S::LANES;
    }
    *decay = exp_one(s, before - *max);
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

/// `out = out · decay + weights · values` for `MR` rows from `r` and `NV` vectors from `column`; returns `NV`.
///
/// # Safety
/// The room has those rows and columns, and `count` values.
#[inline(always)]
unsafe fn add_values<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    room: &Room,
    r: usize,
    column: usize,
    count: usize,
) -> usize {
    let width = room.width;
    // SAFETY: all that is touched lies in the rows and columns that the caller vouches for.
    unsafe {
        let out = room.split.out.add(r * width + column);
        let mut sums = [[s.zero(); NV]; MR];
        for (i, row) in sums.iter_mut().enumerate() {
            let decay = s.splat(*room.decay.add(r + i));
            for (j, sum) in row.iter_mut().enumerate() {
                *sum = s.mul(s.load(out.add(i * width + j * S::LANES)), decay);
            }
        }
        let mut value = room.values.add(column);
        let mut weight = room.scores.add(r * TILE);
        for _ in 0..count {
            let mut values = [s.zero(); NV];
            for (j, v) in values.iter_mut().enumerate() {
                *v = s.load(value.add(j * S::LANES));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let w = s.splat(*weight.add(i * TILE));
                for (sum, &v) in row.iter_mut().zip(&values) {
                    *sum = s.fma(w, v, *sum);
                }
            }
            value = value.add(width);
            weight = weight.add(1);
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                s.store(out.add(i * width + j * S::LANES), sum);
            }
        }
    }
    NV
}

/// Adds a split's state to the total.
///
/// # Safety
/// Both have `rows` rows of `width`, a multiple of the lanes.
#[inline(always)]
unsafe fn merge<S: Simd>(s: S, total: State, split: State, rows: usize, width: usize) {
    for r in 0..rows {
        // SAFETY: `r < rows`, and every vector lies in a row.
        unsafe {
            let (old, new) = (*total.max.add(r), *split.max.add(r));
            let max = if new > old { new } else { old };
            let (keep, take) = (exp_one(s, old - max), exp_one(s, new - max));
            *total.max.add(r) = max;
            *total.sum.add(r) = *total.sum.add(r) * keep + *split.sum.add(r) * take;
            let (keep, take) = (s.splat(keep), s.splat(take));
            let mut i = 0;
            while i < width {
                let (to, from) = (total.out.add(r * width + i), split.out.add(r * width + i));
                s.store(to, s.fma(s.load(from), take, s.mul(s.load(to), keep)));
                i += S::LANES;
            }
        }
    }
}

/// # Safety
/// `n` elements, a multiple of the lanes, are at `row`.
#[inline(always)]
unsafe fn divide<S: Simd>(s: S, row: *mut f32, by: f32, n: usize) {
    let mut i = 0;
    while i < n {
        // SAFETY: `i + LANES ≤ n`.
        unsafe { s.store(row.add(i), s.div(s.load(row.add(i)), s.splat(by))) };
        i += S::LANES;
    }
}
