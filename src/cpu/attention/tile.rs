//! Register tiles of dot products of queries with keys, and the packing that feeds them.
//!
//! Rows are made of words of four bytes: an f32, or a pair of bf16 where pairs are multiplied. Every dot product is four
//! partial sums: sum `i` takes the words `i, i + 4, …` in order, and the four are added in one order. Four words are a
//! step. A vector holds the partial sums of one query, a row of `x`, with one, two or four keys (columns of the
//! result): a step of the one, repeated, times a step of each of the others. So packing only moves whole steps, and no
//! tile's shape changes a bit of the result.

use crate::cpu::simd::{Product, Simd, Weight, prefetch_l2};

/// Bytes of a step of one row.
pub(super) const STEP_BYTES: usize = 16;
/// Columns that are packed together.
pub(super) const PACKED_COLUMNS: usize = 16;
/// Bytes of a step of packed columns.
pub(super) const PACKED_STEP: usize = PACKED_COLUMNS * STEP_BYTES;
/// Rows of `x` in the largest tile: with four vectors of columns, or two where registers are few, its sums and operands
/// fill the registers.
pub(super) const TILE_ROWS: usize = 6;
/// Results of the largest tile.
pub(super) const TILE_SUMS: usize = TILE_ROWS * PACKED_COLUMNS;

/// How far ahead of what is multiplied keys are fetched, in bytes.
const DISTANCE: usize = 2048;

/// Rows after rounding up to what tiles of 2, 4 and 6 rows cover; a lone row has a tile of its own.
pub(super) const fn padded_rows(rows: usize) -> usize {
    if rows == 1 { 1 } else { rows.next_multiple_of(2) }
}

/// Rows of the next tile, at most `most`, where so many are left.
pub(super) const fn tile_rows(left: usize, most: usize) -> usize {
    match left {
        0..4 => left,
        4 | 5 => 4,
        _ => most,
    }
}

/// Rows of the largest tile of [`direct`]: reordering what was loaded takes registers too.
pub(super) const fn direct_tile_rows<S: Simd>() -> usize {
    if S::MANY_REGISTERS { TILE_ROWS } else { 4 }
}

/// Steps of `k` elements, in whole vectors.
pub(super) const fn steps<S: Simd, P: Product<S>>(k: usize) -> usize {
    k.div_ceil(P::STEP) * (S::LANES / 4)
}

/// Words of one row of `k` elements, zeros behind them up to a whole vector.
///
/// # Safety
/// `k` elements are readable at `from`, and their steps writable at `to`.
#[inline(always)]
pub(super) unsafe fn prepare_row<S: Simd, P: Product<S>, W: Weight<S, P>>(
    s: S,
    from: *const u8,
    k: usize,
    to: *mut u8,
) {
    let mut i = 0;
    while i < k {
        // SAFETY: a vector, or what is left, begins at element `i`.
        unsafe {
            let from = from.add(i * W::SIZE);
            let words = if k - i < P::STEP { W::load_last(s, from, k - i) } else { W::load_step(s, from) };
            s.store(to.add(i / P::STEP * S::LANES * 4).cast(), words);
        }
        i += P::STEP;
    }
}

/// Packs sixteen columns as `[step][column]`; `column` says where each begins.
///
/// # Safety
/// Each column has `k` readable elements; their steps are writable at `to`.
#[inline(always)]
pub(super) unsafe fn pack<S: Simd, P: Product<S>, W: Weight<S, P>>(
    s: S,
    column: impl Fn(usize) -> *const u8,
    k: usize,
    to: *mut u8,
) {
    for group in 0..PACKED_COLUMNS / 4 {
        let rows = [column(4 * group), column(4 * group + 1), column(4 * group + 2), column(4 * group + 3)];
        let mut to = to.wrapping_add(group * 4 * STEP_BYTES);
        let mut i = 0;
        while i < k {
            // SAFETY: the rows have a vector, or what is left, from element `i` on, and the columns its steps.
            unsafe {
                for (j, words) in s.regroup(load_four::<S, P, W>(s, rows, i, k - i)).into_iter().enumerate() {
                    let byte = j * S::LANES * 4;
                    s.store(to.add(byte / (4 * STEP_BYTES) * PACKED_STEP + byte % (4 * STEP_BYTES)).cast(), words);
                }
            }
            to = to.wrapping_add(S::LANES / 4 * PACKED_STEP);
            i += P::STEP;
        }
    }
}

