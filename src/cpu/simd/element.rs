//! What vectors are loaded from and stored to: element types, and the two ways of multiplying along `k`.

use super::{Pairs, Simd};

/// More bytes than any vector has.
const SCRATCH: usize = 64;

/// A stored element type. Pointers are to bytes and need no alignment.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Element: Copy + Send + Sync + 'static {
    const SIZE: usize;

    /// # Safety
    /// `LANES` elements are readable at `p`.
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V;

    /// # Safety
    /// `LANES` elements are writable at `p`.
    unsafe fn store<S: Simd>(s: S, p: *mut u8, v: S::V);

    /// The first `n < LANES` elements, then zeros.
    ///
    /// # Safety
    /// `n` elements are readable at `p`, and `n ≤ LANES`.
    #[inline(always)]
    unsafe fn load_first<S: Simd>(s: S, p: *const u8, n: usize) -> S::V {
        let mut scratch = [0u8; SCRATCH];
        // SAFETY: `n · SIZE` bytes are readable, and no more than a vector, which `scratch` has room for.
        unsafe {
            std::ptr::copy_nonoverlapping(p, scratch.as_mut_ptr(), n * Self::SIZE);
            Self::load(s, scratch.as_ptr())
        }
    }

    /// # Safety
    /// `n` elements are writable at `p`, and `n ≤ LANES`.
    #[inline(always)]
    unsafe fn store_first<S: Simd>(s: S, p: *mut u8, v: S::V, n: usize) {
        let mut scratch = [0u8; SCRATCH];
        // SAFETY: `scratch` has room for a vector, and `n · SIZE` bytes are writable.
        unsafe {
            Self::store(s, scratch.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(scratch.as_ptr(), p, n * Self::SIZE);
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct F32;
#[derive(Clone, Copy)]
pub(crate) struct Bf16;
#[derive(Clone, Copy)]
pub(crate) struct F16;

macro_rules! element {
    ($name:ident, $size:expr, $load:ident, $store:ident) => {
        impl Element for $name {
            const SIZE: usize = $size;

            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
                // SAFETY: the caller's promise is this one's.
                unsafe { s.$load(p.cast()) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(s: S, p: *mut u8, v: S::V) {
                // SAFETY: the caller's promise is this one's.
                unsafe { s.$store(p.cast(), v) }
            }
        }
    };
}

element!(F32, 4, load, store);
element!(Bf16, 2, load_bf16, store_bf16);
element!(F16, 2, load_f16, store_f16);

/// Runs `$body` with `$element` bound to the [`Element`] type of a [`crate::DType`].
macro_rules! with_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            crate::DType::F32 => {
                type $element = crate::cpu::simd::F32;
                $body
            }
            crate::DType::BF16 => {
                type $element = crate::cpu::simd::Bf16;
                $body
            }
            crate::DType::F16 => {
                type $element = crate::cpu::simd::F16;
                $body
            }
        }
    };
}
pub(crate) use with_element;

/// One way of multiplying along `k`: what operands are prepared to, and how one step accumulates.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Product<S: Simd>: Copy + Send + Sync + 'static {
    /// Elements of `k` in one step.
    const STEP: usize;
    /// One step of one operand.
    type R: Copy;

    /// # Safety
    /// A step of prepared elements is readable at `p`.
    unsafe fn load(s: S, p: *const u8) -> Self::R;

    /// # Safety
    /// A step of prepared elements is writable at `p`.
    unsafe fn store(s: S, p: *mut u8, r: Self::R);

    fn accumulate(s: S, c: S::V, a: Self::R, b: Self::R) -> S::V;
}

/// An element type that can be an operand of a [`Product`], converted as it is loaded.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Weight<S: Simd, P: Product<S>>: Element {
    /// # Safety
    /// `P::STEP` elements are readable at `p`.
    unsafe fn load_step(s: S, p: *const u8) -> P::R;

    /// # Safety
    /// `n` elements are readable at `p`, and `n < P::STEP`.
    #[inline(always)]
    unsafe fn load_last(s: S, p: *const u8, n: usize) -> P::R {
        let mut scratch = [0u8; SCRATCH];
        // SAFETY: `n` elements are readable, and fewer than a step, which is at most a vector of bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(p, scratch.as_mut_ptr(), n * Self::SIZE);
            Self::load_step(s, scratch.as_ptr())
        }
    }
}

/// f32 products of `LANES` elements.
#[derive(Clone, Copy)]
pub(crate) struct Single;

impl<S: Simd> Product<S> for Single {
    const STEP: usize = S::LANES;
    type R = S::V;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> S::V {
        // SAFETY: the caller's promise is this one's.
        unsafe { s.load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(s: S, p: *mut u8, r: S::V) {
        // SAFETY: the caller's promise is this one's.
        unsafe { s.store(p.cast(), r) }
    }
    #[inline(always)]
    fn accumulate(s: S, c: S::V, a: S::V, b: S::V) -> S::V {
        s.fma(a, b, c)
    }
}

impl<S: Simd, E: Element> Weight<S, Single> for E {
    #[inline(always)]
    unsafe fn load_step(s: S, p: *const u8) -> S::V {
        // SAFETY: the caller's promise is this one's.
        unsafe { E::load(s, p) }
    }
}

/// bf16 pair products of `2 · LANES` elements.
#[derive(Clone, Copy)]
pub(crate) struct Paired;

impl<S: Pairs> Product<S> for Paired {
    const STEP: usize = 2 * S::LANES;
    type R = S::P;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> S::P {
        // SAFETY: the caller's promise is this one's.
        unsafe { s.load_pairs(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(_: S, p: *mut u8, r: S::P) {
        // SAFETY: a step is writable, as the caller promises, and `P` is its plain bits.
        unsafe { p.cast::<S::P>().write_unaligned(r) }
    }
    #[inline(always)]
    fn accumulate(s: S, c: S::V, a: S::P, b: S::P) -> S::V {
        s.dot_pairs(c, a, b)
    }
}

impl<S: Pairs> Weight<S, Paired> for Bf16 {
    #[inline(always)]
    unsafe fn load_step(s: S, p: *const u8) -> S::P {
        // SAFETY: the caller's promise is this one's.
        unsafe { s.load_pairs(p.cast()) }
    }
}
