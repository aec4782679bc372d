//! `out[t] = table[tokens[t]]`.

use crate::cpu::buffer::{Buffer, Step, convert};
use crate::cpu::matrix::Matrix;
use crate::cpu::pool::{Pool, Shareable};
use crate::cpu::simd::{Element, F32, Isa, Kernel, Simd, with_element};
use crate::error::{Error, Result};
use crate::ops::WeightView;

const OP: &str = "embedding";

/// Elements that a task takes: some microseconds.
const TASK: usize = 32 << 10;

pub(crate) fn embedding(isa: Isa, pool: &Pool, step: &Step, table: &Matrix, out: &mut Buffer) -> Result<()> {
    let (tokens, width) = (&step.batch().tokens, table.k());
    out.check_wide(OP, "out", tokens.len().checked_mul(width))?;
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= table.n()) {
        return Err(Error::operator(OP, "tokens", format!("ids below {}", table.n()), token));
    }
    let to = Shareable::new(out.as_mut_ptr().cast::<f32>());
    let per_task = (TASK / width).max(1);
    pool.run(tokens.len().div_ceil(per_task), &|_, task| {
        let last = tokens.len().min((task + 1) * per_task);
        for (t, &token) in tokens.iter().enumerate().take(last).skip(task * per_task) {
            let after = table.blocks.partition_point(|block| block.start <= token as usize);
            let block = &table.blocks[after - 1];
            // SAFETY: `out` has row `t`, and only this task writes it.
            let to = unsafe { to.get().add(t * width) };
            let row = token as usize - block.start;
            match (&block.dense, &block.panels) {
                (Some(view), _) => isa.run(Row { view, row, width, to }),
                // SAFETY: as above.
                (None, Some(panels)) => panels.row(row, unsafe { std::slice::from_raw_parts_mut(to, width) }),
                (None, None) => {}
            }
        }
    });
    Ok(())
}

/// Row `row` of a dense weight, to `width` writable f32 at `to`.
struct Row<'a> {
    view: &'a WeightView,
    row: usize,
    width: usize,
    to: *mut f32,
}

impl Kernel for Row<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_element!(self.view.dtype, E => {
            let from = &self.view.data[self.row * self.width * E::SIZE..][..self.width * E::SIZE];
            // SAFETY: `from` is the row, and `to` has room for it.
            unsafe { convert::<S, E, F32>(s, from.as_ptr(), self.to.cast(), self.width) };
        });
    }
}
