//! `out[t, i] = activation(gate_up[t, i]) · gate_up[t, width + i]`.

use super::abi::{BURRSTONE_GELU_ERF, BURRSTONE_GELU_TANH, BURRSTONE_SILU, act_mul_args};
use super::call::{Call, Check, named, pieces};
use super::tables::ACT_MUL;
use crate::device::{Slice, SliceMut, Stream, Value, Variant};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::Activation;

const CHECK: Check = Check("act_mul");

/// Elements per thread.
const VEC: usize = 8;

/// The kernels' code for an activation.
pub(super) fn code(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => BURRSTONE_SILU,
        Activation::GeluTanh => BURRSTONE_GELU_TANH,
        Activation::Gelu => BURRSTONE_GELU_ERF,
    }
}

/// Activation and multiplication of a gated feed-forward layer. [`MatMul`](super::MatMul) with a gate fuses this into
/// its epilogue.
pub struct ActMul<'a> {
    /// `[rows, 2 · width]` of bf16 or f16: gate, then up.
    pub gate_up: Slice<'a>,
    /// `[rows, width]`, of the same dtype, e4m3 or i8.
    pub out: SliceMut<'a>,
    /// f32 `[rows]`, only for e4m3 and i8: the dequantization scale of each row. A row's largest magnitude becomes the
    /// largest code, 448 or 127.
    pub scales: Option<SliceMut<'a>>,
    pub rows: usize,
    pub width: usize,
    pub activation: Activation,
}

impl ActMul<'_> {
    /// Checks shapes, picks a variant for the device and launches it.
    ///
    /// # Errors
    /// A slice is too short or of the wrong dtype; this build has no variant for the device; the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = ACT_MUL.pick(stream.arch(), &self.key()?)?;
        self.launch_variant(stream, variant)
    }

    fn key(&self) -> Result<[(&'static str, Value); 2]> {
        let (dtype, out) = (self.gate_up.dtype(), self.out.dtype());
        CHECK.dtype("gate_up", dtype, &[DType::BF16, DType::F16])?;
        CHECK.dtype("out", out, &[dtype, DType::E4M3, DType::I8])?;
        Ok([("dtype", named(dtype)), ("out", named(out))])
    }

    /// Launches a given variant, for tuning and tests. All variants for a problem give the same bits.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); the variant is not one for this problem.
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        let key = self.key()?;
        let Self { gate_up, out, scales, rows, width, activation } = self;
        CHECK.len("gate_up", gate_up, &[rows, 2, width])?;
        CHECK.len("out", out.as_slice(), &[rows, width])?;
        let call = Call { kernel: &ACT_MUL, key: &key };
        call.check(variant)?;
        let scales = CHECK.scales(out.dtype(), scales.as_ref().map(SliceMut::as_slice), rows)?;
        let args = act_mul_args {
            gate_up: gate_up.address(),
            out: out.address(),
            scales,
            rows: CHECK.rows("rows", rows)?,
            width: CHECK.size("width", width)?,
            activation: code(activation),
            padding: 0,
        };
        if rows == 0 || width == 0 {
            return Ok(());
        }
        // A quantized row needs its maximum, so one block handles it.
        let along = if scales == 0 { pieces(width.div_ceil(VEC), variant.threads) } else { 1 };
        let shape = format_args!("{rows} rows of {width} {} to {}", gate_up.dtype(), out.dtype());
        // SAFETY: every slice was checked against the shape.
        unsafe { call.launch(stream, variant, [rows, along, 1], &args, &shape) }
    }
}
