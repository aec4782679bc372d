//! `out = x · weightᵀ + bias`, or that added to what is there.
//!
//! Weights are packed into panels when they are loaded ([`Panels`]). Rows of `x` are converted once to the form that the
//! panels are multiplied with ([`rows`]). Panels are shared out to tasks; of a gated product a task has the same rows of
//! gate and up. It multiplies them tile by tile ([`tiles`]), keeps the results to itself until they are whole, and then
//! writes what they make.

mod codes;
mod floats;
mod rows;
mod tiles;

use crate::cpu::act_mul::ActMul;
use crate::cpu::buffer::{Buffer, Pages};
use crate::cpu::matrix::{Block, GatedMatrix, Matrix};
use crate::cpu::panels::{COLUMNS, Panels};
use crate::cpu::pool::Pool;
use crate::cpu::rms_norm::add;
use crate::cpu::simd::{Isa, Kernel, Simd};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Activation;
use codes::Coded;
use floats::{Paired, Singles};
use rows::{Form, Layout, Prepare};
use tiles::{Task, padded_rows};

const OP: &str = "matmul";

/// Rows that are prepared at once; more only take more room.
const CHUNK_ROWS: usize = 512;
/// Rows that a task prepares.
const PREPARED_ROWS: usize = 16;
/// Up to so many rows the weight streams from memory while it is multiplied.
const FEW_ROWS: usize = 16;
/// Bytes of weight that a task reads where rows are few: long enough to stream, short enough to share out evenly.
const FEW_ROWS_BYTES: usize = 512 << 10;
/// Panels of a task where rows are many: its results stay in the second-level cache.
const MANY_ROWS_PANELS: usize = 8;

/// Room that lasts from call to call.
pub(crate) struct Scratch {
    x: Pages,
    /// Results of each thread.
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
    let k = weight.k();
    let mut blocks = Vec::with_capacity(weight.blocks.len());
    let mut layouts: Vec<Layout> = Vec::new();
    for block in &weight.blocks {
        let panels = block.panels.as_ref();
        let panels = panels.ok_or_else(|| Error::operator(OP, "weight", "a matrix", "a table, for embeddings only"))?;
        let layout = Layout { form: Form::of(isa, x.dtype(), panels), k };
        let form = layouts.iter().position(|known| *known == layout).unwrap_or(layouts.len());
        if form == layouts.len() {
            layouts.push(layout);
        }
        blocks.push(Part { block, panels, form });
    }
    let mut row = 0;
    while row < rows {
        let count = (rows - row).min(CHUNK_ROWS);
        let bytes = |layout: &Layout| padded_rows(count).checked_mul(layout.stride());
        let total = layouts.iter().try_fold(0usize, |total, layout| total.checked_add(bytes(layout)?));
        scratch.x.reserve(total.ok_or_else(|| Error::operator(OP, "rows", "room for them", rows))?)?;
        let mut at = scratch.x.as_mut_ptr();
        let mut prepared = Vec::with_capacity(layouts.len());
        for layout in &layouts {
            prepared.push(Prepared { layout, at });
            at = at.wrapping_add(bytes(layout).unwrap_or_default());
        }
        let (x, x_dtype) = (x.as_ptr().wrapping_add(row * k * x.dtype().size()), x.dtype());
        let call = Call { isa, rows: count, x, x_dtype, prepared, parts: &blocks, target: target.skip_rows(row) };
        call.run(pool, &mut scratch.tasks)?;
        row += count;
    }
    Ok(())
}

/// A block of the weight, and which form of `x` it is multiplied with.
struct Part<'a> {
    block: &'a Block,
    panels: &'a Panels,
    form: usize,
}

/// Rows of `x` in one form.
struct Prepared<'a> {
    layout: &'a Layout,
    at: *mut u8,
}

/// One chunk of rows against all blocks. The target has room for their results.
struct Call<'a> {
    isa: Isa,
    rows: usize,
    x: *const u8,
    x_dtype: DType,
    prepared: Vec<Prepared<'a>>,
    parts: &'a [Part<'a>],
    target: Target,
}

