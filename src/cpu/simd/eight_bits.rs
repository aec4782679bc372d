//! Elements of eight bits, which only the KV cache has. Numbers become codes by rounding to the nearest, ties to even, and
//! what is too large becomes the largest: as CUDA's conversions do it.

use super::{Element, Simd};

/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

/// Four bits of exponent, three of mantissa, up to 448.
#[derive(Clone, Copy)]
pub(crate) struct E4m3;
/// Five bits of exponent, two of mantissa, up to 57344.
#[derive(Clone, Copy)]
pub(crate) struct E5m2;
/// Whole numbers; NaN becomes 0.
#[derive(Clone, Copy)]
pub(crate) struct I8;

impl Element for E4m3 {
    const SIZE: usize = 1;

    /// In the place of an f16's exponent and mantissa the number is 2⁸ too small, subnormals too.
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
        let half = |code: u8| {
            let (sign, magnitude) = (u16::from(code & 0x80) << 8, u16::from(code & 0x7f));
            sign | if magnitude == 0x7f { 0x7fff } else { magnitude << 7 }
        };
        // SAFETY: the caller's promise is this one's.
        unsafe { s.mul(s.load_f16(lanes::<S, u16>(p, half).as_ptr()), s.splat(256.0)) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut u8, v: S::V) {
        // SAFETY: the caller's promise is this one's.
        unsafe { store_codes(s, p, v, narrow::<4, 3, 0x7e>) }
    }
}

impl Element for E5m2 {
    const SIZE: usize = 1;

