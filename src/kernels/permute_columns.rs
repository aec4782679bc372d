//! `out[r][j] = x[r][order[j]]`.

use super::abi::permute_columns_args;
use super::call::{Call, Check, pieces};
use super::tables::PERMUTE_COLUMNS;
use crate::device::{Slice, SliceMut, Stream, Variant};
use crate::dtype::DType;
use crate::error::{Error, Result};

const CHECK: Check = Check("permute_columns");
/// Elements of a thread, and what addresses are multiples of, in bytes.
const VEC8: usize = 8;
const ALIGNMENT: u64 = 16;

/// Permutes the columns of activations: the order in which a weight was quantized is that of its codes
/// ([`PackedWeight::order`](super::PackedWeight::order)).
pub struct PermuteColumns<'a> {
    /// `[rows, width]` of f16 or bf16.
    pub x: Slice<'a>,
    /// u32 `[width]`, aligned to 16 bytes. An index beyond the row gives an element with every bit set (NaN).
    pub order: Slice<'a>,
    /// `[rows, width]`, of x's dtype, aligned to 16 bytes.
    pub out: SliceMut<'a>,
    pub rows: usize,
    /// A multiple of 8.
    pub width: usize,
}

impl PermuteColumns<'_> {
    /// Checks shapes, picks a variant for the device and launches it.
    ///
    /// # Errors
    /// A slice is too short, misaligned or of the wrong dtype; this build has no variant for the device; the device
    /// failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = PERMUTE_COLUMNS.pick(stream.arch(), &[])?;
        self.launch_variant(stream, variant)
    }

    /// Launches a given variant, for tuning and tests.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); the variant is not one for this problem.
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        let Self { x, order, out, rows, width } = self;
        CHECK.dtype("x", x.dtype(), &[DType::BF16, DType::F16])?;
        CHECK.len("x", x, &[rows, width])?;
        CHECK.slice("order", order, DType::U32, &[width])?;
        CHECK.slice("out", out.as_slice(), x.dtype(), &[rows, width])?;
        if !width.is_multiple_of(VEC8) {
            return Err(Error::operator(CHECK.0, "width", format!("a multiple of {VEC8}"), width));
        }
        for (field, address) in [("order", order.address()), ("out", out.address())] {
            if !address.is_multiple_of(ALIGNMENT) {
                let found = format!("{address:#x}");
                return Err(Error::operator(CHECK.0, field, format!("a multiple of {ALIGNMENT} bytes"), found));
            }
        }
        let call = Call { kernel: &PERMUTE_COLUMNS, key: &[] };
        call.check(variant)?;
        if rows == 0 || width == 0 {
            return Ok(());
        }
        let args = permute_columns_args {
            out: out.address(),
            x: x.address(),
            order: order.address(),
            rows: CHECK.rows("rows", rows)?,
            width: CHECK.size("width", width)?,
        };
        let blocks = [rows, pieces(width / VEC8, variant.threads), 1];
        let shape = format_args!("[{rows}, {width}] of {}", x.dtype());
        // SAFETY: every slice was checked against the shape; the kernel reads only elements of the row.
        unsafe { call.launch(stream, variant, blocks, &args, &shape) }
    }
}
