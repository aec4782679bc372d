//! `out = activation(gate) · up`: the end of a gated product's task.

use crate::cpu::simd::{Element, F32, Kernel, Simd, gelu, gelu_tanh, silu, with_element};
use crate::dtype::DType;
use crate::ops::Activation;

/// `n` elements, f32 readable at `gate` and `up`, `dtype` writable at `to` by this kernel alone.
pub(super) struct ActMul {
    pub gate: *const f32,
    pub up: *const f32,
    pub to: *mut u8,
    pub dtype: DType,
    pub n: usize,
    pub activation: Activation,
}

impl Kernel for ActMul {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_element!(self.dtype, E => match self.activation {
            Activation::Silu => self.go::<S, E, 0>(s),
            Activation::GeluTanh => self.go::<S, E, 1>(s),
            Activation::Gelu => self.go::<S, E, 2>(s),
        });
    }
}

impl ActMul {
    #[inline(always)]
    fn go<S: Simd, E: Element, const ACTIVATION: u8>(&self, s: S) {
        let whole = self.n - self.n % S::LANES;
        let mut i = 0;
        while i < whole {
            // SAFETY: `i + LANES ≤ n`.
            unsafe {
                let activated = activate::<S, ACTIVATION>(s, s.load(self.gate.add(i)));
                E::store(s, self.to.add(i * E::SIZE), s.mul(activated, s.load(self.up.add(i))));
            }
            i += S::LANES;
        }
        if i < self.n {
            let left = self.n - i;
            // SAFETY: `left < LANES` elements are left.
            unsafe {
                let activated = activate::<S, ACTIVATION>(s, F32::load_first(s, self.gate.add(i).cast(), left));
                let up = F32::load_first(s, self.up.add(i).cast(), left);
                E::store_first(s, self.to.add(i * E::SIZE), s.mul(activated, up), left);
            }
        }
    }
}

// A function, not a closure: a closure would stay outside the code that has the features.
#[inline(always)]
fn activate<S: Simd, const ACTIVATION: u8>(s: S, x: S::V) -> S::V {
    match ACTIVATION {
        0 => silu(s, x),
        1 => gelu_tanh(s, x),
        _ => gelu(s, x),
    }
}
