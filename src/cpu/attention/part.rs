//! What one task does: queries against the keys and values of its splits, found page by page.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::online::{Bend, Room, State, Values, add_values, bend, softmax};
use super::scores::{Operands, store_tile};
use super::sight::Sights;
use super::tile::{
    PACKED_COLUMNS, PACKED_STEP, STEP_BYTES, TILE_ROWS, direct_tile_rows, finish, packed, padded_rows, steps, tile_rows,
};
use super::{SPLIT, TILE};
use crate::cpu::buffer::convert;
use crate::cpu::simd::{Element, F32, Kernel, PairKernel, Paired, Pairs, Simd, Single, prefetch_l2, with_element};
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
        match S::LANES {
            4 => self.all::<S, P, 4, 4>(s),
            8 => self.all::<S, P, 2, 2>(s),
            _ => self.all::<S, P, 4, 1>(s),
        }
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

    /// Scores are made in tiles of `NV` vectors of packed keys, or of the `FEW` vectors that hold four keys.
    #[inline(always)]
    fn all<S: Simd, P: Operands<S>, const NV: usize, const FEW: usize>(&self, s: S) {
        let call = self.call;
        let (rows, d) = (self.rows(), call.head_dim);
        let room = Room::new::<S>(self.room, rows, d).0;
        self.prepare_queries::<S, P>(s, &room);
        let splits = self.tokens.splits(&call.sights);
        // SAFETY: the room was made for these rows, and so were the states; those of other tasks are read after `left`
        // has said that they are done.
        unsafe {
            match self.share {
                Share::All => {
                    room.total.reset();
                    for split in splits {
                        self.split::<S, P, NV, FEW>(s, &room, room.split, split);
                        room.total.merge(s, room.split, rows);
                    }
                }
                Share::One { own, states, left } => {
                    let places = State::new::<S>(states, rows, d).1;
                    let state = |split: usize| State::new::<S>(states.add((split - splits.start) * places), rows, d).0;
                    self.split::<S, P, NV, FEW>(s, &room, state(own), own);
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
    fn prepare_queries<S: Simd, P: Operands<S>>(&self, s: S, room: &Room) {
        let (d, row_bytes) = (self.call.head_dim, self.row_bytes::<S, P>());
        for r in 0..self.rows() {
            // SAFETY: the head of a token of the batch, of `d` elements; the room has a place for each row.
            unsafe {
                let from = self.call.query.add(self.head(r) * d * self.call.query_dtype.size());
                P::prepare(s, self.call.query_dtype, from, d, room.query.add(r * row_bytes));
            }
        }
    }

    /// Bytes of a prepared query.
    #[inline(always)]
    fn row_bytes<S: Simd, P: Operands<S>>(&self) -> usize {
        steps::<S, P>(self.call.head_dim) * STEP_BYTES
    }

    /// What the rows see of a split, to `state`.
    ///
    /// # Safety
    /// Room and state were made for these rows.
    #[inline(always)]
    unsafe fn split<S: Simd, P: Operands<S>, const NV: usize, const FEW: usize>(
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
            if tile + 1 < end {
                self.fetch((tile + 1) * TILE..seen.end.min((tile + 2) * TILE));
            }
            self.tile::<S, P, NV, FEW>(s, room, state, tile * TILE, &seen);
        }
    }

    /// One tile of keys and values, from position `base` on. The rows see something of `seen`, and nothing else.
    #[inline(always)]
    fn tile<S: Simd, P: Operands<S>, const NV: usize, const FEW: usize>(
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
        let keys = self.rows_of::<S, Single>(s, room, &call.keys, is_coded, &places, skip..count);
        if is_direct {
            self.direct_scores::<S, P, FEW>(s, room, &keys, count);
        } else {
            self.packed_scores::<S, P, NV>(s, room, &keys, count);
        }
        for r in 0..self.rows() {
            // SAFETY: room and state have this row.
            unsafe {
                let (seen, scale) = self.score(s, room, r, base);
                softmax::<S, P>(s, room, state, r, seen, scale);
            }
        }
        let values = self.rows_of::<S, P>(s, room, &call.values, is_coded || !is_direct, &places, skip..count);
        if is_direct {
            let words = count.div_ceil(P::POSITIONS);
            with_element!(values.dtype, E => {
                self.direct_values::<S, P>(s, room, state, &Stored::<P, E>(&values, PhantomData), words);
            });
        } else {
            self.packed_values::<S, P>(s, room, state, &Prepared(&values), count.div_ceil(P::POSITIONS));
        }
    }

    /// Keys or values of a tile: where they lie, or their words in the room of the values, of which only those `seen` are
    /// made; the others have the place of a neighbour.
    #[inline(always)]
    fn rows_of<S: Simd, P: Operands<S>>(
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
        let (d, size) = (self.call.head_dim, self.call.cache_dtype.size());
        let width = d.next_multiple_of(S::LANES);
        let (first, last) = (seen.start / P::POSITIONS, (seen.end - 1) / P::POSITIONS);
        for n in first..=last {
            let [from, until] = [n * P::POSITIONS, n * P::POSITIONS + P::POSITIONS - 1].map(|i| places[i]);
            let to = room.values.wrapping_add(n * width);
            // SAFETY: the places are the cache's; the room has `TILE` rows of words, whose ends beyond `d` stay as they are
            // and reach no output. An entry with codes has a scale.
            unsafe {
                let (from, until) = (from * size, until * size);
                P::prepare_values(s, self.call.cache_dtype, plane.data.add(from), plane.data.add(until), d, to);
                if !plane.scales.is_null() {
                    let scale = *plane.scales.add(from / size / d);
                    std::slice::from_raw_parts_mut(to, d).iter_mut().for_each(|x| *x *= scale);
                }
            }
        }
        let places = std::array::from_fn(|n| n.clamp(first, last) * width);
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

    /// Fetches keys and values of positions while those before are worked on: pages lie apart, where no processor looks.
    #[inline(always)]
    fn fetch(&self, positions: Range<usize>) {
        const LINE: usize = 64;
        let Call { page_size, head_dim, cache_dtype, .. } = *self.call;
        let mut position = positions.start;
        while position < positions.end {
            let run = (page_size - position % page_size).min(positions.end - position);
            let first = self.place(position) * cache_dtype.size();
            for byte in (first..first + run * head_dim * cache_dtype.size()).step_by(LINE) {
                prefetch_l2(self.call.keys.data.wrapping_add(byte));
                prefetch_l2(self.call.values.data.wrapping_add(byte));
            }
            position += run;
        }
    }

    /// Where a position's entry begins in the cache, in elements.
    #[inline(always)]
    fn place(&self, position: usize) -> usize {
        let Call { page_table, page_size, kv_heads, head_dim, .. } = *self.call;
        let page = page_table[self.tokens.span.pages + position / page_size] as usize;
        ((page * kv_heads + self.kv_head) * page_size + position % page_size) * head_dim
    }

    /// Where positions `base..base + count` begin in the cache, in elements. Those before `skip`, which nobody sees, and
    /// those that a tile has beyond are given the place of their neighbour that is seen.
    #[inline(always)]
    fn places(&self, base: usize, skip: usize, count: usize) -> [usize; TILE] {
        let Call { page_size, head_dim, .. } = *self.call;
        let mut places = [0; TILE];
        let mut i = skip;
        while i < count {
            let first = self.place(base + i);
            let run = (page_size - (base + i) % page_size).min(count - i);
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
    fn packed_scores<S: Simd, P: Operands<S>, const NV: usize>(&self, s: S, room: &Room, keys: &Rows, count: usize) {
        let d = self.call.head_dim;
        let packed_bytes = steps::<S, P>(d) * PACKED_STEP;
        for (n, places) in keys.places.chunks_exact(PACKED_COLUMNS).enumerate().take(count.div_ceil(PACKED_COLUMNS)) {
            // SAFETY: the places are keys', and the room has a tile of packed keys.
            unsafe { P::pack(s, keys.dtype, keys.base, |i| places[i], d, room.keys.add(n * packed_bytes)) };
        }
        let mut r = 0;
        while r < self.rows() {
            r += match tile_rows(padded_rows(self.rows() - r), TILE_ROWS) {
                1 => self.packed_rows::<S, P, 1, NV>(s, room, r, count),
                2 => self.packed_rows::<S, P, 2, NV>(s, room, r, count),
                4 => self.packed_rows::<S, P, 4, NV>(s, room, r, count),
                _ => self.packed_rows::<S, P, TILE_ROWS, NV>(s, room, r, count),
            };
        }
    }

    /// Scores of `MR` rows from `r` with packed keys; returns `MR`.
    #[inline(always)]
    fn packed_rows<S: Simd, P: Operands<S>, const MR: usize, const NV: usize>(
        &self,
        s: S,
        room: &Room,
        r: usize,
        count: usize,
    ) -> usize {
        let (steps, row_bytes) = (steps::<S, P>(self.call.head_dim), self.row_bytes::<S, P>());
        let width = NV * S::LANES / 4;
        for n in (0..count).step_by(width) {
            // SAFETY: queries and keys were prepared, `steps` deep; the scores have these rows and, as the tile's width
            // divides `TILE`, these columns.
            unsafe {
                let x = room.query.add(r * row_bytes);
                let columns = n / PACKED_COLUMNS * PACKED_COLUMNS * row_bytes + n % PACKED_COLUMNS * STEP_BYTES;
                let keys = room.keys.add(columns);
                let sums = packed::<S, P, MR, NV>(s, x, row_bytes, keys, steps);
                store_tile(s, &sums, width, room.scores.add(r * TILE + n));
            }
        }
        MR
    }

    #[inline(always)]
    fn direct_scores<S: Simd, P: Operands<S>, const NV: usize>(&self, s: S, room: &Room, keys: &Rows, count: usize) {
        let mut r = 0;
        while r < self.rows() {
            r += match tile_rows(padded_rows(self.rows() - r), direct_tile_rows::<S>()) {
                1 => self.direct_rows::<S, P, 1, NV>(s, room, r, keys, count),
                2 => self.direct_rows::<S, P, 2, NV>(s, room, r, keys, count),
                TILE_ROWS if S::MANY_REGISTERS => self.direct_rows::<S, P, TILE_ROWS, NV>(s, room, r, keys, count),
                _ => self.direct_rows::<S, P, 4, NV>(s, room, r, keys, count),
            };
        }
    }

    /// Scores of `MR` rows from `r` with keys as they are stored; returns `MR`.
    #[inline(always)]
    fn direct_rows<S: Simd, P: Operands<S>, const MR: usize, const NV: usize>(
        &self,
        s: S,
        room: &Room,
        r: usize,
        rows: &Rows,
        count: usize,
    ) -> usize {
        let row_bytes = self.row_bytes::<S, P>();
        for (n, places) in rows.places.chunks_exact(16).enumerate().take(count.div_ceil(16)) {
            // Four keys at a time, and the sums of sixteen together.
            let mut sums = [[[s.zero(); NV]; 4]; MR];
            for (i, places) in places.chunks_exact(4).enumerate() {
                let mut keys = [rows.base; 4];
                for (key, place) in keys.iter_mut().zip(places) {
                    *key = key.wrapping_add(place * rows.dtype.size());
                }
                // SAFETY: the queries were prepared, and the places are keys'.
                let tile = unsafe {
                    let x = room.query.add(r * row_bytes);
                    P::direct::<MR, NV>(s, rows.dtype, x, row_bytes, keys, self.call.head_dim)
                };
                for (sums, tile) in sums.iter_mut().zip(tile) {
                    sums[i] = tile;
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                let results = finish(s, sums);
                // SAFETY: the scores have this row and these columns.
                unsafe {
                    let to = room.scores.add((r + i) * TILE + n * 16);
                    to.copy_from_nonoverlapping(results.as_ptr(), 16);
                }
            }
        }
        MR
    }

    #[inline(always)]
    fn packed_values<S: Simd, P: Operands<S>>(
        &self,
        s: S,
        room: &Room,
        state: State,
        values: &impl Values<S>,
        count: usize,
    ) {
        let mut r = 0;
        while r < self.rows() {
            // SAFETY: room and state have six rows from `r`, or four, and `count` words.
            unsafe {
                r += if S::MANY_REGISTERS {
                    add_values::<S, P, 6, 4, 2>(s, room, state, r, values, count);
                    6
                } else {
                    add_values::<S, P, 4, 3, 2>(s, room, state, r, values, count);
                    4
                }
            }
        }
    }

    #[inline(always)]
    fn direct_values<S: Simd, P: Operands<S>>(
        &self,
        s: S,
        room: &Room,
        state: State,
        values: &impl Values<S>,
        count: usize,
    ) {
        let rows = self.rows();
        let mut r = 0;
        while r < rows {
            // SAFETY: room and state have these rows; heads have whole vectors.
            unsafe {
                r += match rows - r {
                    1 => {
                        add_values::<S, P, 1, 8, 4>(s, room, state, r, values, count);
                        1
                    }
                    2 | 3 => {
                        add_values::<S, P, 2, 4, 2>(s, room, state, r, values, count);
                        2
                    }
                    _ => {
                        add_values::<S, P, 4, 4, 2>(s, room, state, r, values, count);
                        4
                    }
                };
            }
        }
    }
}

/// Values as they are stored: `E`, for products of kind `P`.
struct Stored<'a, P, E>(&'a Rows, PhantomData<(P, E)>);

impl<S: Simd, P: Operands<S>, E: Element> Values<S> for Stored<'_, P, E> {
    #[inline(always)]
    unsafe fn load(&self, s: S, n: usize, column: usize) -> S::V {
        let at = |i: usize| self.0.base.wrapping_add((self.0.places[i] + column) * E::SIZE);
        // SAFETY: the places are values', and have these columns.
        unsafe { P::load_values::<E>(s, at(n * P::POSITIONS), at(n * P::POSITIONS + P::POSITIONS - 1)) }
    }
}

/// Values that were prepared as words.
struct Prepared<'a>(&'a Rows);

impl<S: Simd> Values<S> for Prepared<'_> {
    #[inline(always)]
    unsafe fn load(&self, s: S, n: usize, column: usize) -> S::V {
        // SAFETY: the places are those of prepared rows, and have these columns.
        unsafe { s.load(self.0.base.add((self.0.places[n] + column) * F32::SIZE).cast()) }
    }
}
