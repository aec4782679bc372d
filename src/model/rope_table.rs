//! The table of rotary factors on the device.

use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{self, Batch, Ops};

use super::rope::Rope;

/// Grows with the longest sequence so far: few are as long as the model allows.
pub(super) struct RopeTable<O: Ops> {
    rope: Rope,
    rotary_dim: usize,
    factors: O::Buffer,
    /// Uploaded rows, of each range of the table.
    there: Vec<usize>,
}

/// Initial rows.
const FIRST_ROWS: usize = 1024;

impl<O: Ops> RopeTable<O> {
    /// # Errors
    /// Device memory is short.
    pub fn new(ops: &O, rope: Rope, rotary_dim: usize) -> Result<Self> {
        let factors = ops.buffer(DType::F32, rope.table_rows() * rotary_dim)?;
        let there = vec![0; rope.table_rows() / rope.positions().max(1)];
        Ok(Self { rope, rotary_dim, factors, there })
    }

    /// Fails if the batch's rows are missing and cannot be added.
    pub fn check(&self, batch: &Batch) -> Result<()> {
        batch.check_rope(self.rope.table_rows(), self.rotary_dim)
    }

    /// Uploads the batch's rows if they are missing.
    pub fn reach(&mut self, ops: &O, batch: &Batch) -> Result<()> {
        let positions = self.rope.positions();
        for (part, there) in self.there.iter_mut().enumerate() {
            let all = part * positions..(part + 1) * positions;
            let rows = batch.rope_rows.iter().map(|&row| row as usize).filter(|row| all.contains(row));
            let Some(len) = rows.max().map(|row| row - all.start + 1).filter(|len| len > there) else { continue };
            let len = len.next_power_of_two().max(FIRST_ROWS).min(positions);
            let rows = all.start + *there..all.start + len;
            ops.write_floats(&mut self.factors, rows.start * self.rotary_dim, &self.rope.factors(rows))?;
            *there = len;
        }
        Ok(())
    }

    pub fn view(&self) -> ops::RopeTable<'_, O> {
        ops::RopeTable { factors: &self.factors, rows: self.rope.table_rows() }
    }
}
