//! Weights stored as they are in eight bits, beside scales of the whole tensor, of rows, of groups or of blocks.

use safetensors::Dtype;

use crate::error::Result;
use crate::model::tensors::Stored;
use crate::ops::{ActivationBits, Code, CodedWeight, Scales, Zeros};

use super::layer::{Layer, zeros};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scaled {
    pub code: EightBits,
    pub granularity: Granularity,
    pub activations: ActivationBits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EightBits {
    E4m3,
    Int8,
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Granularity {
    /// The whole tensor, or each row: the shape of the scales says.
    TensorOrRows,
    Tensor,
    Rows,
    /// So many inputs of an output.
    Groups(usize),
    /// So many outputs by so many inputs.
    Blocks([usize; 2]),
}

/// Names of the scales: all are multiplied with, whatever the first says.
const SCALES: [&str; 2] = ["weight_scale_inv", "weight_scale"];

/// Scales and zero points of static activations. Those are quantized by scales of their own here.
pub(super) const OF_ACTIVATIONS: [&str; 5] =
    ["input_scale", "input_scale_ub", "input_zero_point", "input_global_scale", "activation_scale"];

impl Scaled {
    pub fn load(&self, layer: &Layer) -> Result<CodedWeight> {
        let [n, k] = layer.shape;
        let (code, dtype) = match self.code {
            EightBits::E4m3 => (Code::E4m3, Dtype::F8_E4M3),
            EightBits::Int8 => (Code::U8, Dtype::I8),
        };
        let weight = layer.tensor("weight", &[dtype], &[n, k])?;
        let scales = match SCALES.iter().find_map(|part| layer.find(part)) {
            Some(scales) => scales,
            None => layer.required(SCALES[1])?,
        };
        let [rows, columns] = self.granularity.of(layer, scales)?;
        let zeros = match (self.code, layer.find("weight_zero_point")) {
            (EightBits::Int8, Some(stored)) => {
                stored.check(&[Dtype::I8], &[&scales.entry.shape])?;
                zeros(stored.data.iter().map(|zero| zero ^ 0x80).collect())
            }
            (EightBits::Int8, None) => Zeros::All(0x80),
            (EightBits::E4m3, Some(stored)) if stored.data.iter().any(|&byte| byte != 0) => {
                return Err(stored.error("zeros, as floats have no zero points", "others"));
            }
            (EightBits::E4m3, _) => Zeros::All(0),
        };
        layer.ignore(&OF_ACTIVATIONS)?;
        Ok(CodedWeight {
            name: weight.entry.name.clone(),
            shape: layer.shape,
            code,
            codes: match self.code {
                EightBits::E4m3 => weight.data.clone(),
                // -128 becomes 0.
                EightBits::Int8 => weight.data.iter().map(|code| code ^ 0x80).collect::<Vec<_>>().into(),
            },
            scales: Scales { rows, columns, values: scales.scales()?, zeros },
            order: None,
            activations: self.activations,
        })
    }
}

impl Granularity {
    /// Rows and columns of a block, which the shape of the scales must agree with.
    pub fn of(self, layer: &Layer, scales: &Stored) -> Result<[usize; 2]> {
        let [n, k] = layer.shape;
        let (tensor, rows): ([&[usize]; 3], [&[usize]; 2]) = ([&[], &[1], &[1, 1]], [&[n, 1], &[n]]);
        let (blocks, shapes) = match self {
            Self::TensorOrRows if scales.entry.shape.iter().product::<usize>() == 1 => ([n, k], tensor.to_vec()),
            Self::TensorOrRows => ([1, k], [&tensor[1..2], &rows].concat()),
            Self::Tensor => ([n, k], tensor.to_vec()),
            Self::Rows => ([1, k], rows.to_vec()),
            Self::Groups(group) => ([1, group.min(k)], Vec::new()),
            Self::Blocks([rows, columns]) => ([rows.min(n), columns.min(k)], Vec::new()),
        };
        const DTYPES: [Dtype; 5] = [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F8_E8M0, Dtype::U8];
        if shapes.is_empty() {
            scales.check(&DTYPES, &[&[n.div_ceil(blocks[0]), k.div_ceil(blocks[1])]])?;
        } else {
            scales.check(&DTYPES, &shapes)?;
        }
        Ok(blocks)
    }
}
