//! What kernels read and write: activations, gains, the batch.

use crate::cpu::page_table_update::page_table_update;
use crate::cpu::simd::{Element, F32, Isa, Kernel, Simd, with_element};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{Batch, PageTableMark, Sampled, WeightView};

/// Zeroed, page-aligned memory that the system hands out as it is touched.
pub(crate) struct Pages(memmap2::MmapMut);

impl Pages {
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let no_room = |source: std::io::Error| Error::Device {
            device: "cpu".to_owned(),
            reason: format!("no room for {bytes} bytes: {source}"),
        };
        let map = memmap2::MmapMut::map_anon(bytes.max(1)).map_err(no_room)?;
        #[cfg(target_os = "linux")]
        if bytes >= 1 << 21 {
            // Large pages are a wish: where there are none, small ones serve.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self(map))
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Makes room for at least `bytes`; what was in it is lost when it grows.
    pub(crate) fn reserve(&mut self, bytes: usize) -> Result<()> {
        if self.len() < bytes {
            *self = Self::new(bytes.next_power_of_two())?;
        }
        Ok(())
    }
}

/// `len` elements of activations, zeros at first.
pub struct Buffer {
    dtype: DType,
    len: usize,
    pages: Pages,
}

impl Buffer {
    pub(crate) fn new(dtype: DType, len: usize) -> Result<Self> {
        check_dtype("buffer", dtype)?;
        let bytes = len.checked_mul(dtype.size()).ok_or_else(|| too_large("buffer", len))?;
        Ok(Self { dtype, len, pages: Pages::new(bytes)? })
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Overwrites the first elements, rounded to the buffer's dtype.
    ///
    /// # Errors
    /// More values than the buffer has room for.
    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        if values.len() > self.len {
            return Err(Error::operator("write", "values", format!("at most {}", self.len), values.len()));
        }
        with_element!(self.dtype, E => Isa::best().run(Convert::<F32, E>::new(
            values.as_ptr().cast(),
            self.pages.as_mut_ptr(),
            values.len(),
        )));
        Ok(())
    }

    /// The first `len` elements as f32.
    ///
    /// # Errors
    /// `len` is more than the buffer has.
    pub fn read(&self, len: usize) -> Result<Vec<f32>> {
        if len > self.len {
            return Err(Error::operator("read", "len", format!("at most {}", self.len), len));
        }
        let mut values = vec![0f32; len];
        with_element!(self.dtype, E => Isa::best().run(Convert::<E, F32>::new(
            self.pages.as_ptr(),
            values.as_mut_ptr().cast(),
            len,
        )));
        Ok(values)
    }

    /// Elements `start` and on of an f32 buffer, so many.
    ///
    /// # Errors
    /// The buffer is of another dtype, or shorter.
    pub(crate) fn floats_mut(&mut self, op: &'static str, start: usize, len: usize) -> Result<&mut [f32]> {
        let end = start.saturating_add(len);
        self.check_wide(op, "x", Some(end))?;
        Ok(bytemuck::cast_slice_mut(&mut self.pages.bytes_mut()[4 * start..4 * end]))
    }

    /// The first `len` elements of an f32 buffer.
    ///
    /// # Errors
    /// The buffer is of another dtype, or shorter.
    pub(crate) fn floats(&self, op: &'static str, field: &'static str, len: Option<usize>) -> Result<&[f32]> {
        self.check_wide(op, field, len)?;
        Ok(bytemuck::cast_slice(&self.pages.bytes()[..4 * len.unwrap_or(0)]))
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.pages.as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.pages.as_mut_ptr()
    }

    /// Fails unless the buffer is f32 and holds `len` elements.
    pub(crate) fn check_wide(&self, op: &'static str, field: &'static str, len: Option<usize>) -> Result<()> {
        if self.dtype != DType::F32 {
            return Err(Error::operator(op, field, DType::F32, self.dtype));
        }
        self.check(op, field, len)
    }

