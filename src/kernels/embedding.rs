//! `out[t] = table[rows[t]]`.

use super::abi::embedding_args;
use super::call::{Call, Check, pieces};
use super::tables::EMBEDDING;
use crate::device::{Slice, SliceMut, Stream, Variant};
use crate::dtype::DType;
use crate::error::Result;

const CHECK: Check = Check("embedding");

/// Gathers rows of a table: token embeddings, or any rows by indices on the device.
pub struct Embedding<'a> {
    /// `[_, width]`, of any dtype.
    pub table: Slice<'a>,
    /// u32 `[tokens]`. An index beyond the table gives a row with every bit set (NaN).
    pub rows: Slice<'a>,
    /// `[tokens, width]`, of the table's dtype.
    pub out: SliceMut<'a>,
    pub tokens: usize,
    pub width: usize,
}

impl Embedding<'_> {
    /// Checks shapes, picks a variant for the device and launches it.
    ///
    /// # Errors
    /// A slice is too short or of the wrong dtype; this build has no variant for the device; the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = EMBEDDING.pick(stream.arch(), &[])?;
        self.launch_variant(stream, variant)
    }

    /// Launches a given variant, for tuning and tests.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); the variant is not one for this problem.
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        let Self { table, rows, out, tokens, width } = self;
        CHECK.slice("rows", rows, DType::U32, &[tokens])?;
        CHECK.slice("out", out.as_slice(), table.dtype(), &[tokens, width])?;
        let call = Call { kernel: &EMBEDDING, key: &[] };
        call.check(variant)?;
        if tokens == 0 || width == 0 {
            return Ok(());
        }
        let row_bytes = width * table.dtype().size();
        let args = embedding_args {
            out: out.address(),
            table: table.address(),
            rows: rows.address(),
            row_bytes: row_bytes as u64,
            tokens: CHECK.rows("tokens", tokens)?,
            table_rows: u32::try_from(table.len() / width).unwrap_or(u32::MAX),
        };
        let blocks = [tokens, pieces(row_bytes.div_ceil(16), variant.threads), 1];
        let shape = format_args!("{tokens} rows of {width} {}", table.dtype());
        // SAFETY: `rows` and `out` were checked; the kernel reads only rows that lie in the table.
        unsafe { call.launch(stream, variant, blocks, &args, &shape) }
    }
}
