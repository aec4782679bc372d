//! `residual += delta`, then `out = norm(residual) · (weight + weight_offset) + bias`.

use super::abi::rms_norm_args;
use super::call::{Call, Check, named};
use super::tables::RMS_NORM;
use crate::device::{Slice, SliceMut, Stream, Value, Variant};
use crate::dtype::DType;
use crate::error::Result;

const CHECK: Check = Check("rms_norm");

/// Kinds of norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Norm {
    /// `x / sqrt(mean(x²) + eps)` (Zhang and Sennrich, 2019).
    Rms,
    /// `(x − mean(x)) / sqrt(mean((x − mean(x))²) + eps)` (Ba, Kiros and Hinton, 2016).
    Layer,
}

impl Norm {
    fn named(self) -> Value {
        Value::Text(match self {
            Self::Rms => "rms",
            Self::Layer => "layer",
        })
    }
}

/// Adds to the residual stream, then norms its rows.
pub struct RmsNorm<'a> {
    /// `[rows, width]` of bf16 or f16; written only where `delta` is given.
    pub residual: SliceMut<'a>,
    /// `[rows, width]`, of the residual's dtype.
    pub delta: Option<Slice<'a>>,
    /// `[width]`, of the residual's dtype.
    pub weight: Slice<'a>,
    /// `[width]`, of the residual's dtype.
    pub bias: Option<Slice<'a>>,
    /// `[rows, width]`, of the residual's dtype, e4m3 or i8.
    pub out: SliceMut<'a>,
    /// f32 `[rows]`, only for e4m3 and i8: the dequantization scale of each row. A row's largest magnitude becomes the
    /// largest code, 448 or 127.
    pub scales: Option<SliceMut<'a>>,
    pub rows: usize,
    pub width: usize,
    pub eps: f32,
    /// Added to the weight: 1 if the checkpoint stores `gain - 1`, else 0.
    pub weight_offset: f32,
    pub norm: Norm,
}

impl RmsNorm<'_> {
    /// Checks shapes, picks a variant for the device and launches it.
    ///
    /// # Errors
    /// A slice is too short or of the wrong dtype; this build has no variant for the device; the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = RMS_NORM.pick(stream.arch(), &self.key()?)?;
        self.launch_variant(stream, variant)
    }

    fn key(&self) -> Result<[(&'static str, Value); 3]> {
        let (dtype, out) = (self.residual.dtype(), self.out.dtype());
        CHECK.dtype("residual", dtype, &[DType::BF16, DType::F16])?;
        CHECK.dtype("out", out, &[dtype, DType::E4M3, DType::I8])?;
        Ok([("dtype", named(dtype)), ("norm", self.norm.named()), ("out", named(out))])
    }

    /// Launches a given variant, for tuning and tests. All variants for a problem give the same bits.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); the variant is not one for this problem.
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        let key = self.key()?;
        let Self { residual, delta, weight, bias, out, scales, rows, width, eps, weight_offset, norm: _ } = self;
        let dtype = residual.dtype();
        CHECK.len("residual", residual.as_slice(), &[rows, width])?;
        if let Some(delta) = delta {
            CHECK.slice("delta", delta, dtype, &[rows, width])?;
        }
        CHECK.slice("weight", weight, dtype, &[width])?;
        if let Some(bias) = bias {
            CHECK.slice("bias", bias, dtype, &[width])?;
        }
        CHECK.len("out", out.as_slice(), &[rows, width])?;
        let call = Call { kernel: &RMS_NORM, key: &key };
        call.check(variant)?;
        let args = rms_norm_args {
            residual: residual.address(),
            delta: delta.map_or(0, |delta| delta.address()),
            weight: weight.address(),
            bias: bias.map_or(0, |bias| bias.address()),
            out: out.address(),
            scales: CHECK.scales(out.dtype(), scales.as_ref().map(SliceMut::as_slice), rows)?,
            rows: CHECK.rows("rows", rows)?,
            width: CHECK.size("width", width)?,
            eps,
            weight_offset,
        };
        if rows == 0 || width == 0 {
            return Ok(());
        }
        let shape = format_args!("{rows} rows of {width} {dtype} to {}", out.dtype());
        // SAFETY: every slice was checked against the shape.
        unsafe { call.launch(stream, variant, [rows, 1, 1], &args, &shape) }
    }
}
