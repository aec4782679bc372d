//! `out = x · weightᵀ + bias`.

use super::abi::matmul_args;
use super::call::{Call, Check, named};
use super::tables::MATMUL;
use crate::device::{Slice, SliceMut, Stream, Value, Variant};
use crate::dtype::DType;
use crate::error::{Error, Result};

const CHECK: Check = Check("matmul");

/// Up to so many rows the narrow tile reads the weight no more often than the wide one computes rows that nobody wants.
const NARROW_ROWS: usize = 8;
/// Rows of the tiles, values of the axis `m`.
const NARROW: u32 = 4;
const WIDE: u32 = 64;

/// A linear layer. Each output is one chain of f32 additions in ascending `k`: its bits depend on its own row of `x` and
/// of the weight, and on nothing else.
pub struct MatMul<'a> {
    /// `[m, k]` of bf16 or f16.
    pub x: Slice<'a>,
    /// `[n, k]`, of the same dtype.
    pub weight: Slice<'a>,
    /// `[n]`, of the same dtype.
    pub bias: Option<Slice<'a>>,
    /// `[m, n]`, of the same dtype or f32.
    pub out: SliceMut<'a>,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl MatMul<'_> {
    /// Checks the shapes, picks the device's variant and launches it.
    ///
    /// # Errors
    /// A slice is too short or of the wrong dtype; this build has no variant for the device; the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let [dtype, out] = self.key()?;
        let rows = if self.m <= NARROW_ROWS { NARROW } else { WIDE };
        let variant = MATMUL.pick(stream.arch(), &[dtype, ("m", Value::Int(rows)), out])?;
        self.launch_variant(stream, variant)
    }

    fn key(&self) -> Result<[(&'static str, Value); 2]> {
        let (dtype, out) = (self.x.dtype(), self.out.dtype());
        CHECK.dtype("x", dtype, &[DType::BF16, DType::F16])?;
        CHECK.dtype("out", out, &[dtype, DType::F32])?;
        Ok([("dtype", named(dtype)), ("out", named(out))])
    }

    /// The same with a variant of the caller's choice, for tuning and tests. All variants for a problem give the same
    /// bits.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); the variant is not one for this problem.
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        let key = self.key()?;
        let Self { x, weight, bias, out, m, n, k } = self;
        CHECK.len("x", x, &[m, k])?;
        CHECK.slice("weight", weight, x.dtype(), &[n, k])?;
        if let Some(bias) = bias {
            CHECK.slice("bias", bias, x.dtype(), &[n])?;
        }
        CHECK.len("out", out.as_slice(), &[m, n])?;
        let call = Call { kernel: &MATMUL, key: &key };
        call.check(variant)?;
        let tile = |axis: &'static str| {
            let size = variant.int(axis).filter(|&size| size > 0);
            size.ok_or_else(|| Error::operator(CHECK.0, "variant", format!("a tile along {axis}"), variant.name))
        };
        let args = matmul_args {
            x: x.address(),
            weight: weight.address(),
            bias: bias.map_or(0, |bias| bias.address()),
            out: out.address(),
            m: CHECK.rows("m", m)?,
            n: CHECK.size("n", n)?,
            k: CHECK.size("k", k)?,
            padding: 0,
        };
        let blocks = [m.div_ceil(tile("m")? as usize), n.div_ceil(tile("n")? as usize), 1];
        if m == 0 || n == 0 {
            return Ok(());
        }
        let shape = format_args!("[{m}, {k}] × [{n}, {k}]ᵀ of {} to {}", x.dtype(), out.dtype());
        // SAFETY: every slice was checked against the shape.
        unsafe { call.launch(stream, variant, blocks, &args, &shape) }
    }
}
