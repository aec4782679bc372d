//! Updates the device's persistent page table.

use super::abi::page_table_update_args;
use super::call::{Call, Check};
use super::tables::PAGE_TABLE_UPDATE;
use crate::device::{Slice, SliceMut, Stream, Variant};
use crate::dtype::DType;
use crate::error::Result;

const CHECK: Check = Check("page_table_update");

/// Writes entries of a page table.
pub struct PageTableUpdate<'a> {
    /// u32.
    pub table: SliceMut<'a>,
    /// u32 `[count, 2]`: entry, page. No entry twice; entries beyond the table are skipped.
    pub changes: Slice<'a>,
    pub count: usize,
}

impl PageTableUpdate<'_> {
    /// Checks shapes, picks a variant for the device and launches it.
    ///
    /// # Errors
    /// A slice is too short or of the wrong dtype; this build has no variant for the device; the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = PAGE_TABLE_UPDATE.pick(stream.arch(), &[])?;
        self.launch_variant(stream, variant)
    }

    /// Launches a given variant, for tuning and tests.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); the variant is not one for this problem.
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        let Self { table, changes, count } = self;
        CHECK.slice("table", table.as_slice(), DType::U32, &[])?;
        CHECK.slice("changes", changes, DType::U32, &[count, 2])?;
        let call = Call { kernel: &PAGE_TABLE_UPDATE, key: &[] };
        call.check(variant)?;
        if count == 0 {
            return Ok(());
        }
        let entries = table.len();
        let args = page_table_update_args {
            table: table.address(),
            changes: changes.address(),
            count: CHECK.rows("count", count)?,
            entries: u32::try_from(entries).unwrap_or(u32::MAX),
        };
        let blocks = [count.div_ceil(variant.threads as usize), 1, 1];
        // SAFETY: table and changes were checked; the kernel writes only entries of the table.
        unsafe { call.launch(stream, variant, blocks, &args, &format_args!("{count} of {entries} entries")) }
    }
}
