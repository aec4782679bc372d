//! AutoRound's own configuration; its weights are packed as GPTQ's or AWQ's.

use crate::error::Result;
use crate::model::fields::Fields;

use super::awq::Awq;
use super::gptq::Gptq;
use super::{Format, Layers, Rule, group_size, refuse};

pub(super) fn read(fields: &Fields) -> Result<Vec<Rule>> {
    refuse(fields, "data_type", &["mx_fp", "nv_fp", "fp", "fp8"], "int")?;
    let packing = match fields.text("packing_format")? {
        Some(packing) => packing,
        None => fields.text("backend")?.unwrap_or("auto_round:auto_gptq"),
    };
    let base = match packing {
        "auto_round" | "auto_round:gptqmodel" => Base { awq: false, less_one: false },
        "auto_round:auto_gptq" => Base { awq: false, less_one: true },
        "auto_round:auto_awq" => Base { awq: true, less_one: false },
        other => {
            let expected = "auto_round, auto_round:auto_gptq, auto_round:gptqmodel or auto_round:auto_awq";
            return Err(fields.error("packing_format", expected, other));
        }
    };
    let mut rules = Vec::new();
    let (bits, group) = (fields.size("bits", 0..=64)?.unwrap_or(4), group_size(fields, "group_size")?);
    if let Some(layers) = fields.object("extra_config")? {
        for (name, changes) in layers.members()? {
            let Some(changes) = changes else { continue };
            let bits = changes.size("bits", 0..=64)?.unwrap_or(bits);
            let group = if changes.raw("group_size").is_some() { group_size(&changes, "group_size")? } else { group };
            let is_pattern = name.contains(['*', '\\', '^', '$', '[', '(', '+', '?', '|']);
            let layers = if is_pattern { Layers::regex(&layers, name, name)? } else { Layers::Name(name.to_owned()) };
            rules.push(Rule { layers, format: base.format(&changes, bits, group)? });
        }
    }
    rules.push(Rule { layers: Layers::Linear, format: base.format(fields, bits, group)? });
    Ok(rules)
}

struct Base {
    awq: bool,
    less_one: bool,
}

impl Base {
    fn format(&self, fields: &Fields, bits: usize, group: Option<usize>) -> Result<Option<Format>> {
        match (bits, self.awq) {
            (16 | 32, _) => Ok(None),
            (4, true) => Ok(Some(Format::Awq(Awq { group }))),
            (2 | 3 | 4 | 8, false) => Ok(Some(Format::Gptq(Gptq { bits, group, less_one: self.less_one }))),
            (_, true) => Err(fields.error("bits", "4 or 16", bits)),
            (_, false) => Err(fields.error("bits", "2, 3, 4, 8 or 16", bits)),
        }
    }
}
