//! A GPU, or the simulator in its place, as the decoder sees it.
//!
//! Activations, the residual stream and weights have one dtype, f16 or bf16; logits are f32; every reduction is in f32.

use std::ops::Range;

use half::{bf16, f16};

use super::step::{Step, TILE_QUERIES};
use super::{
    ActMul, AttentionDecode, AttentionPrefill, Embedding, KvCache, MatMul, Norm, PageCopy, QkGains, RmsNorm,
    RotaryKvWrite, Sample, TargetLogprobs,
};
use crate::device::{Graph, Memory, Stream};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{self, Activation, Batch, CacheShape, Ops, Sampled, StepShape, WeightView};

/// A device with CUDA's kernels.
pub struct Gpu {
    stream: Stream,
    /// Of activations and weights.
    dtype: DType,
}

/// A linear layer's weight `[n, k]`, with an optional bias `[n]`.
pub struct Matrix {
    weight: Memory,
    bias: Option<Memory>,
    n: usize,
    k: usize,
}

/// Keys and values of all layers: `layers × 2 × [pages, kv_heads, page_size, head_dim]`.
pub struct Cache {
    memory: Memory,
    shape: CacheShape,
}

impl Gpu {
    /// `dtype` is that of activations and weights: what a checkpoint stores otherwise is converted as it is loaded.
    ///
    /// # Errors
    /// The kernels have no such dtype on this device.
    pub fn new(stream: Stream, dtype: DType) -> Result<Self> {
        let arch = stream.arch();
        match dtype {
            DType::F16 => {}
            DType::BF16 if arch >= 80 => {}
            DType::BF16 => {
                let expected = format!("f16: sm_{arch} has no bf16, give --dtype f16");
                return Err(Error::request("dtype", expected, dtype));
            }
            _ => return Err(Error::request("dtype", "bf16 or f16 on a GPU", dtype)),
        }
        Ok(Self { stream, dtype })
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The views' elements, one view after another, as this device's dtype.
    fn weights(&self, views: &[WeightView]) -> Result<Memory> {
        let mut total = 0usize;
        for view in views {
            let len = view.elements()?;
            total = total.checked_add(len).ok_or_else(|| Error::operator("matrix", "n", "a size that fits memory", len))?;
        }
        let mut memory = self.stream.alloc(self.dtype, total)?;
        let mut start = 0;
        for view in views {
            if view.dtype == self.dtype {
                memory.write_at(start, &view.data)?;
                start += view.data.len() / self.dtype.size();
            } else {
                for piece in Converted::new(view, self.dtype) {
                    let piece = piece?;
                    memory.write_at(start, &piece)?;
                    start += piece.len();
                }
            }
        }
        Ok(memory)
    }
}

/// Elements that are converted at a time: enough for copies to run at full speed.
const PIECE: usize = 1 << 20;

/// A view's elements as f16 or bf16, piece by piece.
struct Converted<'a> {
    view: &'a WeightView,
    to: DType,
    done: usize,
}

impl<'a> Converted<'a> {
    fn new(view: &'a WeightView, to: DType) -> Self {
        Self { view, to, done: 0 }
    }
}

impl Iterator for Converted<'_> {
    type Item = Result<Vec<u16>>;

    fn next(&mut self) -> Option<Self::Item> {
        let size = self.view.dtype.size();
        let rest = self.view.data.get(self.done * size..).filter(|rest| !rest.is_empty())?;
        let bytes = &rest[..rest.len().min(PIECE * size)];
        let value = |bytes: &[u8]| match (self.view.dtype, bytes) {
            (DType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            _ => f32::NAN,
        };
        let mut piece = Vec::with_capacity(bytes.len() / size);
        for (i, bytes) in bytes.chunks_exact(size).enumerate() {
            let x = value(bytes);
            let bits = if self.to == DType::BF16 { bf16::from_f32(x).to_bits() } else { f16::from_f32(x).to_bits() };
            // Only f16 is too narrow for what a checkpoint holds.
            if self.to == DType::F16 && x.is_finite() && f16::from_bits(bits).is_infinite() {
                let field = format!("{}: element {}", self.view.name, self.done + i);
                return Some(Err(Error::request(field, "at most 65504 in size, the largest f16", x)));
            }
            piece.push(bits);
        }
        self.done += piece.len();
        Some(Ok(piece))
    }
}

impl Cache {
    /// The layer's keys and values.
    fn layer(&self, layer: usize) -> Result<(Range<usize>, Range<usize>)> {
        let shape = &self.shape;
        if layer >= shape.layers {
            return Err(Error::operator("cache", "layer", format!("below {}", shape.layers), layer));
        }
        let plane = shape.pages * shape.kv_heads * shape.page_size * shape.head_dim;
        let keys = 2 * layer * plane;
        Ok((keys..keys + plane, keys + plane..keys + 2 * plane))
    }
}
