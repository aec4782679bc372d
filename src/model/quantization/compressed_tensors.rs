//! compressed-tensors: groups of layers, each with a format; and its packed integers.

use safetensors::Dtype;

use crate::error::Result;
use crate::model::fields;
use crate::model::tensors::Stored;
use crate::ops::{ActivationBits, Code, CodedWeight, Scales, Zeros};

use super::fp4::Fp4;
use super::layer::{Layer, zeros};
use super::packing::{Fields, codes, transpose, transpose_words, unpack};
use super::scaled::{EightBits, Granularity, OF_ACTIVATIONS, Scaled};
use super::{Format, Layers, Rule, group_size, numbers};

/// `pack-quantized`: integers of 2, 3, 4 or 8 bits, inputs one after another, with an offset that makes them unsigned.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Packed {
    pub bits: usize,
    pub granularity: Granularity,
    pub activations: ActivationBits,
}

pub(super) fn read(fields: &fields::Fields) -> Result<Vec<Rule>> {
    // An older version nests it.
    if let Some(nested) = fields.object("quantization_config")? {
        refuse_sparse(fields)?;
        return read(&nested);
    }
    refuse_sparse(fields)?;
    if let Some(transforms) = fields.object("transform_config")?
        && transforms.object("config_groups")?.is_some()
    {
        return Err(fields.error(
            "transform_config",
            "none (Hadamard and other transforms are not applied)",
            "transforms",
        ));
    }
    let mut rules = Vec::new();
    for name in fields.texts("ignore")?.unwrap_or_default() {
        rules.push(Rule { layers: layers(fields, name, "ignore")?, format: None });
    }
    let Some(groups) = fields.object("config_groups")? else {
        return Err(fields.error("config_groups", "groups of layers", "none"));
    };
    let format = fields.text("format")?;
    let mut targeted = Vec::new();
    for (_, group) in groups.members()? {
        let Some(group) = group else { continue };
        let Some(targets) = group.texts("targets")? else {
            return Err(group.error("targets", "a list of layers", "no such field"));
        };
        // Groups may describe attention or activations alone.
        let Some(weights) = group.object("weights")? else { continue };
        let format = group.text("format")?.or(format);
        let format = read_format(&group, &weights, format)?;
        for target in targets {
            targeted.push(Rule::new(layers(&group, target, "targets")?, format.clone()));
        }
    }
    // Names come before patterns, and those before classes of layers.
    targeted.sort_by_key(|rule| match rule.layers {
        Layers::Name(_) => 0,
        Layers::Regex(_) => 1,
        _ => 2,
    });
    rules.extend(targeted);
    Ok(rules)
}

fn refuse_sparse(fields: &fields::Fields) -> Result<()> {
    match fields.object("sparsity_config")? {
        Some(sparsity) => match sparsity.text("format")? {
            None | Some("dense") => Ok(()),
            Some(format) => Err(sparsity.error("format", "dense (sparse weights are not read)", format)),
        },
        None => Ok(()),
    }
}

fn layers(fields: &fields::Fields, target: &str, key: &str) -> Result<Layers> {
    match target.strip_prefix("re:") {
        Some(pattern) => Layers::regex(fields, pattern, key),
        None => Ok(match target {
            "Linear" => Layers::Linear,
            "Embedding" => Layers::Embedding,
            name => Layers::Name(name.to_owned()),
        }),
    }
}

fn read_format(group: &fields::Fields, weights: &fields::Fields, format: Option<&str>) -> Result<Format> {
    let bits = weights.size("num_bits", 1..=64)?.unwrap_or(8);
    let kind = weights.text("type")?.unwrap_or("int");
    let activations = match group.object("input_activations")? {
        Some(inputs) if inputs.size("num_bits", 1..=64)?.unwrap_or(8) == 8 => ActivationBits::Eight,
        _ => ActivationBits::Full,
    };
    let float = |granularity| Format::Scaled(Scaled { code: EightBits::E4m3, granularity, activations });
    let int = |granularity| Format::Scaled(Scaled { code: EightBits::Int8, granularity, activations });
    match (format, kind, bits) {
        (Some("pack-quantized"), "int", 2 | 3 | 4 | 8) => {
            Ok(Format::Packed(Packed { bits, granularity: granularity(weights)?, activations }))
        }
        (Some("int-quantized" | "naive-quantized"), "int", 1..=8) => granularity(weights).map(int),
        (Some("float-quantized" | "naive-quantized"), "float", 8) => granularity(weights).map(float),
        (Some("mxfp4-pack-quantized"), "float", 4) => Ok(Format::Fp4(Fp4::Mx)),
        (Some("nvfp4-pack-quantized"), "float", 4) => Ok(Format::Fp4(Fp4::Nv)),
        (Some("pack-quantized" | "int-quantized" | "float-quantized" | "naive-quantized"), ..) => {
            let expected = "2, 3, 4 or 8 bits of type int, packed; up to 8 of type int or 8 of type float otherwise";
            Err(weights.error("num_bits", expected, format_args!("{bits} bits of type {kind}")))
        }
        (found, ..) => {
            let expected = "pack-, int-, float-, naive-, mxfp4-pack- or nvfp4-pack-quantized";
            Err(group.error("format", expected, found.unwrap_or("no such field")))
        }
    }
}

