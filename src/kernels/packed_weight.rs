//! Quantized weights on the device, in the layout of the product's kernels: scales and codes of any checkpoint format.
//!
//! **Codes** of four or eight bits are in blocks of 64 elements of k: first those of all rows, filled up to a multiple of
//! [`ROWS`], for the first 64 elements, then those for the next 64, and so on. A tile's codes of a stage are consecutive
//! bytes. Inside a block, codes are in the order in which the 32 lanes of a warp take them as fragments of the tensor cores:
//! a unit of rows (16; on Volta 32) is one or more pieces of 32 × 16 bytes, lane by lane. A lane has the codes of four steps
//! of 16 elements of k (on Volta, eight steps of 8), eight codes each:
//!
//! - on Volta the step's elements of row `lane`;
//! - elsewhere elements `2(lane % 4)`, `2(lane % 4) + 1` of rows `lane / 4` and `lane / 4 + 8`, then the same 8 elements
//!   further, as in the instruction's operand.
//!
//! Eight codes of four bits are a word: codes 2p and 2p + 1 are at bits 4p and 16 + 4p, so that a shift and a mask put
//! them into a pair of 16-bit floats. Eight codes of eight bits are two words, byte after byte.
//!
//! **Scales** are a word for each group of k and row, rows of a group side by side: the scale in the activations' dtype in
//! the lower half, the zero point in the upper one. Where a scale is no number of that dtype, or codes index a table, it is
//! an f32, and all zero points are the same. Groups are a power of two of at least 16, or one for all of k.

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;

use half::{bf16, f16};

use super::abi::{BURRSTONE_MATMUL_CODE_ROWS, BURRSTONE_MATMUL_GATES};
use super::matmul_plan::{STAGE, WeightKind, gated_rows};
use crate::device::{Memory, Slice, Stream};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{Code, CodedWeight, Zeros};

const GATES: usize = BURRSTONE_MATMUL_GATES as usize;

/// Rows are filled up to a multiple of this.
const ROWS: usize = BURRSTONE_MATMUL_CODE_ROWS as usize;

/// A quantized weight `[n, k]` on the device.
pub struct PackedWeight {
    codes: Memory,
    scales: Memory,
    table: Option<Memory>,
    order: Option<Memory>,
    format: Format,
    dtype: DType,
    n: usize,
    k: usize,
}

/// What a product needs to know of a [`PackedWeight`].
#[derive(Clone, Copy)]
pub struct MatMulCodes<'a> {
    pub(super) codes: Slice<'a>,
    pub(super) scales: Slice<'a>,
    pub(super) table: Option<Slice<'a>>,
    pub(super) format: Format,
    /// Dtype of the activations.
    pub(super) dtype: DType,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// What a row comes from: a row of a block; `None` for one that fills up.
type Source<'a> = Option<(&'a CodedWeight, usize)>;

/// How codes become numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Format {
    pub kind: WeightKind,
    /// Groups have 2^`group_bits` elements of k.
    pub group_bits: u32,
    /// With f32 scales: the zero point of all codes.
    pub zero: Option<u8>,
}

impl PackedWeight {
    /// Blocks of rows, one after another; `None` for weights that the kernels do not take. `dtype` is that of the
    /// activations. The blocks have passed [`CodedWeight::check`], and have one k.
    ///
    /// # Errors
    /// Device memory is short, or the device failed.
    pub fn stacked(stream: &Stream, dtype: DType, blocks: &[&CodedWeight]) -> Result<Option<Self>> {
        let rows = blocks.iter().flat_map(|block| (0..block.shape[0]).map(move |row| Some((*block, row)))).collect();
        Self::new(stream, dtype, blocks, rows)
    }

    /// Gate and up projections of one shape, interleaved as [`MatMul::weight`](super::MatMul::weight) requires.
    ///
    /// # Errors
    /// As [`stacked`](Self::stacked).
    pub fn gated(stream: &Stream, dtype: DType, blocks: [&CodedWeight; 2]) -> Result<Option<Self>> {
        let width = blocks[0].shape[0];
        let of = |row: usize| {
            let (group, inside) = (row / (2 * GATES), row % (2 * GATES));
            let own = group * GATES + inside % GATES;
            (own < width).then_some((blocks[inside / GATES], own))
        };
        Self::new(stream, dtype, &blocks, (0..gated_rows(width)).map(of).collect())
    }

