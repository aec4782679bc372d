//! Pages of the KV cache, copied to others in every plane.

use super::abi::page_copy_args;
use super::call::{Call, Check, pieces};
use super::tables::PAGE_COPY;
use crate::device::{Slice, SliceMut, Stream, Variant};
use crate::dtype::DType;
use crate::error::Result;

const CHECK: Check = Check("page_copy");

/// Copies pages of a cache.
pub struct PageCopy<'a> {
    /// `[planes, pages, page]`, of any dtype.
    pub cache: SliceMut<'a>,
    /// u32 `[count, 2]`: from, to. No page is written twice or both read and written; pairs beyond the cache are
    /// skipped.
    pub pairs: Slice<'a>,
    pub count: usize,
    /// For example, keys and values of each layer.
    pub planes: usize,
    pub pages: usize,
    /// Elements of a page in one plane.
    pub page: usize,
}

impl PageCopy<'_> {
    /// Checks shapes, picks a variant for the device and launches it.
    ///
    /// # Errors
    /// A slice is too short or of the wrong dtype; this build has no variant for the device; the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = PAGE_COPY.pick(stream.arch(), &[])?;
        self.launch_variant(stream, variant)
    }

    /// Launches a given variant, for tuning and tests.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); the variant is not one for this problem.
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        let Self { cache, pairs, count, planes, pages, page } = self;
        CHECK.len("cache", cache.as_slice(), &[planes, pages, page])?;
        CHECK.slice("pairs", pairs, DType::U32, &[count, 2])?;
        let call = Call { kernel: &PAGE_COPY, key: &[] };
        call.check(variant)?;
        if count == 0 || planes == 0 || pages == 0 || page == 0 {
            return Ok(());
        }
        let page_bytes = page * cache.dtype().size();
        let args = page_copy_args {
            cache: cache.address(),
            pairs: pairs.address(),
            plane_bytes: (pages * page_bytes) as u64,
            page_bytes: page_bytes as u64,
            count: CHECK.rows("count", count)?,
            planes: CHECK.size("planes", planes)?,
            pages: u32::try_from(pages).unwrap_or(u32::MAX),
            padding: 0,
        };
        let blocks = [count, planes, pieces(page_bytes.div_ceil(16), variant.threads)];
        let shape = format_args!("{count} of {pages} pages of {page_bytes} bytes in {planes} planes");
        // SAFETY: the cache and the pairs were checked; the kernel touches only pages that lie in the cache.
        unsafe { call.launch(stream, variant, blocks, &args, &shape) }
    }
}
