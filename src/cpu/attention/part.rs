//! What one task does: queries against the keys and values of its splits, found page by page.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::online::{Bend, Room, State, add_values, bend, softmax};
use super::scores::{Operands, Panel, store_tile};
use super::sight::Sights;
use super::{SPLIT, TILE};
use crate::cpu::buffer::convert;
use crate::cpu::simd::{
    Element, F32, Kernel, PairKernel, Paired, Pairs, Simd, Single, with_cache_element, with_element,
};
use crate::cpu::tile::{packed, step_bytes};
use crate::dtype::DType;
use crate::ops::Span;

/// Up to this many rows keys and values are used as they lie in the cache: beyond, converting them once costs less than
/// converting them for every few rows.
const FEW_ROWS: usize = 8;

/// Keys or values of one layer.
pub(super) struct Plane {
    pub data: *const u8,
    /// What an entry's codes are multiplied by; null where they are the numbers themselves.
    pub scales: *const f32,
}

/// Keys or values of a tile.
struct Rows {
    base: *const u8,
    dtype: DType,
    /// In elements from `base` on.
    places: [usize; TILE],
}

/// `query` and `out` have a row of heads for each token of the batch; `keys` and `values` are one layer's; every page that
/// a span's positions need lies inside them.
pub(super) struct Call<'a> {
    pub query: *const u8,
    pub query_dtype: DType,
    pub keys: Plane,
    pub values: Plane,
    pub cache_dtype: DType,
    pub out: *mut u8,
    pub out_dtype: DType,
    pub page_table: &'a [u32],
    pub page_size: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub head_dim: usize,
    pub sights: Sights<'a>,
    pub scale: f32,
    pub soft_cap: Option<f32>,
    /// One for each head.
    pub slopes: Option<&'a [f32]>,
    pub sinks: Option<&'a [f32]>,
}

// SAFETY: tasks read the query and the cache, and each writes the heads of its own tokens in `out`.
unsafe impl Sync for Call<'_> {}

/// Tokens `first..first + tokens` of a span: with the query heads of one key head, the rows of a task.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    pub span: Span,
    pub first: usize,
    pub tokens: usize,
}

impl Tokens {
    /// The positions that they see.
    fn bounds(&self, sights: &Sights<'_>) -> Range<usize> {
        sights.bounds(&self.span, self.first..self.first + self.tokens)
    }

    /// The splits that they see.
    pub fn splits(&self, sights: &Sights<'_>) -> Range<usize> {
        let seen = self.bounds(sights);
        seen.start / SPLIT..seen.end.div_ceil(SPLIT)
    }
}

/// One task. `room` has the places of [`Room`].
pub(super) struct Part<'a> {
    pub call: &'a Call<'a>,
    pub tokens: Tokens,
    pub kv_head: usize,
    pub share: Share<'a>,
    pub room: *mut f32,
}

