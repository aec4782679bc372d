//! A linear layer's weights on the device: dense ones are converted to its dtype; quantized ones stay codes where the
//! product's kernels take them, see [`PackedWeight`], and are dequantized elsewhere.

use super::converted::converted;
use super::{MatMul, MatMulWeight, PackedWeight};
use crate::device::{Memory, Slice, Stream};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{self, CodedWeight, LinearPart, Weight, WeightView};

/// A linear layer's weight `[n, k]`, with an optional bias `[n]`.
pub struct Matrix {
    pub(super) weight: OnDevice,
    pub(super) bias: Option<Memory>,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// Gate and up projections `[width, k]` of a gated feed-forward layer, with optional biases `[width]`, interleaved as
/// [`MatMul::weight`] requires.
pub struct GatedMatrix {
    pub(super) weight: OnDevice,
    pub(super) bias: Option<Memory>,
    pub(super) width: usize,
    pub(super) k: usize,
}

/// A layer's weight, all blocks together.
pub(super) enum OnDevice {
    Dense(Memory),
    Codes(PackedWeight),
}

impl OnDevice {
    /// The order in which the activations' columns are multiplied, where it is not their own.
    pub(super) fn order(&self) -> Option<Slice<'_>> {
        match self {
            Self::Dense(_) => None,
            Self::Codes(weight) => weight.order(),
        }
    }

    pub(super) fn operand(&self) -> MatMulWeight<'_> {
        match self {
            Self::Dense(weight) => weight.slice().into(),
            Self::Codes(weight) => weight.codes().into(),
        }
    }
}

impl Matrix {
    /// Blocks of rows, concatenated.
    pub(super) fn new(stream: &Stream, dtype: DType, parts: Vec<LinearPart>) -> Result<Self> {
        let Parts { weights, biases, n, k } = Parts::new(parts)?;
        let bias = if biases.is_empty() { None } else { Some(stacked(stream, dtype, &biases)?) };
        let packed = match coded(&weights) {
            Some(blocks) => PackedWeight::stacked(stream, dtype, &blocks)?,
            None => None,
        };
        let weight = match packed {
            Some(packed) => OnDevice::Codes(packed),
            None => OnDevice::Dense(stacked(stream, dtype, &dense(dtype, weights))?),
        };
        Ok(Self { weight, bias, n, k })
    }
}

/// The blocks, if all of them are quantized.
fn coded(weights: &[Weight]) -> Option<Vec<&CodedWeight>> {
    let mut blocks = Vec::with_capacity(weights.len());
    for weight in weights {
        let Weight::Coded(coded) = weight else { return None };
        blocks.push(coded);
    }
    Some(blocks)
}

/// The blocks as dense tensors: quantized ones are dequantized.
fn dense(dtype: DType, weights: Vec<Weight>) -> Vec<WeightView> {
    let block = |weight| match weight {
        Weight::Dense(view) => view,
        Weight::Coded(coded) => coded.dense(dtype),
    };
    weights.into_iter().map(block).collect()
}

impl GatedMatrix {
    pub(super) fn new(stream: &Stream, dtype: DType, parts: Vec<LinearPart>) -> Result<Self> {
        ops::check_gated(&parts)?;
        let Parts { weights, biases, n, k } = Parts::new(parts)?;
        let width = n / 2;
        let bias = if biases.is_empty() { None } else { Some(alternating(stream, dtype, &biases, width, 1)?) };
        let packed = match coded(&weights).as_deref() {
            Some(&[gate, up]) => PackedWeight::gated(stream, dtype, [gate, up])?,
            _ => None,
        };
        let weight = match packed {
            Some(packed) => OnDevice::Codes(packed),
            None => OnDevice::Dense(alternating(stream, dtype, &dense(dtype, weights), width, k)?),
        };
        Ok(Self { weight, bias, width, k })
    }
}

