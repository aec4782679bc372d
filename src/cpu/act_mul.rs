//! `out = activation(gate) · up`.

use crate::cpu::buffer::Buffer;
use crate::cpu::pool::{Pool, Shareable};
use crate::cpu::simd::{Element, F32, Isa, Kernel, Simd, gelu, gelu_tanh, silu, with_element};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::Activation;

const OP: &str = "act_mul";

/// Elements that a task takes: some microseconds.
const TASK: usize = 8 << 10;

pub(crate) fn act_mul(
    isa: Isa,
    pool: &Pool,
    rows: usize,
    width: usize,
    activation: Activation,
    gate_up: &Buffer,
    out: &mut Buffer,
) -> Result<()> {
    let elements = rows.checked_mul(width);
    gate_up.check_wide(OP, "gate_up", elements.and_then(|n| n.checked_mul(2)))?;
    out.check(OP, "out", elements)?;
    let source = Shareable::new(gate_up.as_ptr().cast::<f32>().cast_mut());
    let (to, dtype) = (Shareable::new(out.as_mut_ptr()), out.dtype());
    let pieces = width.div_ceil(TASK);
    pool.run(rows * pieces, &|_, task| {
        let (row, first) = (task / pieces, task % pieces * TASK);
        // SAFETY: `gate_up` has two rows of `width` for each row of `out`, and the piece lies inside one of them.
        let (gate, up, to) = unsafe {
            let gate = source.get().add(row * 2 * width + first);
            (gate, gate.add(width), to.get().add((row * width + first) * dtype.size()))
        };
        isa.run(Piece { gate, up, to, dtype, n: TASK.min(width - first), activation });
    });
    Ok(())
}

/// `n` elements, readable at `gate` and `up` and writable at `to` by this piece alone.
struct Piece {
    gate: *const f32,
    up: *const f32,
    to: *mut u8,
    dtype: DType,
    n: usize,
    activation: Activation,
}

impl Kernel for Piece {
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

impl Piece {
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
