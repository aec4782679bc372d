//! `out = x · weightᵀ + bias`, or that added to what is there.
//!
//! The rows of the weight are shared out to tasks. Each multiplies its own (see [`Walk`]), of a gated product the same rows
//! of the gate and of what it gates, keeps the results to itself until they are whole, and then writes what they make.

use crate::cpu::act_mul::ActMul;
use crate::cpu::buffer::{Block, Buffer, GatedMatrix, Matrix, Pages};
use crate::cpu::pool::Pool;
use crate::cpu::rms_norm::add;
use crate::cpu::simd::{Isa, Kernel, Simd};
use crate::cpu::tile::{PACKED_COLUMNS, padded_rows};
use crate::cpu::walk::{Columns, PACKED_BYTES, Walk};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Activation;

const OP: &str = "matmul";

/// Rows that are prepared at once; more only take more room.
const CHUNK_ROWS: usize = 512;
/// Rows that a task prepares.
const PREPARED_ROWS: usize = 16;
/// At most so many rows of the weight are a task's where they are packed: its results stay in the second-level cache.
const TASK_COLUMNS: usize = 96;
/// Bytes of weight that a task reads where rows are few: long enough to stream, short enough to share out evenly.
const DIRECT_BYTES: usize = 512 << 10;

/// Room that lasts from call to call.
pub(crate) struct Scratch {
    x: Pages,
    /// Of each thread: packed columns, and behind them results.
    tasks: Vec<Pages>,
}

impl Scratch {
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let tasks = (0..threads).map(|_| Pages::new(0)).collect::<Result<_>>()?;
        Ok(Self { x: Pages::new(0)?, tasks })
    }
}

pub(crate) fn matmul(
    isa: Isa,
    pool: &Pool,
    scratch: &mut Scratch,
    rows: usize,
    x: &Buffer,
    weight: &Matrix,
    out: &mut Buffer,
) -> Result<()> {
    x.check(OP, "x", rows.checked_mul(weight.k()))?;
    out.check_wide(OP, "out", rows.checked_mul(weight.n()))?;
    let target = Target::Products { out: out.as_mut_ptr().cast(), n: weight.n() };
    multiply(isa, pool, scratch, rows, x, weight, target)
}

pub(crate) fn matmul_add(
    isa: Isa,
    pool: &Pool,
    scratch: &mut Scratch,
    rows: usize,
    x: &Buffer,
    weight: &Matrix,
    residual: &mut Buffer,
) -> Result<()> {
    const OP: &str = "matmul_add";
    x.check(OP, "x", rows.checked_mul(weight.k()))?;
    residual.check_wide(OP, "residual", rows.checked_mul(weight.n()))?;
    let target = Target::Added { to: residual.as_mut_ptr().cast(), n: weight.n() };
    multiply(isa, pool, scratch, rows, x, weight, target)
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn gated_matmul(
    isa: Isa,
    pool: &Pool,
    scratch: &mut Scratch,
    rows: usize,
    x: &Buffer,
    weight: &GatedMatrix,
    activation: Activation,
    out: &mut Buffer,
) -> Result<()> {
    const OP: &str = "gated_matmul";
    x.check(OP, "x", rows.checked_mul(weight.k()))?;
    out.check(OP, "out", rows.checked_mul(weight.width()))?;
    let target = Target::Gated { out: out.as_mut_ptr(), dtype: out.dtype(), width: weight.width(), activation };
    multiply(isa, pool, scratch, rows, x, weight.stacked(), target)
}

fn multiply(
    isa: Isa,
    pool: &Pool,
    scratch: &mut Scratch,
    rows: usize,
    x: &Buffer,
    weight: &Matrix,
    target: Target,
) -> Result<()> {
    let can_pair = |block: &Block| isa.has_pairs() && x.dtype() == DType::BF16 && block.dtype == DType::BF16;
    // A gate and what it lets through are one call.
    let together = matches!(target, Target::Gated { .. });
    let all_can = weight.blocks.iter().all(can_pair);
    let mut row = 0;
    while row < rows {
        let count = (rows - row).min(CHUNK_ROWS);
        let bytes = Walk::prepared_bytes(count, weight.k());
        scratch.x.reserve(bytes.ok_or_else(|| Error::operator(OP, "rows", "room for them", rows))?)?;
        for paired in [false, true] {
            let is_paired = |block: &Block| if together { all_can } else { can_pair(block) };
            let blocks: Vec<&Block> = weight.blocks.iter().filter(|block| is_paired(block) == paired).collect();
            if blocks.is_empty() {
                continue;
            }
            let walk = Walk {
                isa,
                paired,
                rows: count,
                k: weight.k(),
                x: x.as_ptr().wrapping_add(row * weight.k() * x.dtype().size()),
                x_dtype: x.dtype(),
                prepared: scratch.x.as_mut_ptr(),
            };
            let call = Call { walk, blocks: &blocks, target: target.skip_rows(row) };
            call.run(pool, &mut scratch.tasks)?;
        }
        row += count;
    }
    Ok(())
}

/// One chunk of rows against the blocks of one kind of product. The target has room for their results.
struct Call<'a> {
    walk: Walk,
    blocks: &'a [&'a Block],
    target: Target,
}

// SAFETY: tasks read `x` and `prepared`, and each writes its own rows of `prepared` or its own columns of the target; `run`
// keeps the two phases apart.
unsafe impl Sync for Call<'_> {}

