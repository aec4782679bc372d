//! `residual += delta`, then `out = residual / rms(residual) · weight`.

use crate::cpu::buffer::{Buffer, Vector};
use crate::cpu::pool::{Pool, Shareable};
use crate::cpu::simd::{Element, F32, Isa, Kernel, Simd, with_element};
use crate::dtype::DType;
use crate::error::{Error, Result};

const OP: &str = "rms_norm";

/// Elements that a task takes: some microseconds.
const TASK: usize = 16 << 10;

#[allow(clippy::too_many_arguments)]
pub(crate) fn rms_norm(
    isa: Isa,
    pool: &Pool,
    rows: usize,
    width: usize,
    residual: &mut Buffer,
    delta: Option<&Buffer>,
    weight: &Vector,
    eps: f32,
    out: &mut Buffer,
) -> Result<()> {
    if weight.0.len() != width {
        return Err(Error::operator(OP, "weight", format!("{width} elements"), weight.0.len()));
    }
    let elements = rows.checked_mul(width);
    residual.check_wide(OP, "residual", elements)?;
    if let Some(delta) = delta {
        delta.check_wide(OP, "delta", elements)?;
    }
    out.check(OP, "out", elements)?;
    let call = Call {
        width,
        residual: Shareable::new(residual.as_mut_ptr().cast()),
        delta: delta.map(|delta| Shareable::new(delta.as_ptr().cast::<f32>().cast_mut())),
        weight: &weight.0,
        eps,
        out: Shareable::new(out.as_mut_ptr()),
        out_dtype: out.dtype(),
    };
    let per_task = (TASK / width.max(1)).max(1);
    pool.run(rows.div_ceil(per_task), &|_, task| {
        isa.run(Norm { call: &call, from: task * per_task, to: rows.min((task + 1) * per_task) });
    });
    Ok(())
}

/// `residual`, `delta` and `out` have rows of `width`, `weight` has `width` elements.
struct Call<'a> {
    width: usize,
    residual: Shareable<f32>,
    delta: Option<Shareable<f32>>,
    weight: &'a [f32],
    eps: f32,
    out: Shareable<u8>,
    out_dtype: DType,
}

/// Rows `from..to`, which no other task has.
struct Norm<'a> {
    call: &'a Call<'a>,
    from: usize,
    to: usize,
}

impl Kernel for Norm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Call { width, residual, delta, weight, eps, out, out_dtype } = self.call;
        let width = *width;
        for row in self.from..self.to {
            // SAFETY: all have this row, and this task alone has it.
            unsafe {
                let x = residual.get().add(row * width);
                if let Some(delta) = delta {
                    add(s, x, delta.get().add(row * width), width);
                }
                let scale = 1.0 / (sum_of_squares(s, x, width) / width as f32 + eps).sqrt();
                with_element!(*out_dtype, E => {
                    let to = out.get().add(row * width * E::SIZE);
                    scaled::<S, E>(s, x, weight.as_ptr(), scale, to, width);
                });
            }
        }
    }
}

/// `x += y`.
///
/// # Safety
/// `n` elements are readable at `y` and writable at `x`.
#[inline(always)]
pub(crate) unsafe fn add<S: Simd>(s: S, x: *mut f32, y: *const f32, n: usize) {
    let whole = n - n % S::LANES;
    let mut i = 0;
    while i < whole {
        // SAFETY: `i + LANES ≤ n`.
        unsafe { s.store(x.add(i), s.add(s.load(x.add(i)), s.load(y.add(i)))) };
        i += S::LANES;
    }
    while i < n {
        // SAFETY: `i < n`.
        unsafe { *x.add(i) += *y.add(i) };
        i += 1;
    }
}

/// Four vectors of partial sums, element `i` in vector `i / LANES % 4`.
///
/// # Safety
/// `n` elements are readable at `x`.
#[inline(always)]
pub(crate) unsafe fn sum_of_squares<S: Simd>(s: S, x: *const f32, n: usize) -> f32 {
    let mut sums = [s.zero(); 4];
    let whole = n - n % (4 * S::LANES);
    let mut i = 0;
    while i < whole {
        for (j, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `i + 4 · LANES ≤ n`.
            let v = unsafe { s.load(x.add(i + j * S::LANES)) };
            *sum = s.fma(v, v, *sum);
        }
        i += 4 * S::LANES;
    }
    let mut j = 0;
    while i < n {
        let left = S::LANES.min(n - i);
        // SAFETY: `left` elements are left, at most a vector.
        let v = unsafe { F32::load_first(s, x.add(i).cast(), left) };
        sums[j] = s.fma(v, v, sums[j]);
        i += left;
        j += 1;
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// `to = (x · scale) · weight`.
///
/// # Safety
/// `n` elements are readable at `x` and `weight` and writable at `to`.
#[inline(always)]
unsafe fn scaled<S: Simd, E: Element>(s: S, x: *const f32, weight: *const f32, scale: f32, to: *mut u8, n: usize) {
    let scale = s.splat(scale);
    let whole = n - n % S::LANES;
    let mut i = 0;
    while i < whole {
        // SAFETY: `i + LANES ≤ n`.
        unsafe { E::store(s, to.add(i * E::SIZE), s.mul(s.mul(s.load(x.add(i)), scale), s.load(weight.add(i)))) };
        i += S::LANES;
    }
    if i < n {
        let left = n - i;
        // SAFETY: `left < LANES` elements are left.
        unsafe {
            let (x, weight) =
                (F32::load_first(s, x.add(i).cast(), left), F32::load_first(s, weight.add(i).cast(), left));
            E::store_first(s, to.add(i * E::SIZE), s.mul(s.mul(x, scale), weight), left);
        }
    }
}