    /// Fails unless the buffer holds `len` elements; `None` stands for a product that overflowed.
    pub(crate) fn check(&self, op: &'static str, field: &'static str, len: Option<usize>) -> Result<()> {
        match len {
            Some(len) if len <= self.len => Ok(()),
            Some(len) => Err(Error::operator(op, field, format!("at least {len} elements"), self.len)),
            None => Err(Error::operator(op, field, "a size that fits memory", "an overflow")),
        }
    }
}

pub(crate) fn too_large(field: &'static str, len: usize) -> Error {
    Error::operator("buffer", field, "a size that fits memory", len)
}

/// Copies `n` elements from one type to another. The pointers hold that many.
pub(crate) struct Convert<A, B> {
    from: *const u8,
    to: *mut u8,
    n: usize,
    types: std::marker::PhantomData<(A, B)>,
}

impl<A: Element, B: Element> Convert<A, B> {
    pub(crate) fn new(from: *const u8, to: *mut u8, n: usize) -> Self {
        Self { from, to, n, types: std::marker::PhantomData }
    }
}

impl<A: Element, B: Element> Kernel for Convert<A, B> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: both places hold `n` elements and are not the same, as `new`'s callers see to.
        unsafe { convert::<S, A, B>(s, self.from, self.to, self.n) }
    }
}

/// Copies `n` elements from one type to another.
///
/// # Safety
/// `n` elements are readable at `from` and writable at `to`, and the two do not overlap.
#[inline(always)]
pub(crate) unsafe fn convert<S: Simd, A: Element, B: Element>(s: S, from: *const u8, to: *mut u8, n: usize) {
    let whole = n - n % S::LANES;
    let mut i = 0;
    while i < whole {
        // SAFETY: `i + LANES ≤ n`.
        unsafe { B::store(s, to.add(i * B::SIZE), A::load(s, from.add(i * A::SIZE))) };
        i += S::LANES;
    }
    if whole < n {
        // SAFETY: `n - whole < LANES` elements are left.
        unsafe {
            let last = A::load_first(s, from.add(whole * A::SIZE), n - whole);
            B::store_first(s, to.add(whole * B::SIZE), last, n - whole);
        }
    }
}

/// A gain `[n]`, kept as f32.
pub struct Vector(pub(crate) Vec<f32>);

impl Vector {
    pub(crate) fn new(view: &WeightView) -> Result<Self> {
        if view.shape.len() != 1 {
            let found = format!("{:?} in {}", view.shape, view.name);
            return Err(Error::operator("vector", "shape", "[n]", found));
        }
        Ok(Self(widen("vector", view)?))
    }
}

/// The kernels' arithmetic is for these dtypes.
pub(crate) fn check_dtype(op: &'static str, dtype: DType) -> Result<()> {
    match dtype {
        DType::F32 | DType::BF16 | DType::F16 => Ok(()),
        _ => Err(Error::operator(op, "dtype", "f32, bf16 or f16", dtype)),
    }
}

pub(crate) fn widen(op: &'static str, view: &WeightView) -> Result<Vec<f32>> {
    check_dtype(op, view.dtype)?;
    let n = view.elements(op)?;
    let mut values = vec![0f32; n];
    let (from, to) = (view.data.as_ptr(), values.as_mut_ptr().cast());
    with_element!(view.dtype, E => Isa::best().run(Convert::<E, F32>::new(from, to, n)));
    Ok(values)
}

/// A batch whose parts were checked against each other.
#[derive(Default)]
pub struct Step {
    /// Without its page table.
    batch: Batch,
    /// What there is of the last batch's page table.
    pages: Vec<u32>,
    mark: Option<PageTableMark>,
    /// Results of the step, in the order of its samples and targets.
    pub(crate) sampled: Vec<Result<Sampled>>,
    pub(crate) scored: Vec<f32>,
}

impl Step {
    pub(crate) fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The page tables of its spans.
    pub fn page_table(&self) -> &[u32] {
        &self.pages
    }

    pub(crate) fn tokens(&self) -> usize {
        self.batch.tokens.len()
    }

    /// Takes over `batch`.
    pub(crate) fn upload(&mut self, batch: &Batch) -> Result<()> {
        batch.check()?;
        let to = &mut self.batch;
        to.tokens.clone_from(&batch.tokens);
        to.slots.clone_from(&batch.slots);
        to.rope_rows.clone_from(&batch.rope_rows);
        to.rope.clone_from(&batch.rope);
        to.spans.clone_from(&batch.spans);
        page_table_update(&mut self.pages, self.mark, &batch.page_table);
        self.mark = Some(batch.page_table.mark());
        to.masks.clone_from(&batch.masks);
        to.logit_rows.clone_from(&batch.logit_rows);
        to.samples.clone_from(&batch.samples);
        to.targets.clone_from(&batch.targets);
        self.sampled.clear();
        self.scored.clear();
        Ok(())
    }
}