/// What becomes of a call's results.
#[derive(Clone, Copy)]
enum Target {
    /// `[rows, n]`, those of all blocks.
    Products { out: *mut f32, n: usize },
    /// The same, added to what is there.
    Added { to: *mut f32, n: usize },
    /// `activation(gate) · up` of the two blocks: `[rows, width]` of `dtype`.
    Gated { out: *mut u8, dtype: DType, width: usize, activation: Activation },
}

impl Target {
    /// The same behind so many rows.
    fn skip_rows(self, rows: usize) -> Self {
        match self {
            Self::Products { out, n } => Self::Products { out: out.wrapping_add(rows * n), n },
            Self::Added { to, n } => Self::Added { to: to.wrapping_add(rows * n), n },
            Self::Gated { out, dtype, width, activation } => {
                Self::Gated { out: out.wrapping_add(rows * width * dtype.size()), dtype, width, activation }
            }
        }
    }
}

impl Call<'_> {
    fn run(&self, pool: &Pool, rooms: &mut [Pages]) -> Result<()> {
        let Walk { rows, k, .. } = self.walk;
        let together = self.blocks.len() / self.shared().len();
        let (most, unit) = if self.walk.is_direct() {
            self.walk.prepare(0, rows);
            ((DIRECT_BYTES / (k * 2 * together)).clamp(4, 1024), 4)
        } else {
            pool.run(rows.div_ceil(PREPARED_ROWS), &|_, task| {
                let first = task * PREPARED_ROWS;
                self.walk.prepare(first, PREPARED_ROWS.min(rows - first));
            });
            (TASK_COLUMNS, PACKED_COLUMNS)
        };
        let width = self.share(most, unit, pool.threads());
        for room in rooms.iter_mut() {
            room.reserve(PACKED_BYTES + together * padded_rows(rows) * width * size_of::<f32>())?;
        }
        pool.run_with(rooms, self.tasks(width), &|room, task| {
            let (block, first, count) = self.task(task, width);
            let results = Results { at: room.as_mut_ptr().wrapping_add(PACKED_BYTES).cast(), width };
            for i in 0..together {
                let block = self.blocks[block + i];
                let sums = results.at(i * padded_rows(rows));
                self.walk.multiply(Columns { block, first, count, sums, stride: width }, room.as_mut_ptr());
                self.add_bias(block, first, count, Results { at: sums, width });
            }
            self.write(self.blocks[block], first, count, results);
        });
        Ok(())
    }

    /// The blocks whose rows are shared out: of a gate and what it gates, a task has the same rows.
    fn shared(&self) -> &[&Block] {
        match self.target {
            Target::Products { .. } | Target::Added { .. } => self.blocks,
            Target::Gated { .. } => &self.blocks[..1],
        }
    }

    fn add_bias(&self, block: &Block, first: usize, count: usize, results: Results) {
        let Some(bias) = &block.bias else { return };
        for row in 0..self.walk.rows {
            // SAFETY: the task's results have this row, and nothing else refers to them now.
            let row = unsafe { std::slice::from_raw_parts_mut(results.at(row), count) };
            row.iter_mut().zip(&bias[first..first + count]).for_each(|(sum, bias)| *sum += bias);
        }
    }

    /// Writes a task's results, columns `first..first + count` of a block, to the target.
    fn write(&self, block: &Block, first: usize, count: usize, results: Results) {
        let Walk { isa, rows, .. } = self.walk;
        for row in 0..rows {
            let from = results.at(row);
            match self.target {
                Target::Products { out, n } => {
                    let to = out.wrapping_add(row * n + block.start + first);
                    // SAFETY: both have `count` elements: this task's results, and its columns of the target.
                    unsafe { to.copy_from_nonoverlapping(from, count) };
                }
                Target::Added { to, n } => {
                    isa.run(Add { from, to: to.wrapping_add(row * n + block.start + first), n: count });
                }
                Target::Gated { out, dtype, width, activation } => {
                    let to = out.wrapping_add((row * width + first) * dtype.size());
                    let up = results.at(padded_rows(rows) + row);
                    isa.run(ActMul { gate: from, up, to, dtype, n: count, activation });
                }
            }
        }
    }

    /// Rows of the weight for a task: about `most`, in whole tiles, and so that the threads get as many tasks each.
    fn share(&self, most: usize, tile: usize, threads: usize) -> usize {
        let n: usize = self.shared().iter().map(|block| block.rows).sum();
        let rounds = n.div_ceil(threads * most).max(1);
        n.div_ceil(threads * rounds).next_multiple_of(tile).min(most.next_multiple_of(tile))
    }

    fn tasks(&self, width: usize) -> usize {
        self.shared().iter().map(|block| block.rows.div_ceil(width)).sum()
    }

    /// Block, first row in it and number of rows of a task.
    fn task(&self, mut task: usize, width: usize) -> (usize, usize, usize) {
        for (i, block) in self.shared().iter().enumerate() {
            let tasks = block.rows.div_ceil(width);
            if task < tasks {
                return (i, task * width, width.min(block.rows - task * width));
            }
            task -= tasks;
        }
        (0, 0, 0)
    }
}

/// A task's results, rows of `width`.
#[derive(Clone, Copy)]
struct Results {
    at: *mut f32,
    width: usize,
}

impl Results {
    fn at(&self, row: usize) -> *mut f32 {
        self.at.wrapping_add(row * self.width)
    }
}

/// `n` elements at `from`, added to those at `to`: this task's alone.
struct Add {
    from: *const f32,
    to: *mut f32,
    n: usize,
}

impl Kernel for Add {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: both have `n` elements, by the room that `run` makes and the check of the residual.
        unsafe { add(s, self.to, self.from, self.n) };
    }
}