/// A vector of each of four rows from element `i` on, where `left` are left.
///
/// # Safety
/// Those elements are readable.
#[inline(always)]
unsafe fn load_four<S: Simd, P: Product<S>, W: Weight<S, P>>(
    s: S,
    rows: [*const u8; 4],
    i: usize,
    left: usize,
) -> [S::V; 4] {
    let mut words = [s.zero(); 4];
    for (words, row) in words.iter_mut().zip(rows) {
        // SAFETY: as the caller promises.
        unsafe {
            let from = row.add(i * W::SIZE);
            *words = if left < P::STEP { W::load_last(s, from, left) } else { W::load_step(s, from) };
        }
    }
    words
}

/// `MR` prepared rows against `NV` vectors of packed columns.
///
/// # Safety
/// `x` is `MR` rows, `x_stride` bytes apart, and `columns` the first of the packed ones, both of `steps` steps.
#[inline(always)]
pub(super) unsafe fn packed<S: Simd, P: Product<S>, const MR: usize, const NV: usize>(
    s: S,
    x: *const u8,
    x_stride: usize,
    columns: *const u8,
    steps: usize,
) -> [[S::V; NV]; MR] {
    let mut sums = [[s.zero(); NV]; MR];
    let (mut x, mut columns) = (x, columns);
    for _ in 0..steps {
        // SAFETY: both have a step or more left.
        unsafe {
            packed_step::<S, P, MR, NV>(s, x, x_stride, columns, &mut sums);
            (x, columns) = (x.add(STEP_BYTES), columns.add(PACKED_STEP));
        }
    }
    sums
}

/// # Safety
/// A step of `MR` rows and of the columns is there.
#[inline(always)]
unsafe fn packed_step<S: Simd, P: Product<S>, const MR: usize, const NV: usize>(
    s: S,
    x: *const u8,
    x_stride: usize,
    columns: *const u8,
    sums: &mut [[S::V; NV]; MR],
) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut words = [s.zero(); NV];
        for (v, words) in words.iter_mut().enumerate() {
            *words = s.load(columns.add(v * S::LANES * 4).cast());
        }
        for (r, row) in sums.iter_mut().enumerate() {
            let x = s.broadcast4(x.add(r * x_stride).cast());
            for (sum, &words) in row.iter_mut().zip(&words) {
                *sum = P::accumulate(s, *sum, x, words);
            }
        }
    }
}

/// `MR` prepared rows against four rows of a weight as it is stored. `NV` vectors hold a step of four rows.
///
/// # Safety
/// `x` is `MR` rows, `x_stride` bytes apart, of the steps of `k` elements; each of `w` has `k` elements.
#[inline(always)]
pub(super) unsafe fn direct<S: Simd, P: Product<S>, W: Weight<S, P>, const MR: usize, const NV: usize>(
    s: S,
    x: *const u8,
    x_stride: usize,
    w: [*const u8; 4],
    k: usize,
) -> [[S::V; NV]; MR] {
    let mut sums = [[s.zero(); NV]; MR];
    let mut x = x;
    let mut i = 0;
    while i < k {
        for row in w {
            prefetch_l2(row.wrapping_add(i * W::SIZE + DISTANCE));
        }
        // SAFETY: the rows have a vector, or what is left, from element `i` on, and the prepared rows its steps.
        unsafe {
            let words = s.regroup(load_four::<S, P, W>(s, w, i, k - i));
            for words in words.chunks_exact(NV) {
                for (r, row) in sums.iter_mut().enumerate() {
                    let x = s.broadcast4(x.add(r * x_stride).cast());
                    for (sum, &words) in row.iter_mut().zip(words) {
                        *sum = P::accumulate(s, *sum, x, words);
                    }
                }
                x = x.add(STEP_BYTES);
            }
        }
        i += P::STEP;
    }
    sums
}

/// The results of a tile, `[MR][columns]` and after them what is left over of whole vectors.
#[inline(always)]
pub(super) fn finish<S: Simd, const MR: usize, const NV: usize>(s: S, sums: &[[S::V; NV]; MR]) -> [f32; TILE_SUMS] {
    let mut results = [0.0; TILE_SUMS];
    let sums = sums.as_flattened();
    let last = sums.len() - 1;
    let mut i = 0;
    while i < sums.len() {
        let four = [sums[i], sums[last.min(i + 1)], sums[last.min(i + 2)], sums[last.min(i + 3)]];
        // SAFETY: at most `TILE_ROWS` times four vectors of at most four columns each are stored, in whole fours.
        unsafe { s.store_sums(results.as_mut_ptr().add(i * S::LANES / 4), four) };
        i += 4;
    }
    results
}
