//! Elementary functions on vectors. Coefficients are our own weighted least-squares fits in high precision; the error
//! bounds are checked against float64 below.

use super::Simd;

/// Above this eˣ saturates: 2¹²⁷ is the largest power of two there is.
const EXP_MAX: f32 = 88.376_26;
/// Below this eˣ is 0: nothing here needs subnormals.
const EXP_MIN: f32 = -87.336_54;

/// `eˣ` within 2 ulp for results of at least 2⁻¹²⁶; 0 below (so `exp(-∞) = 0`), saturated above 88.376. `exp(0) = 1`.
/// A NaN stays one.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // x = n ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts so that r is exact.
    let clamped = s.max(s.splat(EXP_MIN), s.min(s.splat(EXP_MAX), x));
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), clamped);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    // eʳ = 1 + r + r² q(r)
    let mut q = s.splat(1.395_031_1e-3);
    q = s.fma(q, r, s.splat(8.368_906e-3));
    q = s.fma(q, r, s.splat(4.166_621e-2));
    q = s.fma(q, r, s.splat(1.666_652e-1));
    q = s.fma(q, r, s.splat(0.5));
    let y = s.add(s.fma(q, s.mul(r, r), r), s.splat(1.0));
    s.select_lt(x, s.splat(EXP_MIN), s.zero(), s.mul(y, s.exp2i(n)))
}

/// `x / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.zero(), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// Hyperbolic tangent within 4 ulp: up to 0.625 an odd polynomial, beyond it `1 − 2 / (e²ˣ + 1)`.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let negative = s.sub(s.zero(), x);
    let magnitude = s.max(x, negative);
    let square = s.mul(x, x);
    let mut p = s.splat(-5.705_058e-3);
    p = s.fma(p, square, s.splat(2.063_916e-2));
    p = s.fma(p, square, s.splat(-5.373_974e-2));
    p = s.fma(p, square, s.splat(1.333_144_3e-1));
    p = s.fma(p, square, s.splat(-3.333_328e-1));
    let near = s.fma(s.mul(p, square), x, x);
    let e = exp(s, s.add(magnitude, magnitude));
    let far = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    let far = s.select_lt(x, s.zero(), s.sub(s.zero(), far), far);
    s.select_lt(magnitude, s.splat(0.625), near, far)
}

/// `0.5 x (1 + tanh y) = x / (1 + e⁻²ʸ)` with `y = √(2/π) (x + 0.044715 x³)`: this form loses nothing near 0.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let cubic = s.fma(s.mul(s.mul(x, x), s.splat(0.044_715)), x, x);
    let e = exp(s, s.mul(cubic, s.splat(-1.595_769)));
    s.div(x, s.add(s.splat(1.0), e))
}

/// `x Φ(x)`, by `erfc(z) = e^(−z²) p(1 / (1 + 0.42 z))`, relative error of the fit 3.5e-8.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    const P: [f32; 10] = [
        3.136_782_5e-5,
        2.362_145_3e-1,
        2.445_606_1e-1,
        1.724_284_6e-1,
        3.290_593e-1,
        -2.322_183e-1,
        5.467_698e-1,
        -3.853_921_6e-1,
        9.093_483e-2,
        -2.388_409_8e-3,
    ];
    let magnitude = s.max(x, s.sub(s.zero(), x));
    let z = s.mul(magnitude, s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = s.div(s.splat(1.0), s.fma(z, s.splat(0.42), s.splat(1.0)));
    let mut p = s.splat(P[9]);
    let mut i = 9;
    while i > 0 {
        i -= 1;
        p = s.fma(p, t, s.splat(P[i]));
    }
    let square = s.mul(s.mul(x, x), s.splat(-0.5));
    let tail = s.mul(s.mul(exp(s, square), p), s.splat(0.5));
    s.mul(x, s.select_lt(x, s.zero(), tail, s.sub(s.splat(1.0), tail)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Isa, Kernel};

    macro_rules! of_a_slice {
        ($name:ident, $function:ident) => {
            /// The function of a slice whose length is a multiple of every vector's.
            struct $name<'a>(&'a [f32]);

            impl Kernel for $name<'_> {
                type Out = Vec<f32>;

                #[inline(always)]
                fn run<S: Simd>(self, s: S) -> Vec<f32> {
                    let mut out = vec![0f32; self.0.len()];
                    for (from, to) in self.0.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                        // SAFETY: both are vectors.
                        unsafe { s.store(to.as_mut_ptr(), $function(s, s.load(from.as_ptr()))) };
                    }
                    out
                }
            }
        };
    }

    of_a_slice!(Exp, exp);
    of_a_slice!(Tanh, tanh);

    fn present() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_present())
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let x: Vec<f32> = (0..1 << 18).map(|i| -87.3 + 175.6 * i as f32 / (1 << 18) as f32).collect();
        for isa in present() {
            for (&x, y) in x.iter().zip(isa.run(Exp(&x))) {
                let exact = f64::from(x).exp();
                let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
                let error = (f64::from(y) - exact).abs() / unit;
                assert!(error <= 2.0, "{isa}: exp({x}) = {y}, off by {error} units");
            }
        }
    }

    #[test]
    fn exp_at_its_ends() {
        let mut x = [f32::NEG_INFINITY, -1e30, -87.4, 0.0, -0.0, 89.0, f32::INFINITY, f32::NAN].repeat(2);
        x.extend([0.0; 16]);
        for isa in present() {
            let y = isa.run(Exp(&x));
            assert_eq!(y[..5], [0.0, 0.0, 0.0, 1.0, 1.0], "{isa}");
            assert!(y[5] > 2e38 && y[5].is_finite() && y[6] == y[5], "{isa}: {y:?}");
            assert!(y[7].is_nan(), "{isa}: {y:?}");
        }
    }

    #[test]
    fn tanh_is_within_four_units_in_the_last_place() {
        let mut x: Vec<f32> = (0..1 << 16).map(|i| -12.0 + 24.0 * i as f32 / (1 << 16) as f32).collect();
        x.extend((0..1 << 12).map(|i| (i - (1 << 11)) as f32 * 1e-7));
        x.extend([f32::NEG_INFINITY, f32::INFINITY, -100.0, 100.0].repeat(4));
        for isa in present() {
            for (&x, y) in x.iter().zip(isa.run(Tanh(&x))) {
                let exact = f64::from(x).tanh();
                let nearest = exact as f32;
                let unit = f64::from(nearest.abs().next_up()) - f64::from(nearest.abs());
                let error = (f64::from(y) - exact).abs() / unit;
                assert!(error <= 4.0, "{isa}: tanh({x}) = {y}, off by {error} units");
            }
        }
    }
}
