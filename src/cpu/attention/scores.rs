//! The two products of attention, queries with keys and weights with values, for each dtype and kind of product.

use super::TILE;
use super::tile::{direct, finish, pack, prepare_row};
use crate::cpu::buffer::convert;
use crate::cpu::simd::{Bf16, Element, F32, Paired, Pairs, Product, Simd, Single, with_cache_element, with_element};
use crate::dtype::DType;

/// A [`Product`] whose operands are found by their dtype.
pub(super) trait Operands<S: Simd>: Product<S> {
    /// # Safety
    /// As [`prepare_row`], for a row of `dtype`.
    unsafe fn prepare(s: S, dtype: DType, from: *const u8, k: usize, to: *mut u8);

    /// # Safety
    /// As [`pack`], for columns of `dtype`; `column` says at which element from `base` on each begins.
    unsafe fn pack(s: S, dtype: DType, base: *const u8, column: impl Fn(usize) -> usize, k: usize, to: *mut u8);

    /// # Safety
    /// As [`direct`], for rows of `dtype`.
    unsafe fn direct<const MR: usize, const NV: usize>(
        s: S,
        dtype: DType,
        x: *const u8,
        x_stride: usize,
        w: [*const u8; 4],
        k: usize,
    ) -> [[S::V; NV]; MR];

    /// Positions whose weights are one word.
    const POSITIONS: usize;

    /// Stores a vector of weights, those from position `i` on, to a row of words.
    ///
    /// # Safety
    /// Their words are writable.
    unsafe fn store_weights(s: S, row: *mut f32, i: usize, weights: S::V);

    /// The words of a vector of values for the positions of a word: values of the first are at `first`, of the last at
    /// `last`.
    ///
    /// # Safety
    /// Both are readable for a vector of `E`.
    unsafe fn load_values<E: Element>(s: S, first: *const u8, last: *const u8) -> S::V;

    /// Those words for `d` elements of `dtype`, which may be one that only caches have.
    ///
    /// # Safety
    /// Both are readable for `d` elements, and their words are writable.
    unsafe fn prepare_values(s: S, dtype: DType, first: *const u8, last: *const u8, d: usize, to: *mut f32);
}

impl<S: Simd> Operands<S> for Single {
    #[inline(always)]
    unsafe fn prepare(s: S, dtype: DType, from: *const u8, k: usize, to: *mut u8) {
        // SAFETY: the caller's promise is this one's.
        with_element!(dtype, E => unsafe { prepare_row::<S, Single, E>(s, from, k, to) })
    }

    #[inline(always)]
    unsafe fn pack(s: S, dtype: DType, base: *const u8, column: impl Fn(usize) -> usize, k: usize, to: *mut u8) {
        with_element!(dtype, E => {
            let column = |i: usize| base.wrapping_add(column(i) * E::SIZE);
            // SAFETY: the caller's promise is this one's.
            unsafe { pack::<S, Single, E>(s, column, k, to) }
        });
    }

    #[inline(always)]
    unsafe fn direct<const MR: usize, const NV: usize>(
        s: S,
        dtype: DType,
        x: *const u8,
        x_stride: usize,
        w: [*const u8; 4],
        k: usize,
    ) -> [[S::V; NV]; MR] {
        // SAFETY: the caller's promise is this one's.
        with_element!(dtype, E => unsafe { direct::<S, Single, E, MR, NV>(s, x, x_stride, w, k) })
    }

    const POSITIONS: usize = 1;

    #[inline(always)]
    unsafe fn store_weights(s: S, row: *mut f32, i: usize, weights: S::V) {
        // SAFETY: the caller's promise is this one's.
        unsafe { s.store(row.add(i), weights) };
    }

    #[inline(always)]
    unsafe fn load_values<E: Element>(s: S, first: *const u8, _: *const u8) -> S::V {
        // SAFETY: the caller's promise is this one's.
        unsafe { E::load(s, first) }
    }

    #[inline(always)]
    unsafe fn prepare_values(s: S, dtype: DType, first: *const u8, _: *const u8, d: usize, to: *mut f32) {
        // SAFETY: the caller's promise is this one's.
        with_cache_element!(dtype, E => unsafe { convert::<S, E, F32>(s, first, to.cast(), d) });
    }
}

// Pair products are chosen only where both operands are bf16.
impl<S: Pairs> Operands<S> for Paired {
    #[inline(always)]
    unsafe fn prepare(s: S, _: DType, from: *const u8, k: usize, to: *mut u8) {
        // SAFETY: the caller's promise is this one's.
        unsafe { prepare_row::<S, Paired, Bf16>(s, from, k, to) }
    }

    #[inline(always)]
    unsafe fn pack(s: S, _: DType, base: *const u8, column: impl Fn(usize) -> usize, k: usize, to: *mut u8) {
        let column = |i: usize| base.wrapping_add(column(i) * Bf16::SIZE);
        // SAFETY: the caller's promise is this one's.
        unsafe { pack::<S, Paired, Bf16>(s, column, k, to) }
    }

    #[inline(always)]
    unsafe fn direct<const MR: usize, const NV: usize>(
        s: S,
        _: DType,
        x: *const u8,
        x_stride: usize,
        w: [*const u8; 4],
        k: usize,
    ) -> [[S::V; NV]; MR] {
        // SAFETY: the caller's promise is this one's.
        unsafe { direct::<S, Paired, Bf16, MR, NV>(s, x, x_stride, w, k) }
    }

    const POSITIONS: usize = 2;

    #[inline(always)]
    unsafe fn store_weights(s: S, row: *mut f32, i: usize, weights: S::V) {
        // SAFETY: the caller's promise is this one's: two weights are a word.
        unsafe { s.store_bf16(row.cast::<u16>().add(i), weights) };
    }

    #[inline(always)]
    unsafe fn load_values<E: Element>(s: S, first: *const u8, last: *const u8) -> S::V {
        // SAFETY: the caller's promise is this one's.
        unsafe { s.interleave(first.cast(), last.cast()) }
    }

    #[inline(always)]
    unsafe fn prepare_values(s: S, _: DType, first: *const u8, last: *const u8, d: usize, to: *mut f32) {
        let (first, last) = (first.cast::<u16>(), last.cast::<u16>());
        let whole = d - d % S::LANES;
        let mut i = 0;
        while i < whole {
            // SAFETY: `i + LANES ≤ d`.
            unsafe { s.store(to.add(i), s.interleave(first.add(i), last.add(i))) };
            i += S::LANES;
        }
        for i in whole..d {
            // SAFETY: `i < d`.
            unsafe { *to.add(i) = f32::from_bits(u32::from(*last.add(i)) << 16 | u32::from(*first.add(i))) };
        }
    }
}

/// Writes the results of a tile, `columns` of them in a row, to rows of scores.
///
/// # Safety
/// `MR` rows of `columns` elements, `TILE` apart, are writable at `to`.
#[inline(always)]
pub(super) unsafe fn store_tile<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    sums: &[[S::V; NV]; MR],
    columns: usize,
    to: *mut f32,
) {
    if NV == 4 {
        for (r, row) in sums.iter().enumerate() {
            // SAFETY: four vectors are the sums of a vector of columns. Stored as one, they can be loaded as one at once.
            unsafe { s.store_sums(to.add(r * TILE), [row[0], row[1 % NV], row[2 % NV], row[3 % NV]]) };
        }
        return;
    }
    let tile = finish(s, sums);
    for r in 0..MR {
        // SAFETY: the row is writable, and the tile has as many results.
        unsafe { to.add(r * TILE).copy_from_nonoverlapping(tile.as_ptr().add(r * columns), columns) };
    }
}
