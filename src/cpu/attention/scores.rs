//! Scores: products of queries with keys, whichever dtype and kind of product they have.

use super::TILE;
use crate::cpu::simd::{Bf16, Element, Paired, Pairs, Product, Simd, Single, with_element};
use crate::cpu::tile::{direct, pack};
use crate::dtype::DType;

/// A [`Product`] whose operands are found by their dtype.
pub(super) trait Operands<S: Simd>: Product<S> {
    /// # Safety
    /// As [`pack`], for rows of `dtype`.
    unsafe fn pack(s: S, dtype: DType, source: impl Fn(usize) -> usize, base: *const u8, shape: Panel, to: *mut u8);

    /// # Safety
    /// As [`direct`], for rows of `dtype`.
    unsafe fn direct<const MR: usize, const NR: usize>(
        s: S,
        dtype: DType,
        x: *const u8,
        x_stride: usize,
        w: [*const u8; NR],
        k: usize,
    ) -> [[S::V; NR]; MR];
}

/// Rows of a panel that are there, rows of the panel, elements of a row.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub rows: usize,
    pub of: usize,
    pub k: usize,
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

    #[inline(always)]
    unsafe fn direct<const MR: usize, const NR: usize>(
        s: S,
        dtype: DType,
        x: *const u8,
        x_stride: usize,
        w: [*const u8; NR],
        k: usize,
    ) -> [[S::V; NR]; MR] {
        // SAFETY: the caller's promise is this one's.
        with_element!(dtype, E => unsafe { direct::<S, Single, E, MR, NR>(s, x, x_stride, w, k) })
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

    #[inline(always)]
    unsafe fn direct<const MR: usize, const NR: usize>(
        s: S,
        _: DType,
        x: *const u8,
        x_stride: usize,
        w: [*const u8; NR],
        k: usize,
    ) -> [[S::V; NR]; MR] {
        // SAFETY: as above.
        unsafe { direct::<S, Paired, Bf16, MR, NR>(s, x, x_stride, w, k) }
    }
}

/// Writes a tile of sums to rows of scores.
///
/// # Safety
/// `MR` rows of `NR` elements, `TILE` apart, are writable at `to`.
#[inline(always)]
pub(super) unsafe fn store_tile<S: Simd, const MR: usize, const NR: usize>(
    s: S,
    sums: &[[S::V; NR]; MR],
    to: *mut f32,
) {
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
