//! Common parts of all wrappers: slice checks, choice of a variant, launch.

use std::fmt;

use bytemuck::Pod;

use crate::device::{Kernel, Launch, Slice, Stream, Value, Variant};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// A kernel to launch: its name for errors, and the axes that the problem decides.
pub(super) struct Call<'a> {
    pub kernel: &'static Kernel,
    /// Axis values that the slices' dtypes require.
    pub key: &'a [(&'static str, Value)],
}

impl Call<'_> {
    /// Fails unless `variant` belongs to the kernel and matches the key.
    pub fn check(&self, variant: &'static Variant) -> Result<()> {
        let own = self.kernel.variants.iter().any(|own| std::ptr::eq(own, variant));
        if own && self.key.iter().all(|(axis, value)| variant.value(axis) == Some(*value)) {
            return Ok(());
        }
        let key: Vec<String> = self.key.iter().map(|(axis, value)| format!("{axis} = {value}")).collect();
        let expected = format!("one of {} with {}", self.kernel.name, key.join(", "));
        Err(Error::operator(self.kernel.name, "variant", expected, variant.name))
    }

    /// Enqueues `variant` on a grid of `[x, y, z]` blocks, at least one.
    ///
    /// # Safety
    /// The addresses in `args` point to memory of the stream's device, of the sizes that the kernel's contract
    /// requires.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        variant: &'static Variant,
        blocks: [usize; 3],
        args: &impl Pod,
        shape: &dyn fmt::Display,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_clusters(stream, variant, blocks, 1, args, shape) }
    }

    /// The same in clusters of `cluster` blocks along x, a divisor of x.
    ///
    /// # Safety
    /// As [`launch`](Self::launch).
    pub unsafe fn launch_clusters(
        &self,
        stream: &Stream,
        variant: &'static Variant,
        blocks: [usize; 3],
        cluster: u32,
        args: &impl Pod,
        shape: &dyn fmt::Display,
    ) -> Result<()> {
        self.check(variant)?;
        let mut grid = [0; 3];
        for ((to, blocks), (axis, limit)) in
            grid.iter_mut().zip(blocks).zip([("x", X_BLOCKS), ("y", BLOCKS), ("z", BLOCKS)])
        {
            if blocks > limit {
                let found = format!("{blocks} blocks along {axis} for {shape}");
                return Err(Error::operator(self.kernel.name, "grid", format!("at most {limit}"), found));
            }
            *to = blocks as u32;
        }
        let args = bytemuck::bytes_of(args);
        // SAFETY: the caller's promise.
        unsafe { stream.launch(&Launch { variant, grid, cluster, args, shape }) }
    }
}

/// Largest grid along x, and along y and z, on all architectures.
const X_BLOCKS: usize = i32::MAX as usize;
const BLOCKS: usize = 65_535;

/// A dtype as an axis value.
pub(super) fn named(dtype: DType) -> Value {
    Value::Text(dtype.name())
}

/// Blocks per row where each of `threads` threads takes one of `units`: at least one, at most what a grid allows.
pub(super) fn pieces(units: usize, threads: u32) -> usize {
    units.div_ceil(threads as usize).clamp(1, BLOCKS)
}

/// Argument checks of one kernel.
#[derive(Clone, Copy)]
pub(super) struct Check(pub &'static str);

impl Check {
    /// Fails unless `slice` is of `dtype` and holds the product of `dims`.
    pub fn slice(self, field: &'static str, slice: Slice<'_>, dtype: DType, dims: &[usize]) -> Result<()> {
        if slice.dtype() != dtype {
            return Err(Error::operator(self.0, field, dtype, slice.dtype()));
        }
        self.len(field, slice, dims)
    }

    /// Fails unless `slice` holds the product of `dims`.
    pub fn len(self, field: &'static str, slice: Slice<'_>, dims: &[usize]) -> Result<()> {
        match dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d)) {
            Some(len) if len <= slice.len() => Ok(()),
            Some(len) => Err(Error::operator(self.0, field, format!("at least {len} elements"), slice.len())),
            None => Err(Error::operator(self.0, field, "a size that fits memory", format!("{dims:?}"))),
        }
    }

    /// A size as kernels take it, with room for a tile beyond it in 32 bits.
    pub fn size(self, field: &'static str, size: usize) -> Result<u32> {
        const LARGEST: usize = 1 << 30;
        if size > LARGEST {
            return Err(Error::operator(self.0, field, format!("at most {LARGEST}"), size));
        }
        Ok(size as u32)
    }

    /// A number of rows, at most the blocks of a grid.
    pub fn rows(self, field: &'static str, rows: usize) -> Result<u32> {
        if rows > X_BLOCKS {
            return Err(Error::operator(self.0, field, format!("at most {X_BLOCKS}"), rows));
        }
        Ok(rows as u32)
    }

    /// Fails unless a dtype is one of `legal`.
    pub fn dtype(self, field: &'static str, dtype: DType, legal: &[DType]) -> Result<()> {
        if legal.contains(&dtype) {
            return Ok(());
        }
        let names: Vec<&str> = legal.iter().map(|dtype| dtype.name()).collect();
        Err(Error::operator(self.0, field, names.join(" or "), dtype))
    }

    /// The address of the per-row scales, required exactly if `out` is quantized; 0 for none.
    pub fn scales(self, out: DType, scales: Option<Slice<'_>>, rows: usize) -> Result<u64> {
        let quantized = matches!(out, DType::E4M3 | DType::I8);
        match scales {
            Some(scales) if quantized => {
                self.slice("scales", scales, DType::F32, &[rows])?;
                Ok(scales.address())
            }
            None if !quantized => Ok(0),
            Some(_) => Err(Error::operator(self.0, "scales", format!("none for {out}"), "some")),
            None => Err(Error::operator(self.0, "scales", format!("one a row for {out}"), "none")),
        }
    }
}