fn granularity(weights: &fields::Fields) -> Result<Granularity> {
    let group = group_size(weights, "group_size")?;
    let by_size = match (weights.raw("group_size").filter(|size| !size.is_null()), group) {
        (None, _) => "tensor",
        (_, None) => "channel",
        (_, Some(_)) => "group",
    };
    match (weights.text("strategy")?.unwrap_or(by_size), group) {
        ("tensor", _) => Ok(Granularity::Tensor),
        ("channel", _) | ("group", None) => Ok(Granularity::Rows),
        ("group", Some(group)) => Ok(Granularity::Groups(group)),
        ("block", _) => match numbers(weights, "block_structure")? {
            Some(blocks) => Ok(Granularity::Blocks(blocks)),
            None => Err(weights.error("block_structure", "two sizes", "no such field")),
        },
        (other, _) => Err(weights.error("strategy", "tensor, channel, group or block", other)),
    }
}

impl Packed {
    pub fn load(&self, layer: &Layer) -> Result<CodedWeight> {
        let ([n, k], bits) = (layer.shape, self.bits);
        let weight = layer.required("weight_packed")?;
        // For a while, values of 3 bits did not cross the borders of words.
        let (dense, in_words) = (Fields::Dense.words(bits, k), Fields::InWords.words(bits, k));
        let shapes: [&[usize]; 2] = [&[n, dense], &[n, in_words]];
        weight.check(&[Dtype::I32], if dense == in_words { &shapes[..1] } else { &shapes })?;
        let words = weight.entry.shape[1];
        let fields = if words == dense { Fields::Dense } else { Fields::InWords };
        if let Some(shape) = layer.find("weight_shape") {
            check_shape(layer, shape)?;
        }
        let scales = layer.required("weight_scale")?;
        let [rows, columns] = self.granularity.of(layer, scales)?;
        let order = layer.order("weight_g_idx", columns)?;
        let zeros = self.zeros(layer, fields, [n.div_ceil(rows), k.div_ceil(columns)])?;
        layer.ignore(&OF_ACTIVATIONS)?;
        Ok(CodedWeight {
            name: weight.entry.name.clone(),
            shape: layer.shape,
            code: if bits == 8 { Code::U8 } else { Code::U4 },
            codes: codes(&weight.data, 4 * words, (bits, fields), layer.shape, order.as_deref()),
            scales: Scales { rows, columns, values: scales.scales()?, zeros },
            order,
            activations: self.activations,
        })
    }

    /// Zero points of `rows` by `columns` blocks, packed along the rows, with the offset of the weights.
    fn zeros(&self, layer: &Layer, fields: Fields, [rows, columns]: [usize; 2]) -> Result<Zeros> {
        let (bits, offset) = (self.bits, 1u8 << (self.bits - 1));
        let Some(stored) = layer.find("weight_zero_point") else { return Ok(Zeros::All(offset)) };
        if stored.entry.dtype == Dtype::I8 {
            stored.check(&[Dtype::I8], &[&[rows, columns]])?;
            let mask = u8::MAX >> (8 - bits);
            return Ok(zeros(stored.data.iter().map(|zero| zero.wrapping_add(offset) & mask).collect()));
        }
        let words = fields.words(bits, rows);
        stored.check(&[Dtype::I32], &[&[words, columns]])?;
        let mut all = vec![0; rows * columns];
        for (words, zeros) in transpose_words(&stored.data, words, columns).chunks(4 * words).zip(all.chunks_mut(rows))
        {
            unpack(bits, fields, words, zeros);
        }
        Ok(zeros(transpose(&all, columns, rows)))
    }
}

/// `weight_shape` repeats the layer's.
fn check_shape(layer: &Layer, stored: &Stored) -> Result<()> {
    stored.check(&[Dtype::I64, Dtype::I32], &[&[2]])?;
    let size = stored.data.len() / 2;
    let found: Vec<u64> = stored
        .data
        .chunks(size)
        .map(|bytes| bytes.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte)))
        .collect();
    let expected = layer.shape.map(|n| n as u64);
    if found == expected { Ok(()) } else { Err(stored.error(format_args!("{expected:?}"), format_args!("{found:?}"))) }
}