/// Which splits are a task's.
pub(super) enum Share<'a> {
    All,
    /// Split `own`; each has its state, one after another from `states` on, and the task that brings `left` to zero
    /// merges them all.
    One {
        own: usize,
        states: *mut f32,
        left: &'a AtomicUsize,
    },
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
        if S::MANY_REGISTERS { self.all::<S, P, 6, 4>(s) } else { self.all::<S, P, 4, 3>(s) }
    }

    fn rows(&self) -> usize {
        self.tokens.tokens * self.call.group
    }

    /// Whether keys and values are used where they lie. Both ways give the same bits.
    fn is_direct<S: Simd>(&self) -> bool {
        self.rows() <= FEW_ROWS && self.call.head_dim.is_multiple_of(S::LANES)
    }

    /// The head of row `r`.
    fn head_of(&self, r: usize) -> usize {
        self.kv_head * self.call.group + r % self.call.group
    }

    /// The same, counted over all heads of the batch.
    fn head(&self, r: usize) -> usize {
        let Call { group, kv_heads, .. } = *self.call;
        let token = self.tokens.span.start + self.tokens.first + r / group;
        token * kv_heads * group + self.head_of(r)
    }

    #[inline(always)]
    fn all<S: Simd, P: Operands<S>, const MR: usize, const NR: usize>(&self, s: S) {
        let call = self.call;
        let (rows, d) = (self.rows(), call.head_dim);
        let room = Room::new::<S>(self.room, rows, d).0;
        self.pack_queries::<S, P>(s, &room, if self.is_direct::<S>() { 1 } else { MR });
        let splits = self.tokens.splits(&call.sights);
        // SAFETY: the room was made for these rows, and so were the states; those of other tasks are read after `left`
        // has said that they are done.
        unsafe {
            match self.share {
                Share::All => {
                    room.total.reset();
                    for split in splits {
                        self.split::<S, P, MR, NR>(s, &room, room.split, split);
                        room.total.merge(s, room.split, rows);
                    }
                }
                Share::One { own, states, left } => {
                    let places = State::new::<S>(states, rows, d).1;
                    let state = |split: usize| State::new::<S>(states.add((split - splits.start) * places), rows, d).0;
                    self.split::<S, P, MR, NR>(s, &room, state(own), own);
                    if left.fetch_sub(1, Ordering::AcqRel) > 1 {
                        return;
                    }
                    room.total.reset();
                    for split in splits.clone() {
                        room.total.merge(s, state(split), rows);
                    }
                }
            }
        }
        for r in 0..rows {
            let sink = call.sinks.map(|sinks| sinks[self.head_of(r)]);
            // SAFETY: the total has row `r`, and `out` its head, which this task alone writes.
            unsafe {
                let row = room.total.finish(s, r, sink);
                with_element!(call.out_dtype, E => {
                    convert::<S, F32, E>(s, row.cast(), call.out.add(self.head(r) * d * E::SIZE), d);
                });
            }
        }
    }

    #[inline(always)]
    fn pack_queries<S: Simd, P: Operands<S>>(&self, s: S, room: &Room, panel: usize) {
        let (rows, k) = (self.rows(), self.call.head_dim);
        let row_bytes = k.div_ceil(P::STEP) * step_bytes::<S>();
        let mut r = 0;
        while r < rows {
            let source = |i: usize| self.head(r + i) * k;
            let shape = Panel { rows: panel.min(rows - r), of: panel, k };
            let to = room.query.wrapping_add(r * row_bytes);
            // SAFETY: these are heads of tokens of the batch, each of `k` elements, and the room has a panel for them.
            unsafe { P::pack(s, self.call.query_dtype, source, self.call.query, shape, to) };
            r += panel;
        }
    }

    /// What the rows see of a split, to `state`.
    ///
    /// # Safety
    /// Room and state were made for these rows.
    #[inline(always)]
    unsafe fn split<S: Simd, P: Operands<S>, const MR: usize, const NR: usize>(
        &self,
        s: S,
        room: &Room,
        state: State,
        split: usize,
    ) {
        let seen = self.tokens.bounds(&self.call.sights);
        let begin = seen.start.max(split * SPLIT) / TILE;
        let end = seen.end.min((split + 1) * SPLIT).div_ceil(TILE);
        // SAFETY: as the caller promises.
        unsafe { state.reset() };
        for tile in begin..end {
            self.tile::<S, P, MR, NR>(s, room, state, tile * TILE, &seen);
        }
    }

    /// One tile of keys and values, from position `base` on. The rows see something of `seen`, and nothing else.
    #[inline(always)]
    fn tile<S: Simd, P: Operands<S>, const MR: usize, const NR: usize>(
        &self,
        s: S,
        room: &Room,
        state: State,
        base: usize,
        seen: &Range<usize>,
    ) {
        let call = self.call;
        let count = TILE.min(seen.end - base);
        // Positions before the first visible one may be gone from the cache: they are neither read nor used.
        let skip = seen.start.saturating_sub(base);
        let places = self.places(base, skip, count);
        let is_direct = self.is_direct::<S>();
        // Codes of eight bits are numbers first, keys and then values in the one place.
        let is_coded = call.cache_dtype.size() == 1;
        let keys = self.rows_of(s, room, &call.keys, is_coded, &places, skip..count);
        if is_direct {
            self.direct_scores::<S, P>(s, room, &keys, count);
        } else {
            self.packed_scores::<S, P, MR, NR>(s, room, &keys, count);
        }
        for r in 0..self.rows() {
            // SAFETY: room and state have this row.
            unsafe {
                let (seen, scale) = self.score(s, room, r, base);
                softmax(s, room, state, r, seen, scale);
            }
        }
        let values = self.rows_of(s, room, &call.values, is_coded || !is_direct, &places, skip..count);
        if is_direct {
            with_element!(values.dtype, E => self.direct_values::<S, E>(s, room, state, &values, count));
        } else {
            self.packed_values::<S, MR>(s, room, state, &values, count);
        }
    }

    /// Keys or values of a tile: where they lie, or as f32 in the room of the values, of which only those `seen` are made;
    /// the others have the place of a neighbour.
    #[inline(always)]
    fn rows_of<S: Simd>(
        &self,
        s: S,
        room: &Room,
        plane: &Plane,
        is_wide: bool,
        places: &[usize; TILE],
        seen: Range<usize>,
    ) -> Rows {
        if !is_wide {
            return Rows { base: plane.data, dtype: self.call.cache_dtype, places: *places };
        }
        let d = self.call.head_dim;
        let width = d.next_multiple_of(S::LANES);
        let (first, last) = (seen.start, seen.end - 1);
        for i in seen {
            let (place, to) = (places[i], room.values.wrapping_add(i * width));
            with_cache_element!(self.call.cache_dtype, E => {
                // SAFETY: the places are the cache's; the room has `TILE` rows of values, whose ends beyond `d` stay as
                // they are and reach no output.
                unsafe { convert::<S, E, F32>(s, plane.data.add(place * E::SIZE), to.cast(), d) };
            });
            if !plane.scales.is_null() {
                // SAFETY: the place is that of an entry, which has a scale; the row was just written.
                unsafe {
                    let scale = *plane.scales.add(place / d);
                    std::slice::from_raw_parts_mut(to, d).iter_mut().for_each(|x| *x *= scale);
                }
            }
        }
        let places = std::array::from_fn(|i| i.clamp(first, last) * width);
        Rows { base: room.values.cast_const().cast(), dtype: DType::F32, places }
    }

    /// Brings products of row `r` and the keys from `base` on to scores, but for a factor. That is returned, with the
    /// columns that the row sees; of those, what of a tree is not its branch is minus infinity.
    ///
    /// # Safety
    /// The room has row `r`.
    #[inline(always)]
    unsafe fn score<S: Simd>(&self, s: S, room: &Room, r: usize, base: usize) -> (Range<usize>, f32) {
        let (call, span, token) = (self.call, &self.tokens.span, self.tokens.first + r / self.call.group);
        let (sight, first) = (call.sights.of(span, token), span.kv_len - span.len);
        let inside = |position: usize| position.saturating_sub(base).min(TILE);
        let seen = inside(sight.seen.start)..inside(sight.seen.end);
        let slope = call.slopes.map(|slopes| slopes[self.head_of(r)]);
        let mut scale = call.scale;
        if call.soft_cap.is_some() || slope.is_some() {
            let ahead = base as f32 - (first + token) as f32;
            // SAFETY: the caller's promise.
            unsafe { bend(s, room, r, Bend { scale, soft_cap: call.soft_cap, slope: slope.unwrap_or(0.0), ahead }) };
            scale = 1.0;
        }
        if sight.nodes != 0 {
            // SAFETY: the caller's promise; nothing else refers to the scores now.
            let scores = unsafe { std::slice::from_raw_parts_mut(room.scores.add(r * TILE), TILE) };
            let nodes = inside(first).max(seen.start);
            for (at, score) in scores.iter_mut().enumerate().take(seen.end).skip(nodes) {
                if sight.nodes >> (base + at - first) & 1 == 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        (seen, scale)
    }

    /// Where positions `base..base + count` begin in the cache, in elements. Those before `skip`, which nobody sees, and
    /// those that a tile has beyond are given the place of their neighbour that is seen.
    #[inline(always)]
    fn places(&self, base: usize, skip: usize, count: usize) -> [usize; TILE] {
        let Call { page_table, page_size, kv_heads, head_dim, .. } = *self.call;
        let mut places = [0; TILE];
        let mut i = skip;
        while i < count {
            let (page, slot) = ((base + i) / page_size, (base + i) % page_size);
            let page = page_table[self.tokens.span.pages + page] as usize;
            let first = ((page * kv_heads + self.kv_head) * page_size + slot) * head_dim;
            let run = (page_size - slot).min(count - i);
            for (j, place) in places[i..i + run].iter_mut().enumerate() {
                *place = first + j * head_dim;
            }
            i += run;
        }
        let (first, last) = (places[skip], places[count - 1]);
        places[..skip].fill(first);
        places[count..].fill(last);
        places
    }

    #[inline(always)]
    fn packed_scores<S: Simd, P: Operands<S>, const MR: usize, const NR: usize>(
        &self,
        s: S,
        room: &Room,
        keys: &Rows,
        count: usize,
    ) {
        let d = self.call.head_dim;
        let steps = d.div_ceil(P::STEP);
        let row_bytes = steps * step_bytes::<S>();
        let mut n = 0;
        while n < count {
            let shape = Panel { rows: NR.min(count - n), of: NR, k: d };
            let to = room.keys.wrapping_add(n * row_bytes);
            // SAFETY: the places are keys', and the room has panels for a tile.
            unsafe { P::pack(s, keys.dtype, |i| keys.places[n + i], keys.base, shape, to) };
            n += NR;
        }
        let mut r = 0;
        while r < self.rows() {
            let mut n = 0;
            while n < count {
                // SAFETY: both panels were packed, `steps` deep; the scores have `MR` rows from `r` and `NR` columns
                // from `n`, since both are multiples of the tile.
                unsafe {
                    let (a, b) = (room.query.add(r * row_bytes), room.keys.add(n * row_bytes));
                    store_tile(s, &packed::<S, P, MR, NR>(s, a, b, steps), room.scores.add(r * TILE + n));
                }
                n += NR;
            }
            r += MR;
        }
    }

    #[inline(always)]
    fn direct_scores<S: Simd, P: Operands<S>>(&self, s: S, room: &Room, keys: &Rows, count: usize) {
        let rows = self.rows();
        let mut r = 0;
        while r < rows {
            r += match rows - r {
                1 => self.score_rows::<S, P, 1, 4>(s, room, r, keys, count),
                2 | 3 => self.score_rows::<S, P, 2, 4>(s, room, r, keys, count),
                _ => self.score_rows::<S, P, 4, 2>(s, room, r, keys, count),
            };
        }
    }

    /// Scores of `MR` rows from `r`; returns `MR`.
    #[inline(always)]
    fn score_rows<S: Simd, P: Operands<S>, const MR: usize, const NR: usize>(
        &self,
        s: S,
        room: &Room,
        r: usize,
        rows: &Rows,
        count: usize,
    ) -> usize {
        let d = self.call.head_dim;
        let row_bytes = d.div_ceil(P::STEP) * step_bytes::<S>();
        for (n, places) in rows.places.chunks_exact(NR).enumerate().take(count.div_ceil(NR)) {
            let mut keys = [rows.base; NR];
            for (key, place) in keys.iter_mut().zip(places) {
                *key = key.wrapping_add(place * rows.dtype.size());
            }
            // SAFETY: the queries were packed one by one; the places are keys'; the scores have these rows and, as
            // `NR` divides a tile, these columns.
            unsafe {
                let x = room.query.add(r * row_bytes);
                let sums = P::direct::<MR, NR>(s, rows.dtype, x, row_bytes, keys, d);
                store_tile(s, &sums, room.scores.add(r * TILE + n * NR));
            }
        }
        MR
    }

    #[inline(always)]
    fn packed_values<S: Simd, const MR: usize>(&self, s: S, room: &Room, state: State, values: &Rows, count: usize) {
        let mut r = 0;
        while r < self.rows() {
            let value = |i: usize| values.base.wrapping_add(values.places[i] * F32::SIZE);
            // SAFETY: room and state have `MR` rows from `r`, and `count` values.
            unsafe { add_values::<S, F32, MR, 3, 2>(s, room, state, r, value, count) };
            r += MR;
        }
    }

    #[inline(always)]
    fn direct_values<S: Simd, E: Element>(&self, s: S, room: &Room, state: State, values: &Rows, count: usize) {
        let rows = self.rows();
        let value = |i: usize| values.base.wrapping_add(values.places[i] * E::SIZE);
        let mut r = 0;
        while r < rows {
            // SAFETY: room and state have these rows; the places are values', and heads have whole vectors.
            unsafe {
                r += match rows - r {
                    1 => {
                        add_values::<S, E, 1, 8, 4>(s, room, state, r, value, count);
                        1
                    }
                    2 | 3 => {
                        add_values::<S, E, 2, 4, 2>(s, room, state, r, value, count);
                        2
                    }
                    _ => {
                        add_values::<S, E, 4, 2, 2>(s, room, state, r, value, count);
                        4
                    }
                };
            }
        }
    }
}
