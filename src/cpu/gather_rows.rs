//! `out[i] = x[logit_rows[start + i]]`.

use std::ops::Range;

use crate::cpu::buffer::{Buffer, Step};
use crate::cpu::pool::{Pool, Shareable};
use crate::error::{Error, Result};

const OP: &str = "gather_rows";

/// Bytes that a task copies: some microseconds.
const TASK: usize = 128 << 10;

pub(crate) fn gather_rows(
    pool: &Pool,
    step: &Step,
    rows: Range<usize>,
    width: usize,
    x: &Buffer,
    out: &mut Buffer,
) -> Result<()> {
    let all = &step.batch().logit_rows;
    let Some(rows) = all.get(rows.clone()) else {
        let expected = format!("a range of {} logit rows", all.len());
        return Err(Error::operator(OP, "rows", expected, format!("{rows:?}")));
    };
    if x.dtype() != out.dtype() {
        return Err(Error::operator(OP, "out", x.dtype(), out.dtype()));
    }
    x.check(OP, "x", step.tokens().checked_mul(width))?;
    out.check(OP, "out", rows.len().checked_mul(width))?;
    let bytes = width * x.dtype().size();
    let (from, to) = (Shareable::new(x.as_ptr().cast_mut()), Shareable::new(out.as_mut_ptr()));
    let per_task = (TASK / bytes.max(1)).max(1);
    pool.run(rows.len().div_ceil(per_task), &|_, task| {
        for (i, &row) in rows.iter().enumerate().skip(task * per_task).take(per_task) {
            // SAFETY: the row is a token of the batch, so `x` has it; `out` has row `i`, which this task alone writes.
            unsafe {
                std::ptr::copy_nonoverlapping(from.get().add(row as usize * bytes), to.get().add(i * bytes), bytes);
            }
        }
    });
    Ok(())
}
