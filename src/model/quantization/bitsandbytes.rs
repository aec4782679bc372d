//! bitsandbytes: four bits that index a table (nf4, fp4), and `LLM.int8`.

use safetensors::Dtype;

use crate::error::Result;
use crate::model::fields::{Fields, parse_object};
use crate::model::tensors::Stored;
use crate::ops::{ActivationBits, Code, CodedWeight, Scales, Zeros};

use super::layer::Layer;
use super::{Format, Layers, Rule, numbers, skipped};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum BitsAndBytes {
    FourBits(FourBits),
    Int8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FourBits {
    Nf4,
    Fp4,
}

pub(super) fn read(fields: &Fields) -> Result<Vec<Rule>> {
    let on = |names: [&'static str; 2]| -> Result<bool> {
        Ok(fields.flag(names[0])? == Some(true) || fields.flag(names[1])? == Some(true))
    };
    let format = if on(["load_in_4bit", "_load_in_4bit"])? {
        match fields.text("bnb_4bit_quant_type")?.unwrap_or("fp4") {
            "nf4" => BitsAndBytes::FourBits(FourBits::Nf4),
            "fp4" => BitsAndBytes::FourBits(FourBits::Fp4),
            other => return Err(fields.error("bnb_4bit_quant_type", "nf4 or fp4", other)),
        }
    } else if on(["load_in_8bit", "_load_in_8bit"])? {
        BitsAndBytes::Int8
    } else {
        return Err(fields.error("load_in_4bit", "true, or load_in_8bit", false));
    };
    let mut rules = skipped(fields, &["llm_int8_skip_modules"])?;
    rules.push(Rule::new(Layers::Linear, Format::BitsAndBytes(format)));
    Ok(rules)
}

impl BitsAndBytes {
    pub fn load(&self, layer: &Layer) -> Result<CodedWeight> {
        match self {
            Self::FourBits(kind) => four_bits(layer, *kind),
            Self::Int8 => int8(layer),
        }
    }
}

fn int8(layer: &Layer) -> Result<CodedWeight> {
    let [n, k] = layer.shape;
    let weight = layer.tensor("weight", &[Dtype::I8], &[n, k])?;
    let maxima = layer.tensor("SCB", &[Dtype::F32], &[n])?;
    if let Some(layout) = layer.find("weight_format")
        && layout.data.iter().any(|&byte| byte != 0)
    {
        return Err(layout.error("0, rows", format_args!("{:?}", &layout.data[..])));
    }
    Ok(CodedWeight {
        name: weight.entry.name.clone(),
        shape: layer.shape,
        code: Code::U8,
        codes: weight.data.iter().map(|code| code ^ 0x80).collect::<Vec<_>>().into(),
        scales: Scales {
            rows: 1,
            columns: k,
            values: maxima.scales()?.into_iter().map(|maximum| maximum / 127.0).collect(),
            zeros: Zeros::All(0x80),
        },
        order: None,
        activations: ActivationBits::Full,
    })
}

/// Blocks of the weight, flattened, share a scale.
fn four_bits(layer: &Layer, kind: FourBits) -> Result<CodedWeight> {
    let [n, k] = layer.shape;
    if !k.is_multiple_of(2) {
        return Err(layer.bad_shape("weight", "an even number of inputs"));
    }
    let weight = layer.required("weight")?;
    weight.check(&[Dtype::U8], &[&[n * k / 2, 1], &[1, n * k / 2], &[n, k / 2]])?;
    let map = layer.tensor("weight.quant_map", &[Dtype::F32], &[16])?;
    map.check_finite()?;
    let mut table = [0.0; 16];
    table.iter_mut().zip(map.floats()?).for_each(|(to, from)| *to = from);
    let state = layer.required(match kind {
        FourBits::Nf4 => "weight.quant_state.bitsandbytes__nf4",
        FourBits::Fp4 => "weight.quant_state.bitsandbytes__fp4",
    })?;
    let state = State::read(state, layer.shape)?;
    let absmax = state.scales(layer)?;
    // Within a row, this many weights share a scale.
    let columns = gcd(k, state.block);
    Ok(CodedWeight {
        name: weight.entry.name.clone(),
        shape: layer.shape,
        code: Code::Table(table),
        // The even column is in the upper half of a byte.
        codes: weight.data.iter().map(|pair| pair.rotate_left(4)).collect::<Vec<_>>().into(),
        scales: Scales {
            rows: 1,
            columns,
            values: (0..n * k / columns).map(|group| absmax[group * columns / state.block]).collect(),
            zeros: Zeros::All(0),
        },
        order: None,
        activations: ActivationBits::Full,
    })
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// `quant_state`: JSON in a tensor of bytes.
struct State {
    block: usize,
    /// Scales per scale of scales, and what is added to them.
    nested: Option<(usize, f32)>,
}

impl State {
    fn read(stored: &Stored, shape: [usize; 2]) -> Result<Self> {
        let object =
            parse_object(&stored.file, &stored.data).map_err(|_| stored.error("a JSON object", "other bytes"))?;
        let fields = Fields::new(&stored.file, &object);
        let wrong = |field: &str| stored.error(format_args!("{field} in its JSON"), "none that is valid");
        let size = |field| fields.size(field, 1..=usize::MAX).ok().flatten();
        if numbers(&fields, "shape").ok().flatten() != Some(shape) {
            return Err(wrong(&format!("a shape of {shape:?}")));
        }
        let nested = match (size("nested_blocksize"), fields.number("nested_offset").ok().flatten()) {
            (Some(block), Some(offset)) => Some((block, offset as f32)),
            (None, None) => None,
            _ => return Err(wrong("nested_blocksize and nested_offset")),
        };
        Ok(Self { block: size("blocksize").ok_or_else(|| wrong("blocksize"))?, nested })
    }

    /// The scale of each block.
    fn scales(&self, layer: &Layer) -> Result<Vec<f32>> {
        let [n, k] = layer.shape;
        let blocks = (n * k).div_ceil(self.block);
        let Some((block, offset)) = self.nested else {
            return layer.tensor("weight.absmax", &[Dtype::F32], &[blocks])?.scales();
        };
        let codes = layer.tensor("weight.absmax", &[Dtype::U8], &[blocks])?;
        let map = layer.tensor("weight.nested_quant_map", &[Dtype::F32], &[256])?;
        map.check_finite()?;
        let (map, maxima) =
            (map.floats()?, layer.tensor("weight.nested_absmax", &[Dtype::F32], &[blocks.div_ceil(block)])?);
        let maxima = maxima.scales()?;
        let scale = |(i, &code): (usize, &u8)| map[usize::from(code)] * maxima[i / block] + offset;
        Ok(codes.data.iter().enumerate().map(scale).collect())
    }
}