/// A layer's blocks: `[n_i, k]`, with a bias for each or none.
struct Parts {
    weights: Vec<Weight>,
    biases: Vec<WeightView>,
    n: usize,
    k: usize,
}

impl Parts {
    fn new(parts: Vec<LinearPart>) -> Result<Self> {
        const OP: &str = "matrix";
        let (total, mut n, mut k) = (parts.len(), 0usize, None);
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for LinearPart { weight, bias } in parts {
            let shape @ [rows, columns] = weight.shape()?;
            if *k.get_or_insert(columns) != columns {
                return Err(Error::operator(OP, "shape", "one k", format!("{shape:?} in {}", weight.name())));
            }
            if let Some(bias) = bias {
                if bias.shape != [rows] {
                    return Err(Error::operator(OP, "bias", format!("[{rows}]"), format!("{:?}", bias.shape)));
                }
                biases.push(bias);
            }
            n = n.checked_add(rows).ok_or_else(|| too_large(rows))?;
            if let Weight::Coded(coded) = &weight {
                coded.check()?;
            }
            weights.push(weight);
        }
        if !biases.is_empty() && biases.len() != total {
            return Err(Error::operator(OP, "bias", format!("none or {total}"), biases.len()));
        }
        let k = k.ok_or_else(|| Error::operator(OP, "parts", "at least one", "none"))?;
        Ok(Self { weights, biases, n, k })
    }
}

fn too_large(len: usize) -> Error {
    Error::operator("matrix", "n", "a size that fits memory", len)
}

/// The views' elements, concatenated, as `dtype`.
pub(super) fn stacked(stream: &Stream, dtype: DType, views: &[WeightView]) -> Result<Memory> {
    let mut total = 0usize;
    for view in views {
        let len = view.elements("weight")?;
        total = total.checked_add(len).ok_or_else(|| too_large(len))?;
    }
    let mut memory = stream.alloc(dtype, total)?;
    let mut start = 0;
    for view in views {
        let len = view.elements("weight")?;
        Runs { start, len, apart: len }.write(&mut memory, view)?;
        start += len;
    }
    Ok(memory)
}

/// Two views of `rows` × `columns` elements, interleaved in groups of rows as gated products require, as `dtype`. The
/// last group is padded with zeros.
fn alternating(stream: &Stream, dtype: DType, views: &[WeightView], rows: usize, columns: usize) -> Result<Memory> {
    let total = MatMul::gated_rows(rows).checked_mul(columns).ok_or_else(|| too_large(rows))?;
    // Fresh memory is zero.
    let mut memory = stream.alloc(dtype, total)?;
    let len = MatMul::GATES * columns;
    for (i, view) in views.iter().enumerate() {
        view.elements("weight")?;
        Runs { start: i * len, len, apart: views.len() * len }.write(&mut memory, view)?;
    }
    Ok(memory)
}

/// Strided destination: runs of `len` elements, the first at `start`, `apart` elements between runs.
struct Runs {
    start: usize,
    len: usize,
    apart: usize,
}

impl Runs {
    fn write(&self, memory: &mut Memory, view: &WeightView) -> Result<()> {
        if view.dtype == memory.dtype() {
            return self.write_from(memory, 0, &view.data);
        }
        let mut done = 0;
        for piece in converted(view, memory.dtype()) {
            let piece = piece?;
            self.write_from(memory, done, bytemuck::cast_slice(&piece))?;
            done += piece.len();
        }
        Ok(())
    }

    /// Elements from number `first` on.
    fn write_from(&self, memory: &mut Memory, mut first: usize, mut bytes: &[u8]) -> Result<()> {
        let size = memory.dtype().size();
        while !bytes.is_empty() {
            let (run, inside) = (first / self.len, first % self.len);
            let (now, later) = bytes.split_at(bytes.len().min((self.len - inside) * size));
            memory.write_at(self.start + run * self.apart + inside, now)?;
            (first, bytes) = (first + now.len() / size, later);
        }
        Ok(())
    }
}