    fn new(stream: &Stream, dtype: DType, blocks: &[&CodedWeight], rows: Vec<Source<'_>>) -> Result<Option<Self>> {
        let Some(format) = Format::of(dtype, blocks) else { return Ok(None) };
        let (n, k) = (rows.len(), blocks[0].shape[1]);
        let layout = Layout::new(stream.arch(), format.kind.bits(), n, k);
        let table = match blocks[0].code {
            Code::Table(table) => {
                let mut memory = stream.alloc(DType::F32, table.len())?;
                memory.write(&table)?;
                Some(memory)
            }
            _ => None,
        };
        let order = match &blocks[0].order {
            Some(order) => {
                let mut memory = stream.alloc(DType::U32, order.len())?;
                memory.write(order)?;
                Some(memory)
            }
            None => None,
        };
        let mut codes = vec![0u8; layout.bytes()];
        let mut scales = vec![0u32; layout.scales(format.group_bits)];
        layout.pack(&mut codes, &rows);
        for (row, (block, own)) in rows.iter().enumerate().filter_map(|(row, source)| Some((row, (*source)?))) {
            for group in 0..k.div_ceil(format.group(k)) {
                let (scale, zero) = block.scale(own, group * format.group(k));
                scales[group * layout.rows + row] = format.word(dtype, scale, zero);
            }
        }
        let (mut on_device, mut of_rows) =
            (stream.alloc(DType::U8, codes.len())?, stream.alloc(DType::U32, scales.len())?);
        on_device.write(&codes)?;
        of_rows.write(&scales)?;
        Ok(Some(Self { codes: on_device, scales: of_rows, table, order, format, dtype, n, k }))
    }

    pub fn codes(&self) -> MatMulCodes<'_> {
        let Self { codes, scales, table, format, dtype, n, k, .. } = self;
        let table = table.as_ref().map(Memory::slice);
        MatMulCodes {
            codes: codes.slice(),
            scales: scales.slice(),
            table,
            format: *format,
            dtype: *dtype,
            n: *n,
            k: *k,
        }
    }

    /// The order of the codes: which input each column belongs to, u32 `[k]`. Products with [`codes`](Self::codes) take
    /// activations in this order, see [`PermuteColumns`](super::PermuteColumns). `None`: as they are.
    pub fn order(&self) -> Option<Slice<'_>> {
        self.order.as_ref().map(Memory::slice)
    }

    /// Bytes of device memory for codes and scales.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }
}

impl Format {
    /// The format of all blocks together; `None` if there is none that keeps their values.
    fn of(dtype: DType, blocks: &[&CodedWeight]) -> Option<Self> {
        let (code, k) = (blocks[0].code, blocks[0].shape[1]);
        if !k.is_multiple_of(16) || matches!(code, Code::E4m3) {
            return None;
        }
        // The finest group is one of all blocks.
        let mut group = k;
        for block in blocks {
            let columns = block.scales.columns.min(k);
            if block.code != code || block.scales.rows != 1 || block.order != blocks[0].order {
                return None;
            }
            if columns < k && !(columns.is_power_of_two() && columns >= 16) {
                return None;
            }
            group = group.min(columns);
        }
        let group_bits = if group == k { u32::BITS - 1 } else { group.trailing_zeros() };
        let kind = WeightKind::Codes { bits: code.bits(), group };
        let narrow = |scale: &f32| match dtype {
            DType::BF16 => bf16::from_f32(*scale).to_f32() == *scale,
            _ => f16::from_f32(*scale).to_f32() == *scale,
        };
        if matches!(code, Code::Table(_)) {
            return Some(Self { kind, group_bits, zero: Some(0) });
        }
        if blocks.iter().all(|block| block.scales.values.iter().all(narrow)) {
            return Some(Self { kind, group_bits, zero: None });
        }
        let mut zeros = blocks.iter().map(|block| match &block.scales.zeros {
            Zeros::All(zero) => Some(*zero),
            Zeros::Each(zeros) => zeros.first().copied().filter(|first| zeros.iter().all(|zero| zero == first)),
        });
        let zero = zeros.next()??;
        zeros.all(|other| other == Some(zero)).then_some(Self { kind, group_bits, zero: Some(zero) })
    }

    fn group(&self, k: usize) -> usize {
        1usize.checked_shl(self.group_bits).map_or(k, |group| group.min(k))
    }

    /// Of a scale and its zero point.
    fn word(&self, dtype: DType, scale: f32, zero: u8) -> u32 {
        match (self.zero, dtype) {
            (Some(_), _) => scale.to_bits(),
            (None, DType::BF16) => u32::from(bf16::from_f32(scale).to_bits()) | u32::from(zero) << 16,
            (None, _) => u32::from(f16::from_f32(scale).to_bits()) | u32::from(zero) << 16,
        }
    }
}

