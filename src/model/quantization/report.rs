//! What a checkpoint's quantization is, for people.

use safetensors::Dtype;

use crate::model::tensors::{Stored, Tensors, is_kv_scale};
use crate::ops::ActivationBits;

use super::bitsandbytes::{BitsAndBytes, FourBits};
use super::fp4::Fp4;
use super::scaled::{EightBits, Granularity};
use super::{Format, Quantization};

/// How a checkpoint's weights are quantized.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuantizationReport {
    /// The method, as the configuration spells it.
    pub method: String,
    /// What the weights of layers are, and of how many.
    pub formats: Vec<(String, usize)>,
    /// Weights of two dimensions that are not quantized, with `*` for the number of a layer, and how many there are.
    pub dense: Vec<(String, usize)>,
    /// Scales of an 8-bit KV cache other than 1. They are not used.
    pub kv_scales: usize,
}

/// The last parts of the names of tensors that hold codes.
const CODES: [&str; 3] = ["weight", "qweight", "weight_packed"];

impl Quantization {
    pub(in crate::model) fn report(&self, tensors: &Tensors) -> QuantizationReport {
        let mut report = QuantizationReport { method: self.method.clone(), ..QuantizationReport::default() };
        for stored in tensors.iter() {
            let name = stored.entry.name.as_str();
            if is_kv_scale(name) && stored.floats().is_ok_and(|scales| scales.iter().any(|&scale| scale != 1.0)) {
                report.kv_scales += 1;
            }
            let Some((layer, part)) = name.rsplit_once('.') else { continue };
            if !CODES.contains(&part) || stored.entry.shape.len() != 2 {
                continue;
            }
            if tensors.is_dense(layer) {
                let component =
                    |part: &str| if part.parse::<usize>().is_ok() { "*".to_owned() } else { part.to_owned() };
                count(&mut report.dense, layer.split('.').map(component).collect::<Vec<_>>().join("."));
            } else if let Some(format) = self.format_of(layer) {
                count(&mut report.formats, format.describe());
            }
        }
        for counts in [&mut report.formats, &mut report.dense] {
            counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        }
        report
    }

    /// The format of a layer whose name may lack `model.` in the file.
    fn format_of(&self, layer: &str) -> Option<&Format> {
        self.format(layer).or_else(|| self.format(&format!("model.{layer}")))
    }

    /// Weights that a tensor holds: none in scales and the like.
    pub(in crate::model) fn parameters(&self, stored: &Stored) -> u64 {
        let elements = stored.entry.shape.iter().map(|n| *n as u64).product::<u64>();
        let (layer, part) = stored.entry.name.rsplit_once('.').unwrap_or_default();
        match (part, stored.entry.dtype) {
            ("qweight" | "weight_packed", Dtype::I32) => {
                self.format_of(layer).map_or(elements, |format| elements * 32 / format.bits())
            }
            ("weight" | "weight_packed", Dtype::U8) => 2 * elements,
            ("weight" | "bias", _) => elements,
            _ => 0,
        }
    }
}

fn count(counts: &mut Vec<(String, usize)>, what: String) {
    match counts.iter_mut().find(|(known, _)| *known == what) {
        Some((_, count)) => *count += 1,
        None => counts.push((what, 1)),
    }
}

impl Format {
    fn bits(&self) -> u64 {
        match self {
            Self::Gptq(format) => format.bits as u64,
            Self::Packed(format) => format.bits as u64,
            Self::Awq(_) | Self::Fp4(_) | Self::BitsAndBytes(BitsAndBytes::FourBits(_)) => 4,
            Self::Scaled(_) | Self::BitsAndBytes(BitsAndBytes::Int8) => 8,
        }
    }

    /// `int4, groups of 128`.
    fn describe(&self) -> String {
        let groups = |group: Option<usize>| match group {
            Some(group) => Granularity::Groups(group),
            None => Granularity::Rows,
        };
        let full = ActivationBits::Full;
        let (code, blocks, activations) = match self {
            Self::Awq(format) => ("int4", groups(format.group), full),
            Self::BitsAndBytes(BitsAndBytes::FourBits(FourBits::Nf4)) => return "nf4".to_owned(),
            Self::BitsAndBytes(BitsAndBytes::FourBits(FourBits::Fp4)) => return "fp4".to_owned(),
            Self::BitsAndBytes(BitsAndBytes::Int8) => ("int8", Granularity::Rows, full),
            Self::Fp4(format) => {
                let code = if *format == Fp4::Mx { "mxfp4" } else { "nvfp4" };
                (code, Granularity::Groups(format.columns()), full)
            }
            Self::Gptq(format) => (integers(format.bits), groups(format.group), full),
            Self::Packed(format) => (integers(format.bits), format.granularity, format.activations),
            Self::Scaled(format) => {
                let code = if format.code == EightBits::E4m3 { "e4m3" } else { "int8" };
                (code, format.granularity, format.activations)
            }
        };
        let blocks = match blocks {
            Granularity::TensorOrRows => "a scale for each tensor or row".to_owned(),
            Granularity::Tensor => "a scale for each tensor".to_owned(),
            Granularity::Rows => "a scale for each row".to_owned(),
            Granularity::Groups(group) => format!("groups of {group}"),
            Granularity::Blocks([rows, columns]) => format!("blocks of {rows} × {columns}"),
        };
        let activations = if activations == full { "" } else { ", 8-bit activations" };
        format!("{code}, {blocks}{activations}")
    }
}

fn integers(bits: usize) -> &'static str {
    match bits {
        2 => "int2",
        3 => "int3",
        4 => "int4",
        _ => "int8",
    }
}