// SAFETY: tasks read `x`, and each writes its own rows of `prepared` or its own columns of the target; `run` keeps the two
// phases apart.
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
        let rows = self.rows;
        let together = self.parts.len() / self.shared().len();
        let few = rows <= FEW_ROWS;
        if few {
            self.prepare(0, rows);
        } else {
            pool.run(rows.div_ceil(PREPARED_ROWS), &|_, task| {
                let first = task * PREPARED_ROWS;
                self.prepare(first, PREPARED_ROWS.min(rows - first));
            });
        }
        let panel_bytes = self.parts.iter().map(|part| part.panels.panel_bytes()).max().unwrap_or(1);
        let most = if few { (FEW_ROWS_BYTES / panel_bytes / together).clamp(4, 64) } else { MANY_ROWS_PANELS };
        let width = self.share(most, pool.threads());
        for room in rooms.iter_mut() {
            room.reserve(together * padded_rows(rows) * width * COLUMNS * size_of::<f32>())?;
        }
        pool.run_with(rooms, self.tasks(width), &|room, task| {
            let (part, first) = self.task(task, width);
            let results = Results { at: room.as_mut_ptr().cast(), width: width * COLUMNS };
            let block = self.parts[part].block;
            let count = (width * COLUMNS).min(block.rows - first * COLUMNS);
            for i in 0..together {
                let part = &self.parts[part + i];
                let results = Results { at: results.at(i * padded_rows(rows)), ..results };
                self.multiply(part, first, count.div_ceil(COLUMNS), results);
                self.add_bias(part.block, first * COLUMNS, count, results);
            }
            self.write(block, first * COLUMNS, count, results);
        });
        Ok(())
    }

    fn prepare(&self, first: usize, count: usize) {
        for &Prepared { layout, at } in &self.prepared {
            self.isa.run(Prepare { layout, x: self.x, dtype: self.x_dtype, first, count, to: at });
        }
    }

    fn multiply(&self, part: &Part<'_>, first: usize, count: usize, results: Results) {
        let Part { panels, form, .. } = *part;
        let Prepared { layout, at } = self.prepared[form];
        let task = Task {
            panels,
            rows: self.rows,
            x: at,
            x_stride: layout.stride(),
            first,
            count,
            sums: results.at,
            stride: results.width,
        };
        match (&layout.form, &panels.scaling) {
            (Form::Integers(integers), Some(scaling)) => {
                self.isa.run_integers(Coded { task, scaling, layout, parts: integers.parts });
            }
            (Form::Bf16, _) => self.isa.run_pairs(Paired(task)),
            _ => self.isa.run(Singles(task)),
        }
    }

    /// The blocks whose panels are shared out: of gate and up, a task has the same rows.
    fn shared(&self) -> &[Part<'_>] {
        match self.target {
            Target::Products { .. } | Target::Added { .. } => self.parts,
            Target::Gated { .. } => &self.parts[..1],
        }
    }

    fn add_bias(&self, block: &Block, first: usize, count: usize, results: Results) {
        let Some(bias) = &block.bias else { return };
        for row in 0..self.rows {
            // SAFETY: the task's results have this row, and nothing else refers to them now.
            let row = unsafe { std::slice::from_raw_parts_mut(results.at(row), count) };
            row.iter_mut().zip(&bias[first..first + count]).for_each(|(sum, bias)| *sum += bias);
        }
    }

    /// Writes a task's results, columns `first..first + count` of a block, to the target.
    fn write(&self, block: &Block, first: usize, count: usize, results: Results) {
        let (isa, rows) = (self.isa, self.rows);
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

    /// Panels of a task: about `most`, in pairs, and so that the threads get as many tasks each.
    fn share(&self, most: usize, threads: usize) -> usize {
        let panels: usize = self.shared().iter().map(|part| part.block.rows.div_ceil(COLUMNS)).sum();
        let rounds = panels.div_ceil(threads * most).max(1);
        panels.div_ceil(threads * rounds).next_multiple_of(4).min(most.next_multiple_of(4))
    }

    fn tasks(&self, width: usize) -> usize {
        self.shared().iter().map(|part| part.block.rows.div_ceil(width * COLUMNS)).sum()
    }

    /// A task's block and first panel in it.
    fn task(&self, mut task: usize, width: usize) -> (usize, usize) {
        for (i, part) in self.shared().iter().enumerate() {
            let tasks = part.block.rows.div_ceil(width * COLUMNS);
            if task < tasks {
                return (i, task * width);
            }
            task -= tasks;
        }
        (0, 0)
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
