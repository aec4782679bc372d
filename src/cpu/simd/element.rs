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
            other => unreachable!("{other} in a kernel of the CPU: buffers, weights and the cache refuse it"),
        }
    };
}
pub(crate) use with_element;

/// One way of multiplying along `k`. Operands are words of four bytes: an f32, or a pair of bf16.
pub(crate) trait Product<S: Simd>: Copy + Send + Sync + 'static {
    /// Elements of `k` in one vector.
    const STEP: usize;

    /// `c + a · b`, word by word.
    fn accumulate(s: S, c: S::V, a: S::V, b: S::V) -> S::V;
}

/// An element type that can be an operand of a [`Product`], converted to its words as it is loaded.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Weight<S: Simd, P: Product<S>>: Element {
    /// # Safety
    /// `P::STEP` elements are readable at `p`.
    unsafe fn load_step(s: S, p: *const u8) -> S::V;

    /// The first `n` elements, then zeros.
    ///
    /// # Safety
    /// `n` elements are readable at `p`, and `n ≤ P::STEP`.
    #[inline(always)]
    unsafe fn load_last(s: S, p: *const u8, n: usize) -> S::V {
        let mut scratch = [0u8; SCRATCH];
        // SAFETY: `n` elements are readable, and no more than a step, which is at most a vector of bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(p, scratch.as_mut_ptr(), n * Self::SIZE);
            Self::load_step(s, scratch.as_ptr())
        }
    }
}

/// f32 products.
#[derive(Clone, Copy)]
pub(crate) struct Single;

impl<S: Simd> Product<S> for Single {
    const STEP: usize = S::LANES;

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

/// bf16 pair products.
#[derive(Clone, Copy)]
pub(crate) struct Paired;

impl<S: Pairs> Product<S> for Paired {
    const STEP: usize = 2 * S::LANES;

    #[inline(always)]
    fn accumulate(s: S, c: S::V, a: S::V, b: S::V) -> S::V {
        s.dot_pairs(c, a, b)
    }
}

impl<S: Pairs> Weight<S, Paired> for Bf16 {
    #[inline(always)]
    unsafe fn load_step(s: S, p: *const u8) -> S::V {
        // SAFETY: a vector of bits is readable, as the caller promises.
        unsafe { s.load(p.cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Isa, Kernel};

    /// Loads every 16-bit pattern as `E`, and stores it again.
    struct RoundTrip<E>(std::marker::PhantomData<E>);

    impl<E: Element> Kernel for RoundTrip<E> {
        type Out = (Vec<f32>, Vec<u16>);

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> (Vec<f32>, Vec<u16>) {
            let patterns: Vec<u16> = (0..=u16::MAX).collect();
            let (mut wide, mut back) = (vec![0f32; 1 << 16], vec![0u16; 1 << 16]);
            for i in (0..1 << 16).step_by(S::LANES) {
                // SAFETY: the lanes divide 2¹⁶, and all three have that many elements of their type.
                unsafe {
                    let v = E::load(s, patterns.as_ptr().add(i).cast());
                    s.store(wide.as_mut_ptr().add(i), v);
                    E::store(s, back.as_mut_ptr().add(i).cast(), v);
                }
            }
            (wide, back)
        }
    }

    /// Rounds f32 values to `E`.
    struct Round<'a, E>(&'a [f32], std::marker::PhantomData<E>);

    impl<E: Element> Kernel for Round<'_, E> {
        type Out = Vec<u16>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<u16> {
            let mut out = vec![0u16; self.0.len()];
            for (from, to) in self.0.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                // SAFETY: both have the chunk's elements, at most a vector.
                unsafe {
                    let v = F32::load_first(s, from.as_ptr().cast(), from.len());
                    E::store_first(s, to.as_mut_ptr().cast(), v, to.len());
                }
            }
            out
        }
    }

    fn present() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_present())
    }

    fn check<E: Element>(widen: impl Fn(u16) -> f32, narrow: impl Fn(f32) -> u16) {
        // Every pattern, every point half-way between two neighbours, and the f32s beside it.
        let mut values = Vec::new();
        for pattern in 0..u16::MAX {
            let (a, b) = (widen(pattern), widen(pattern + 1));
            if a.is_finite() && b.is_finite() {
                let middle = ((f64::from(a) + f64::from(b)) / 2.0) as f32;
                values.extend([middle, middle.next_up(), middle.next_down()]);
            }
        }
        values.extend([f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 65520.0, 65519.996, 1e-30, -0.0]);
        for isa in present() {
            let (wide, back) = isa.run(RoundTrip::<E>(std::marker::PhantomData));
            for pattern in 0..=u16::MAX {
                let (x, expected) = (wide[usize::from(pattern)], widen(pattern));
                if expected.is_nan() {
                    assert!(x.is_nan() && widen(back[usize::from(pattern)]).is_nan(), "{isa}: NaN {pattern:#06x}");
                } else {
                    assert_eq!(x.to_bits(), expected.to_bits(), "{isa}: loading {pattern:#06x}");
                    assert_eq!(back[usize::from(pattern)], pattern, "{isa}: storing {x}");
                }
            }
            for (&x, y) in values.iter().zip(isa.run(Round::<E>(&values, std::marker::PhantomData))) {
                assert_eq!(y, narrow(x), "{isa}: rounding {x} ({:#010x})", x.to_bits());
            }
        }
    }

    #[test]
    fn bf16_is_exact_and_rounds_to_even() {
        check::<Bf16>(|p| half::bf16::from_bits(p).to_f32(), |x| half::bf16::from_f32(x).to_bits());
    }

    #[test]
    fn f16_is_exact_and_rounds_to_even() {
        check::<F16>(|p| half::f16::from_bits(p).to_f32(), |x| half::f16::from_f32(x).to_bits());
    }
}
