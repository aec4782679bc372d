//! `out = x · weightᵀ + bias`, or that added to what is there.
//!
//! The rows of the weight are shared out to tasks, which multiply them on one of two walks: see [`Walk`].
//!
//! In a gated product a task multiplies rows of the gate and the same rows of what it lets through, keeps both results
//! to itself, and writes what they make. So does a task whose results are added to others: those are not touched before the
//! results are whole.

use crate::cpu::act_mul::ActMul;
use crate::cpu::buffer::{Block, Buffer, GatedMatrix, Matrix, Pages};
use crate::cpu::pool::Pool;
use crate::cpu::rms_norm::add;
use crate::cpu::simd::{Isa, Kernel, Simd};
use crate::cpu::walk::{Columns, PACKED_COLUMNS, Part, Walk};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Activation;

const OP: &str = "matmul";

/// Up to this many rows the weight is used as it comes: beyond, packing it costs less than converting it for every
/// three rows.
const FEW_ROWS: usize = 24;
/// Rows that are prepared at once; more only take more room.
const CHUNK_ROWS: usize = 512;
/// Bytes of weight that a task reads where rows are few: long enough to stream, short enough to share out evenly.
const DIRECT_BYTES: usize = 512 << 10;

/// Room that lasts from call to call.
pub(crate) struct Scratch {
    x: Pages,
    columns: Vec<Pages>,
}

impl Scratch {
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let columns = (0..threads).map(|_| Pages::new(0)).collect::<Result<_>>()?;
        Ok(Self { x: Pages::new(0)?, columns })
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
    let k_bytes = weight.k().div_ceil(64) * 64 * 4;
    let mut row = 0;
    while row < rows {
        let count = (rows - row).min(CHUNK_ROWS);
        let rounded = if count <= FEW_ROWS { count } else { count.next_multiple_of(12) };
        let room = rounded.checked_mul(k_bytes).ok_or_else(|| Error::operator(OP, "rows", "room for them", rows))?;
        scratch.x.reserve(room)?;
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
            call.run(pool, &mut scratch.columns)?;
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

// SAFETY: tasks read `x` and `prepared`, and each writes its own panel of `prepared` or its own columns of the target;
// `run` keeps the two phases apart.
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
    fn run(&self, pool: &Pool, columns: &mut [Pages]) -> Result<()> {
        let Walk { rows, k, .. } = self.walk;
        let (most, tile, room) = if rows <= FEW_ROWS {
            (0..rows).for_each(|first| self.walk.part(Part::Prepare { first, panel: 1 }));
            let together = self.blocks.len() / self.shared().len();
            ((DIRECT_BYTES / (k * 2 * together)).clamp(4, 1024), 4, 0)
        } else {
            let (panel, tile, room) = self.walk.packed_shape();
            pool.run(rows.div_ceil(panel), &|_, task| self.walk.part(Part::Prepare { first: task * panel, panel }));
            (PACKED_COLUMNS, tile, room)
        };
        let width = self.share(most, tile, pool.threads());
        let sums = match self.target {
            Target::Products { .. } => 0,
            Target::Added { .. } => rows * width * size_of::<f32>(),
            Target::Gated { .. } => rows * 2 * width * size_of::<f32>(),
        };
        for pages in columns.iter_mut() {
            pages.reserve(room + sums)?;
        }
        pool.run_with(columns, self.tasks(width), &|pages, task| {
            let (block, first, count) = self.task(task, width);
            let room_for_sums = pages.as_mut_ptr().wrapping_add(room).cast();
            self.multiply(block, first, count, pages.as_mut_ptr(), room_for_sums);
        });
        Ok(())
    }

    /// The blocks whose rows are shared out: of a gate and what it lets through, a task has the same rows.
    fn shared(&self) -> &[&Block] {
        match self.target {
            Target::Products { .. } | Target::Added { .. } => self.blocks,
            Target::Gated { .. } => &self.blocks[..1],
        }
    }

    /// A task: rows of a block, by way of `room`; of a gated call of both blocks. Results that are not written as they are
    /// have a place at `sums`.
    fn multiply(&self, block: usize, first: usize, count: usize, room: *mut u8, sums: *mut f32) {
        let Walk { isa, rows, .. } = self.walk;
        let few = rows <= FEW_ROWS;
        let part = |to| if few { Part::Direct { to, first, count } } else { Part::Packed { to, first, count, room } };
        match self.target {
            Target::Products { out, n } => {
                let block = self.blocks[block];
                self.walk.part(part(Columns { block, out: out.wrapping_add(block.start), stride: n }));
            }
            Target::Added { to, n } => {
                let block = self.blocks[block];
                // The task's rows of the block come first.
                self.walk.part(part(Columns { block, out: sums.wrapping_sub(first), stride: count }));
                for row in 0..rows {
                    let to = to.wrapping_add(row * n + block.start + first);
                    isa.run(Add { from: sums.wrapping_add(row * count), to, n: count });
                }
            }
            Target::Gated { out, dtype, width, activation } => {
                for (i, &block) in self.blocks.iter().enumerate() {
                    let out = sums.wrapping_add(i * count).wrapping_sub(first);
                    self.walk.part(part(Columns { block, out, stride: 2 * count }));
                }
                for row in 0..rows {
                    let gate = sums.wrapping_add(row * 2 * count);
                    let to = out.wrapping_add((row * width + first) * dtype.size());
                    isa.run(ActMul { gate, up: gate.wrapping_add(count), to, dtype, n: count, activation });
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
