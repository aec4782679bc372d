//! GPTQ: 2, 3, 4 or 8 bits, inputs one after another in words, zero points, and groups in any order of inputs.

use safetensors::Dtype;
use serde_json::Value;

use crate::error::Result;
use crate::model::fields::{Fields, brief};
use crate::ops::{ActivationBits, Code, CodedWeight, Scales, Zeros};

use super::layer::{Layer, zeros};
use super::packing::{self, codes, transpose, transpose_words, unpack};
use super::{Format, Layers, Rule, group_size, refuse};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gptq {
    pub bits: usize,
    /// Inputs per group; `None` is all.
    pub group: Option<usize>,
    /// Zero points are stored less 1, as the first version does.
    pub less_one: bool,
}

pub(super) fn read(fields: &Fields) -> Result<Vec<Rule>> {
    let version = match fields.text("checkpoint_format")? {
        Some(version) => version,
        None => fields.text("format")?.unwrap_or("gptq"),
    };
    if !matches!(version, "gptq" | "gptq_v2") {
        return Err(fields.error("checkpoint_format", "gptq or gptq_v2", version));
    }
    if fields.flag("is_marlin_format")? == Some(true) {
        return Err(fields.error("is_marlin_format", "false (marlin's layout is not read)", true));
    }
    refuse(fields, "pack_dtype", &["int64", "int16", "int8"], "int32")?;
    let base = Gptq {
        bits: bits(fields)?.unwrap_or(4),
        group: group_size(fields, "group_size")?,
        less_one: version == "gptq",
    };
    let mut rules = Vec::new();
    if let Some(dynamic) = fields.object("dynamic")? {
        for (pattern, changes) in dynamic.members()? {
            let skip = pattern.starts_with("-:");
            let layers =
                Layers::regex(&dynamic, pattern.trim_start_matches(['-', '+']).trim_start_matches(':'), pattern)?;
            let mut changed = base.clone();
            if let Some(changes) = &changes {
                changed.bits = bits(changes)?.unwrap_or(base.bits);
                if changes.raw("group_size").is_some() {
                    changed.group = group_size(changes, "group_size")?;
                }
            }
            rules.push(Rule { layers, format: (!skip).then_some(Format::Gptq(changed)) });
        }
    }
    let head = if fields.flag("lm_head")? == Some(true) { Some(Format::Gptq(base.clone())) } else { None };
    rules.push(Rule { layers: Layers::Name("lm_head".to_owned()), format: head });
    let in_block = names(fields, "modules_in_block_to_quantize")?;
    if in_block.is_empty() {
        rules.push(Rule::new(Layers::Linear, Format::Gptq(base)));
    } else {
        rules.extend(in_block.into_iter().map(|name| Rule::new(Layers::Part(name), Format::Gptq(base.clone()))));
    }
    Ok(rules)
}

fn bits(fields: &Fields) -> Result<Option<usize>> {
    match fields.size("bits", 0..=64)? {
        None => Ok(None),
        Some(bits @ (2 | 3 | 4 | 8)) => Ok(Some(bits)),
        Some(bits) => Err(fields.error("bits", "2, 3, 4 or 8", bits)),
    }
}

/// Names in a list, or in a list of lists.
fn names(fields: &Fields, key: &'static str) -> Result<Vec<String>> {
    fn collect(value: &Value, to: &mut Vec<String>) -> bool {
        match value {
            Value::String(name) => to.push(name.clone()),
            Value::Array(all) => return all.iter().all(|value| collect(value, to)),
            _ => return false,
        }
        true
    }
    let mut names = Vec::new();
    match fields.raw(key) {
        Some(value) if !value.is_null() && !collect(value, &mut names) => {
            Err(fields.error(key, "lists of names", brief(value)))
        }
        _ => Ok(names),
    }
}

impl Gptq {
    pub fn load(&self, layer: &Layer) -> Result<CodedWeight> {
        let ([n, k], bits) = (layer.shape, self.bits);
        if !(n * bits).is_multiple_of(32) || !(k * bits).is_multiple_of(32) {
            return Err(
                layer.bad_shape("qweight", format_args!("outputs and inputs of {bits} bits that fill 32-bit words"))
            );
        }
        let columns = self.group.unwrap_or(k).min(k);
        let groups = k.div_ceil(columns);
        let (words, zero_words) = (k * bits / 32, n * bits / 32);
        let qweight = layer.tensor("qweight", &[Dtype::I32], &[words, n])?;
        let qzeros = layer.tensor("qzeros", &[Dtype::I32], &[groups, zero_words])?;
        let scales = layer.tensor("scales", &[Dtype::F16, Dtype::BF16, Dtype::F32], &[groups, n])?;
        let order = layer.order("g_idx", columns)?;
        let fields = (bits, packing::Fields::Dense);
        let rows = transpose_words(&qweight.data, words, n).into();
        Ok(CodedWeight {
            name: qweight.entry.name.clone(),
            shape: layer.shape,
            code: if bits == 8 { Code::U8 } else { Code::U4 },
            codes: codes(&rows, 4 * words, fields, layer.shape, order.as_deref()),
            scales: Scales {
                rows: 1,
                columns,
                values: transpose(&scales.scales()?, groups, n),
                zeros: self.zeros(&qzeros.data, groups, n),
            },
            order,
            activations: ActivationBits::Full,
        })
    }

    /// Zero points of words `[groups, n · bits / 32]`.
    fn zeros(&self, words: &[u8], groups: usize, n: usize) -> Zeros {
        let mut all = vec![0; groups * n];
        for (words, zeros) in words.chunks(n * self.bits / 8).zip(all.chunks_mut(n)) {
            unpack(self.bits, packing::Fields::Dense, words, zeros);
        }
        if self.less_one {
            let mask = u8::MAX >> (8 - self.bits);
            all.iter_mut().for_each(|zero| *zero = zero.wrapping_add(1) & mask);
        }
        zeros(transpose(&all, groups, n))
    }
}