/// Where codes are. [`ROWS`] rows of a block of k are a piece; in a piece, a code is at the sum of a bit of its row's and one
/// of its column's.
struct Layout {
    /// Whether a lane has codes of one row: on Volta.
    by_rows: bool,
    bits: usize,
    k: usize,
    /// Filled up.
    rows: usize,
    blocks: usize,
}

impl Layout {
    fn new(arch: u32, bits: usize, n: usize, k: usize) -> Self {
        Self { by_rows: arch < 75, bits, k, rows: n.next_multiple_of(ROWS), blocks: k.div_ceil(STAGE) }
    }

    /// Bytes of a piece.
    fn piece(&self) -> usize {
        ROWS * STAGE * self.bits / 8
    }

    /// Bytes of codes.
    fn bytes(&self) -> usize {
        self.blocks * self.rows / ROWS * self.piece()
    }

    /// Writes the codes, on all cores.
    fn pack(&self, codes: &mut [u8], rows: &[Source<'_>]) {
        let mut pieces: Vec<Vec<&mut [u8]>> = rows.chunks(ROWS).map(|_| Vec::with_capacity(self.blocks)).collect();
        let together = pieces.len();
        for (i, piece) in codes.chunks_exact_mut(self.piece()).enumerate() {
            pieces[i % together].push(piece);
        }
        let work = Mutex::new(pieces.into_iter().zip(rows.chunks(ROWS)));
        let next = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
        let columns: Vec<usize> = (0..STAGE).map(|column| self.column_bit(column)).collect();
        let pack = || {
            while let Some((mut pieces, rows)) = next() {
                for (row, (block, own)) in rows.iter().enumerate().filter_map(|(row, source)| Some((row, (*source)?))) {
                    let first = self.row_bit(row);
                    for column in 0..self.blocks * STAGE {
                        // Columns that fill up the last block are zeros.
                        let code =
                            if column < self.k { block.code(own, column) } else { block.zero_code(own, self.k - 1) };
                        let bit = first + columns[column % STAGE];
                        pieces[column / STAGE][bit / 8] |= code << (bit % 8);
                    }
                }
            }
        };
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(together);
        thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(pack))));
    }

    /// Words of scales: of groups that begin in the last block too.
    fn scales(&self, group_bits: u32) -> usize {
        self.rows * (self.blocks * STAGE).div_ceil(1 << group_bits)
    }

    fn row_bit(&self, row: usize) -> usize {
        const LANE: usize = 128;
        let unit = if self.by_rows { 32 } else { 16 };
        let (first, inside) = (row / unit * unit * STAGE * self.bits, row % unit);
        match (self.by_rows, self.bits) {
            (true, _) => first + inside * LANE,
            (false, 4) => first + inside % 8 * 4 * LANE + inside / 8 * 4,
            (false, _) => first + inside % 8 * 4 * LANE + inside / 8 * 16,
        }
    }

    fn column_bit(&self, column: usize) -> usize {
        const LANE: usize = 128;
        // The lane among those that share a row; the code among those of the lane's step.
        let (step, lane, code) = if self.by_rows {
            (column / 8, 0, column % 8)
        } else {
            (column / 16, column % 8 / 2, column % 16 / 8 * 4 + column % 2)
        };
        let (word, bit) = match self.bits {
            4 => (step, code / 2 * 4 + code % 2 * 16),
            _ => (2 * step + code / 4, code % 4 * 8),
        };
        word / 4 * 32 * LANE + lane * LANE + word % 4 * 32 + bit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each code has bits of its own, and together they fill a piece.
    #[test]
    fn the_layout_is_a_bijection() {
        for (arch, bits) in [(70, 4), (70, 8), (75, 4), (80, 4), (80, 8), (90, 8)] {
            let layout = Layout::new(arch, bits, 130, 150);
            let mut seen = vec![false; layout.piece() * 8 / bits];
            for row in 0..ROWS {
                for column in 0..STAGE {
                    let bit = layout.row_bit(row) + layout.column_bit(column);
                    assert!(bit.is_multiple_of(bits), "sm_{arch}, {bits} bits: ({row}, {column}) is at bit {bit}");
                    let seen = &mut seen[bit / bits];
                    assert!(!std::mem::replace(seen, true), "sm_{arch}, {bits} bits: ({row}, {column}) is not alone");
                }
            }
            assert!(seen.into_iter().all(|seen| seen));
        }
    }
}