    /// The upper half of an f16.
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
        // SAFETY: the caller's promise is this one's.
        unsafe { s.load_f16(lanes::<S, u16>(p, |code| u16::from(code) << 8).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut u8, v: S::V) {
        // SAFETY: the caller's promise is this one's.
        unsafe { store_codes(s, p, v, narrow::<5, 2, 0x7b>) }
    }
}

impl Element for I8 {
    const SIZE: usize = 1;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
        // SAFETY: the caller's promise is this one's.
        unsafe { s.load(lanes::<S, f32>(p, |code| f32::from(code as i8)).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut u8, v: S::V) {
        // SAFETY: the caller's promise is this one's. The conversion saturates.
        unsafe { store_codes(s, p, v, |x| x.round_ties_even() as i8 as u8) }
    }
}

/// Wider forms of `LANES` codes; behind them zeros.
///
/// # Safety
/// `LANES` codes are readable at `p`.
#[inline(always)]
unsafe fn lanes<S: Simd, T: Copy + Default>(p: *const u8, widen: impl Fn(u8) -> T) -> [T; MAX_LANES] {
    let mut wide = [T::default(); MAX_LANES];
    for (i, wide) in wide[..S::LANES].iter_mut().enumerate() {
        // SAFETY: as the caller promises.
        *wide = widen(unsafe { *p.add(i) });
    }
    wide
}

/// # Safety
/// `LANES` codes are writable at `p`.
#[inline(always)]
unsafe fn store_codes<S: Simd>(s: S, p: *mut u8, v: S::V, narrow: impl Fn(f32) -> u8) {
    let mut numbers = [0f32; MAX_LANES];
    // SAFETY: no vector has more lanes, and as many codes are writable.
    unsafe {
        s.store(numbers.as_mut_ptr(), v);
        for (i, &x) in numbers[..S::LANES].iter().enumerate() {
            *p.add(i) = narrow(x);
        }
    }
}

/// The code of a number in a format of `EXPONENT` and `MANTISSA` bits whose largest code is `LARGEST`.
#[inline(always)]
fn narrow<const EXPONENT: u32, const MANTISSA: u32, const LARGEST: u32>(x: f32) -> u8 {
    let bias = (1 << (EXPONENT - 1)) - 1;
    let dropped = 23 - MANTISSA;
    let (sign, magnitude) = ((x.to_bits() >> 24) as u8 & 0x80, x.to_bits() & 0x7fff_ffff);
    // Added to a number whose last place is the least subnormal, a small one is rounded to whole multiples of that.
    let step = f32::from_bits((127 + 23 + 1 - bias - MANTISSA) << 23);
    let small = (f32::from_bits(magnitude) + step).to_bits().wrapping_sub(step.to_bits());
    // Half a unit in the last place, less one where what is kept is even.
    let scaled = magnitude.wrapping_sub((127 - bias) << 23);
    let large = scaled.wrapping_add((1 << (dropped - 1)) - 1 + (scaled >> dropped & 1)) >> dropped;
    let code = if magnitude < (127 + 1 - bias) << 23 { small } else { large.min(LARGEST) };
    if magnitude > 0x7f80_0000 { 0x7f } else { sign | code as u8 }
}

/// [`with_element`] with the types of eight bits too, which only the KV cache has.
macro_rules! with_cache_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            crate::DType::E4M3 => {
                type $element = crate::cpu::simd::E4m3;
                $body
            }
            crate::DType::E5M2 => {
                type $element = crate::cpu::simd::E5m2;
                $body
            }
            crate::DType::I8 => {
                type $element = crate::cpu::simd::I8;
                $body
            }
            dtype => crate::cpu::simd::with_element!(dtype, $element => $body),
        }
    };
}
pub(crate) use with_cache_element;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{F32, Isa, Kernel};

    /// All codes as numbers; numbers as codes.
    struct Both<'a, E>(&'a [f32], std::marker::PhantomData<E>);

    impl<E: Element> Kernel for Both<'_, E> {
        type Out = (Vec<f32>, Vec<u8>);

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> (Vec<f32>, Vec<u8>) {
            let codes: Vec<u8> = (0..=u8::MAX).collect();
            let (mut wide, mut narrow) = (vec![0f32; 256], vec![0u8; self.0.len()]);
            for (from, to) in codes.chunks(S::LANES).zip(wide.chunks_mut(S::LANES)) {
                // SAFETY: the lanes divide 256.
                unsafe { s.store(to.as_mut_ptr(), E::load(s, from.as_ptr())) };
            }
            for (from, to) in self.0.chunks(S::LANES).zip(narrow.chunks_mut(S::LANES)) {
                // SAFETY: both have the chunk's elements, at most a vector.
                unsafe {
                    let v = F32::load_first(s, from.as_ptr().cast(), from.len());
                    E::store_first(s, to.as_mut_ptr(), v, to.len());
                }
            }
            (wide, narrow)
        }
    }

    /// The number of a code, by the format's definition.
    fn float(code: u8, mantissa: i32, bias: i32) -> f64 {
        let (sign, magnitude) = (if code >> 7 == 1 { -1.0 } else { 1.0 }, i32::from(code & 0x7f));
        let (exponent, rest) = (magnitude >> mantissa, magnitude & ((1 << mantissa) - 1));
        let (whole, exponent) = if exponent == 0 { (0, 1) } else { (1 << mantissa, exponent) };
        sign * f64::from(whole + rest) * 2f64.powi(exponent - bias - mantissa)
    }

    /// `largest` is the largest code of a finite number, those above it up to 0x7f are not.
    fn check<E: Element>(number: impl Fn(u8) -> f64, largest: u8) {
        let finite: Vec<(f64, u8)> = (0..=largest).map(|code| (number(code), code)).collect();
        let mut values = vec![0.0, 1e30, f32::INFINITY, 1e-30];
        for pair in finite.windows(2) {
            let middle = ((pair[0].0 + pair[1].0) / 2.0) as f32;
            values.extend([pair[0].0 as f32, middle, middle.next_up(), middle.next_down()]);
        }
        let expected = |x: f32| {
            let nearest = finite.iter().min_by(|(a, i), (b, j)| {
                let (a, b) = ((a - f64::from(x)).abs(), (b - f64::from(x)).abs());
                a.total_cmp(&b).then((i % 2).cmp(&(j % 2)))
            });
            if x > 1e20 { largest } else { nearest.unwrap().1 }
        };
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_present()) {
            let (wide, narrow) = isa.run(Both::<E>(&values, std::marker::PhantomData));
            for &(x, code) in &finite {
                assert_eq!(f64::from(wide[usize::from(code)]), x, "{isa}: loading {code:#04x}");
            }
            for (&x, code) in values.iter().zip(narrow) {
                assert_eq!(code, expected(x), "{isa}: rounding {x}");
            }
            let negative: Vec<f32> = values.iter().map(|x| -x).chain([f32::NAN]).collect();
            let (_, mut narrow) = isa.run(Both::<E>(&negative, std::marker::PhantomData));
            let nan = narrow.pop().unwrap();
            assert!(wide[usize::from(nan)].is_nan() || nan == 0, "{isa}: NaN is {nan:#04x}");
            for (&x, code) in negative.iter().zip(narrow) {
                let (found, expected) = (f64::from(wide[usize::from(code)]), -number(expected(-x)));
                // Two's complement has one number more below zero.
                assert!(found == expected || (x < -127.0 && found == -128.0), "{isa}: rounding {x}");
            }
        }
    }

    #[test]
    fn e4m3_is_exact_and_rounds_to_even() {
        check::<E4m3>(|code| float(code, 3, 7), 0x7e);
    }

    #[test]
    fn e5m2_is_exact_and_rounds_to_even() {
        check::<E5m2>(|code| float(code, 2, 15), 0x7b);
    }

    #[test]
    fn i8_is_exact_and_rounds_to_even() {
        check::<I8>(|code| f64::from(code as i8), 0x7f);
    }
}
