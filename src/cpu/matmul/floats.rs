//! Products with dense weights: in f32, or of bf16 pairs.

use crate::cpu::simd::{Kernel, PairKernel, Pairs, Simd, prefetch_l2};

use super::tiles::{TILE_ROWS, Task, Tile, with_tile};
use crate::cpu::panels::{BLOCK_BYTES, COLUMNS, Format};

/// One way to multiply a step of a panel with `x`.
#[allow(clippy::missing_safety_doc)]
trait Step<S: Simd> {
    /// Bytes of a step of one column, and of one row of `x`.
    const COLUMN: usize;
    const X: usize = 4;
    /// Elements of a step.
    const DEPTH: usize = 1;
    /// Words of a step: each is one product.
    const WORDS: usize = 1;

    /// A vector of columns, as words. Only the first [`WORDS`](Self::WORDS) count.
    ///
    /// # Safety
    /// A step of as many columns as there are lanes is readable.
    unsafe fn load(s: S, p: *const u8) -> [S::V; 2];

    /// `sum` and a word of `x`, for all columns, times `words`.
    #[inline(always)]
    fn accumulate(s: S, sum: S::V, x: S::V, words: S::V) -> S::V {
        s.fma(x, words, sum)
    }
}

struct F32;
struct F16;
/// Two f32 products.
struct Bf16;
/// A product of pairs.
struct Bf16Pairs;

impl<S: Simd> Step<S> for F32 {
    const COLUMN: usize = 4;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> [S::V; 2] {
        // SAFETY: as the caller promises.
        [unsafe { s.load(p.cast()) }; 2]
    }
}

impl<S: Simd> Step<S> for F16 {
    const COLUMN: usize = 2;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> [S::V; 2] {
        // SAFETY: as the caller promises.
        [unsafe { s.load_f16(p.cast()) }; 2]
    }
}

impl<S: Simd> Step<S> for Bf16 {
    const COLUMN: usize = 4;
    const X: usize = 8;
    const DEPTH: usize = 2;
    const WORDS: usize = 2;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> [S::V; 2] {
        // SAFETY: as the caller promises.
        unsafe { s.load_bf16_pairs(p.cast()) }
    }
}

impl<S: Pairs> Step<S> for Bf16Pairs {
    const COLUMN: usize = 4;
    const DEPTH: usize = 2;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> [S::V; 2] {
        // SAFETY: as the caller promises.
        [unsafe { s.load(p.cast()) }; 2]
    }
    #[inline(always)]
    fn accumulate(s: S, sum: S::V, x: S::V, words: S::V) -> S::V {
        s.dot_pairs(sum, x, words)
    }
}

impl Task<'_> {
    #[inline(always)]
    fn floats<S: Simd, W: Step<S>>(&self, s: S) {
        let steps = self.panels.k.div_ceil(W::DEPTH);
        let block_steps = BLOCK_BYTES / (COLUMNS * W::COLUMN);
        let mut tiles = self.tiles(steps.div_ceil(block_steps));
        while let Some((block, tile)) = tiles.next::<S>(TILE_ROWS) {
            let first = block * block_steps;
            let steps = block_steps.min(steps - first);
            macro_rules! call {
                ($mr:literal, $nv:literal) => {
                    self.float_tile::<S, W, $mr, $nv>(s, tile, first, steps)
                };
            }
            with_tile!(S, tile.rows, TILE_ROWS, call);
        }
    }

    /// `MR` rows against `NV` vectors of columns, `steps` steps from step `first` on.
    #[inline(always)]
    fn float_tile<S: Simd, W: Step<S>, const MR: usize, const NV: usize>(
        &self,
        s: S,
        tile: Tile,
        first: usize,
        steps: usize,
    ) {
        let mut from = [std::ptr::null(); NV];
        for (v, from) in from.iter_mut().enumerate() {
            let lane = v * S::LANES % COLUMNS;
            let panel = self.panels.panel(self.panel(tile, v, S::LANES).0);
            *from = panel.wrapping_add((first * COLUMNS + lane) * W::COLUMN);
        }
        let mut x = self.row(tile).wrapping_add(first * W::X);
        let mut sums = [[s.zero(); NV]; MR];
        for _ in 0..steps {
            let mut words = [[s.zero(); 2]; NV];
            for (words, from) in words.iter_mut().zip(&mut from) {
                prefetch_l2(from.wrapping_add(tile.ahead));
                // SAFETY: the panel has this step.
                *words = unsafe { W::load(s, *from) };
                *from = from.wrapping_add(COLUMNS * W::COLUMN);
            }
            for word in 0..W::WORDS {
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: there are the tile's rows, padding included, of all steps.
                    let x = unsafe { s.broadcast(x.add(row * self.x_stride + word * 4).cast()) };
                    for (sum, words) in sums.iter_mut().zip(&words) {
                        *sum = W::accumulate(s, *sum, x, words[word]);
                    }
                }
            }
            x = x.wrapping_add(W::X);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate().filter(|(v, _)| self.panel(tile, *v, S::LANES).1) {
                let to = self.place(tile, row, v, S::LANES);
                let sum = match &self.panels.scales {
                    None => sum,
                    Some(scales) => {
                        let (panel, lane) = (self.panel(tile, v, S::LANES).0, v * S::LANES % COLUMNS);
                        let scales = scales.at(panel, self.panels.k, first * W::DEPTH);
                        // SAFETY: each group of a panel has sixteen scales.
                        s.mul(sum, unsafe { s.load(scales.add(lane)) })
                    }
                };
                // SAFETY: there is a place for each row, padding included, and each column of the task's panels.
                unsafe { s.store(to, if first == 0 { sum } else { s.add(s.load(to), sum) }) };
            }
        }
    }
}

/// f32 products: `x` is f32.
pub(super) struct Singles<'a>(pub Task<'a>);

impl Kernel for Singles<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.0.panels.format {
            Format::F32 => self.0.floats::<S, F32>(s),
            Format::F16 => self.0.floats::<S, F16>(s),
            _ => self.0.floats::<S, Bf16>(s),
        }
    }
}

/// Products of bf16 pairs: `x` and the weight are bf16.
pub(super) struct Paired<'a>(pub Task<'a>);

impl PairKernel for Paired<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Pairs>(self, s: S) {
        self.0.floats::<S, Bf16Pairs>(s);
    }
}
