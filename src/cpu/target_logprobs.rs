//! `log softmax(logits)[target]`.

use std::sync::{Mutex, PoisonError};

use crate::cpu::buffer::{Buffer, Step};
use crate::cpu::pool::{Pool, Shareable};
use crate::cpu::simd::{Element, F32, Isa, Kernel, Simd, exp};
use crate::error::{Error, Result};

const OP: &str = "target_logprobs";

pub(crate) fn target_logprobs(
    isa: Isa,
    pool: &Pool,
    step: &mut Step,
    rows: std::ops::Range<usize>,
    vocab: usize,
    logits: &Buffer,
) -> Result<()> {
    let targets = &step.batch().targets;
    let targets = targets
        .get(rows.clone())
        .ok_or_else(|| Error::operator(OP, "rows", format!("within 0..{}", targets.len()), format!("{rows:?}")))?;
    logits.check_wide(OP, "logits", targets.len().checked_mul(vocab))?;
    if let Some(target) = targets.iter().find(|&&target| target as usize >= vocab) {
        return Err(Error::operator(OP, "targets", format!("ids below {vocab}"), target));
    }
    let base = Shareable::new(logits.as_ptr().cast::<f32>().cast_mut());
    let logprobs = Mutex::new(vec![Ok(0.0); targets.len()]);
    pool.run(targets.len(), &|_, i| {
        // SAFETY: the buffer has row `i`, and nobody writes it.
        let row = unsafe { std::slice::from_raw_parts(base.get().add(i * vocab).cast_const(), vocab) };
        let logprob = log_sum_exp(isa, row).map(|total| total.logprob(row[targets[i] as usize]));
        logprobs.lock().unwrap_or_else(PoisonError::into_inner)[i] = logprob;
    });
    let logprobs = logprobs.into_inner().unwrap_or_else(PoisonError::into_inner);
    let named = |(i, logprob): (usize, Result<f32, NotANumber>)| logprob.map_err(|bad| bad.error(OP, i));
    let logprobs: Vec<f32> = logprobs.into_iter().enumerate().map(named).collect::<Result<_>>()?;
    step.scored.extend(logprobs);
    Ok(())
}

/// The denominator of a softmax: `max + ln Σ exp(x − max)`, in two parts.
#[derive(Clone, Copy)]
pub(crate) struct LogSumExp {
    max: f32,
    log_sum: f64,
}

impl LogSumExp {
    pub(crate) fn logprob(self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.log_sum) as f32
    }
}

/// A row of logits with a NaN or +∞ in it, at this column; or with nothing above −∞.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NotANumber {
    column: usize,
    logit: f32,
}

impl NotANumber {
    pub(crate) fn error(self, op: &'static str, row: usize) -> Error {
        let Self { column, logit } = self;
        Error::operator(op, "logits", "finite numbers", format!("{logit} in row {row}, column {column}"))
    }
}

/// # Errors
/// The row has no softmax.
pub(crate) fn log_sum_exp(isa: Isa, row: &[f32]) -> Result<LogSumExp, NotANumber> {
    let Range { max, finite } = isa.run(FindRange(row));
    if !finite && let Some(column) = row.iter().position(|&x| x.is_nan() || x == f32::INFINITY) {
        return Err(NotANumber { column, logit: row[column] });
    }
    if max == f32::NEG_INFINITY {
        return Err(NotANumber { column: 0, logit: max });
    }
    Ok(LogSumExp { max, log_sum: isa.run(SumExp { row, max }).ln() })
}

/// The largest of some numbers, and whether all are finite.
pub(crate) struct Range {
    pub(crate) max: f32,
    pub(crate) finite: bool,
}

pub(crate) struct FindRange<'a>(pub(crate) &'a [f32]);

impl Kernel for FindRange<'_> {
    type Out = Range;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Range {
        let whole = self.0.len() - self.0.len() % (2 * S::LANES);
        let mut max = [s.splat(f32::NEG_INFINITY); 2];
        // Finite numbers times 0 are 0; anything else is NaN, and stays.
        let mut nought = [s.zero(); 2];
        let mut i = 0;
        while i < whole {
            for j in 0..2 {
                // SAFETY: `i + 2 · LANES ≤ len`.
                let v = unsafe { s.load(self.0.as_ptr().add(i + j * S::LANES)) };
                max[j] = s.max(max[j], v);
                nought[j] = s.fma(v, s.zero(), nought[j]);
            }
            i += 2 * S::LANES;
        }
        let mut highest = s.reduce_max(s.max(max[0], max[1]));
        let mut finite = s.sum(s.add(nought[0], nought[1])) == 0.0;
        for &x in &self.0[whole..] {
            finite &= x.is_finite();
            if x > highest {
                highest = x;
            }
        }
        Range { max: highest, finite }
    }
}

/// `Σ exp(x − max)`: f32 inside a piece of the row, f64 across pieces.
struct SumExp<'a> {
    row: &'a [f32],
    max: f32,
}

impl Kernel for SumExp<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        const PIECE: usize = 512;
        let max = s.splat(self.max);
        let mut total = 0.0;
        for piece in self.row.chunks(PIECE) {
            let mut sums = [s.zero(); 2];
            let whole = piece.len() - piece.len() % (2 * S::LANES);
            let mut i = 0;
            while i < whole {
                for (j, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `i + 2 · LANES ≤ len`.
                    let v = unsafe { s.load(piece.as_ptr().add(i + j * S::LANES)) };
                    *sum = s.add(*sum, exp(s, s.sub(v, max)));
                }
                i += 2 * S::LANES;
            }
            total += f64::from(s.sum(s.add(sums[0], sums[1])));
            while i < piece.len() {
                let left = S::LANES.min(piece.len() - i);
                let mut lanes = [0f32; 16];
                // SAFETY: `left` elements are left, and no vector has more than 16 lanes.
                unsafe {
                    let v = F32::load_first(s, piece.as_ptr().add(i).cast(), left);
                    s.store(lanes.as_mut_ptr(), exp(s, s.sub(v, max)));
                }
                total += lanes[..left].iter().map(|&x| f64::from(x)).sum::<f64>();
                i += left;
            }
        }
        total
    }
}
