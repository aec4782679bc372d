//! Register tiles of dot products, and the packing that feeds them.
//!
//! Every output is one vector of partial sums: lane `i` takes the elements `i, i + LANES, …` of a block of `k` in order
//! (pairs of them with bf16 products), and the lanes are added in the set's one order. A tile does that for several
//! rows of both operands at once, so its shape changes the speed and never a bit.

use super::simd::{Product, Simd, Weight};

/// Bytes of a prepared row in one block of `k`: enough to hide the sum over lanes, little enough that a panel of each
/// operand fits the first-level cache.
const BLOCK_BYTES: usize = 3072;

/// Bytes of one step of one prepared row.
pub(crate) const fn step_bytes<S: Simd>() -> usize {
    S::LANES * 4
}

/// Steps of one block of `k`.
pub(crate) const fn block_steps<S: Simd>() -> usize {
    BLOCK_BYTES / step_bytes::<S>()
}

/// Rows of the two operands in a packed tile: with their accumulators they fill the registers.
pub(crate) const fn packed_shape<S: Simd>() -> (usize, usize) {
    if S::MANY_REGISTERS { (6, 4) } else { (4, 3) }
}

/// Prepares up to `R` rows as a panel `[step][R][STEP]`; what is missing in rows or in the last step is zero.
///
/// # Safety
/// Row `r < rows ≤ panel` has `k` readable elements at `source(r)`; `to` has room for
/// `ceil(k / STEP) · panel` steps.
#[inline(always)]
pub(crate) unsafe fn pack<S: Simd, P: Product<S>, W: Weight<S, P>>(
    s: S,
    source: impl Fn(usize) -> *const u8,
    rows: usize,
    panel: usize,
    k: usize,
    to: *mut u8,
) {
    let bytes = step_bytes::<S>();
    let (whole, rest) = (k / P::STEP, k % P::STEP);
    let steps = whole + usize::from(rest > 0);
    for r in 0..rows {
        let from = source(r);
        let mut i = 0;
        while i < whole {
            // SAFETY: step `i` of row `r` lies inside the row and inside the panel.
            unsafe { P::store(s, to.add((i * panel + r) * bytes), W::load_step(s, from.add(i * P::STEP * W::SIZE))) };
            i += 1;
        }
        if rest > 0 {
            // SAFETY: `rest < STEP` elements are left in the row, and the panel has a step for them.
            unsafe {
                let last = W::load_last(s, from.add(whole * P::STEP * W::SIZE), rest);
                P::store(s, to.add((whole * panel + r) * bytes), last);
            }
        }
    }
    for r in rows..panel {
        for i in 0..steps {
            // SAFETY: step `i` of row `r` lies inside the panel.
            unsafe { to.add((i * panel + r) * bytes).write_bytes(0, bytes) };
        }
    }
}

/// `MR × NR` dot products of two packed panels.
///
/// # Safety
/// `a` is a panel of `MR` rows and `b` one of `NR` rows, both of `steps` steps.
#[inline(always)]
pub(crate) unsafe fn packed<S: Simd, P: Product<S>, const MR: usize, const NR: usize>(
    s: S,
    a: *const u8,
    b: *const u8,
    steps: usize,
) -> [[S::V; NR]; MR] {
    let mut sums = [[s.zero(); NR]; MR];
    let (a_step, b_step) = (MR * step_bytes::<S>(), NR * step_bytes::<S>());
    let (mut a, mut b) = (a, b);
    // Four steps at a time: a core whose front end is shared with another thread feels every instruction of the loop
    // that is not a product.
    for _ in 0..steps / 4 {
        // SAFETY: both pointers are four steps or more from the end of their panel.
        unsafe {
            packed_step::<S, P, MR, NR>(s, a, b, &mut sums);
            packed_step::<S, P, MR, NR>(s, a.add(a_step), b.add(b_step), &mut sums);
            packed_step::<S, P, MR, NR>(s, a.add(2 * a_step), b.add(2 * b_step), &mut sums);
            packed_step::<S, P, MR, NR>(s, a.add(3 * a_step), b.add(3 * b_step), &mut sums);
            (a, b) = (a.add(4 * a_step), b.add(4 * b_step));
        }
    }
    for _ in 0..steps % 4 {
        // SAFETY: both pointers are at a step inside their panel.
        unsafe {
            packed_step::<S, P, MR, NR>(s, a, b, &mut sums);
            (a, b) = (a.add(a_step), b.add(b_step));
        }
    }
    sums
}

/// # Safety
/// A step of a panel of `MR` rows is at `a`, one of `NR` rows at `b`.
#[inline(always)]
unsafe fn packed_step<S: Simd, P: Product<S>, const MR: usize, const NR: usize>(
    s: S,
    a: *const u8,
    b: *const u8,
    sums: &mut [[S::V; NR]; MR],
) {
    // SAFETY: the caller's promise covers all rows of both.
    unsafe {
        let columns: [P::R; NR] = load_all::<S, P, NR>(s, b);
        for (r, row) in sums.iter_mut().enumerate() {
            let x = P::load(s, a.add(r * step_bytes::<S>()));
            for (sum, &column) in row.iter_mut().zip(&columns) {
                *sum = P::accumulate(s, *sum, x, column);
            }
        }
    }
}

/// # Safety
/// `N` steps are readable at `p`.
#[inline(always)]
unsafe fn load_all<S: Simd, P: Product<S>, const N: usize>(s: S, p: *const u8) -> [P::R; N] {
    // SAFETY: the caller's promise covers all of them.
    let mut all = [unsafe { P::load(s, p) }; N];
    for (i, one) in all.iter_mut().enumerate().skip(1) {
        // SAFETY: as above.
        *one = unsafe { P::load(s, p.add(i * step_bytes::<S>())) };
    }
    all
}

/// `MR × NR` dot products of prepared rows with rows of a weight as it is stored.
///
/// # Safety
/// `x` is `MR` rows `x_stride` bytes apart, prepared up to `ceil(k / STEP)` steps; each of `w` has `k` elements.
#[inline(always)]
pub(crate) unsafe fn direct<S: Simd, P: Product<S>, W: Weight<S, P>, const MR: usize, const NR: usize>(
    s: S,
    x: *const u8,
    x_stride: usize,
    w: [*const u8; NR],
    k: usize,
) -> [[S::V; NR]; MR] {
    let bytes = step_bytes::<S>();
    let mut sums = [[s.zero(); NR]; MR];
    let (whole, rest) = (k / P::STEP, k % P::STEP);
    for i in 0..whole {
        for (n, &weight) in w.iter().enumerate() {
            // SAFETY: step `i` lies inside the rows of both.
            unsafe {
                let column = W::load_step(s, weight.add(i * P::STEP * W::SIZE));
                for (m, sums) in sums.iter_mut().enumerate() {
                    let row = P::load(s, x.add(m * x_stride + i * bytes));
                    sums[n] = P::accumulate(s, sums[n], row, column);
                }
            }
        }
    }
    if rest > 0 {
        for (n, &weight) in w.iter().enumerate() {
            // SAFETY: `rest < STEP` elements are left in the weight's row; the prepared row has a whole step.
            unsafe {
                let column = W::load_last(s, weight.add(whole * P::STEP * W::SIZE), rest);
                for (m, sums) in sums.iter_mut().enumerate() {
                    let row = P::load(s, x.add(m * x_stride + whole * bytes));
                    sums[n] = P::accumulate(s, sums[n], row, column);
                }
            }
        }
    }
    sums
}
