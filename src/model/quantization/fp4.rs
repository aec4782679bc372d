//! Four-bit floats in blocks along the inputs: MXFP4 and NVFP4.

use safetensors::Dtype;

use crate::error::Result;
use crate::ops::{ActivationBits, Code, CodedWeight, Scales, Zeros};

use super::layer::Layer;
use super::scaled::OF_ACTIVATIONS;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fp4 {
    /// Blocks of 32 with a power of two, in compressed-tensors' names.
    Mx,
    /// Blocks of 16 with an e4m3 scale, divided by a scale of the tensor, in compressed-tensors' names.
    Nv,
    /// Blocks of 16 with an e4m3 scale, times a scale of the tensor, in ModelOpt's names.
    ModelOptNv,
}

impl Fp4 {
    pub fn columns(&self) -> usize {
        match self {
            Self::Mx => 32,
            Self::Nv | Self::ModelOptNv => 16,
        }
    }

    pub fn load(&self, layer: &Layer) -> Result<CodedWeight> {
        let ([n, k], columns) = (layer.shape, self.columns());
        let (weight, dtypes, global) = match self {
            Self::Mx => ("weight_packed", [Dtype::U8, Dtype::F8_E8M0], None),
            Self::Nv => ("weight_packed", [Dtype::F8_E4M3; 2], Some("weight_global_scale")),
            Self::ModelOptNv => ("weight", [Dtype::F8_E4M3; 2], Some("weight_scale_2")),
        };
        if !k.is_multiple_of(columns) {
            return Err(layer.bad_shape(weight, format_args!("a multiple of {columns} inputs")));
        }
        let weight = layer.tensor(weight, &[Dtype::U8], &[n, k / 2])?;
        let scales = layer.tensor("weight_scale", &dtypes[..], &[n, k / columns])?;
        let mut values = scales.scales()?;
        if let Some(part) = global {
            let global = layer.required(part)?;
            global.check(&[Dtype::F32], &[&[], &[1]])?;
            for scale in global.scales()? {
                let divided = *self == Self::Nv;
                values.iter_mut().for_each(|value| *value = if divided { *value / scale } else { *value * scale });
            }
        }
        layer.ignore(&OF_ACTIVATIONS)?;
        Ok(CodedWeight {
            name: weight.entry.name.clone(),
            shape: layer.shape,
            code: Code::E2M1,
            codes: weight.data.clone(),
            scales: Scales { rows: 1, columns, values, zeros: Zeros::All(0) },
            order: None,
            activations: ActivationBits::Full,
        })
    }
}
