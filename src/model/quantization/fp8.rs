//! FP8 as `transformers` and vLLM write it: e4m3 with scales of tensors, rows or blocks; and FBGEMM's, of rows.

use crate::error::Result;
use crate::model::fields::Fields;
use crate::ops::ActivationBits;

use super::scaled::{EightBits, Granularity, Scaled};
use super::{Format, Layers, Rule, numbers, refuse, skipped};

pub(super) fn read(fields: &Fields) -> Result<Vec<Rule>> {
    refuse(fields, "fmt", &["e5m2"], "e4m3")?;
    let granularity = match numbers(fields, "weight_block_size")? {
        Some([rows, columns]) => Granularity::Blocks([rows, columns]),
        None => Granularity::TensorOrRows,
    };
    let activations = match fields.text("activation_scheme")?.unwrap_or("dynamic") {
        "dynamic" | "static" => ActivationBits::Eight,
        other => return Err(fields.error("activation_scheme", "dynamic or static", other)),
    };
    let mut rules = skipped(fields, &["modules_to_not_convert", "ignored_layers"])?;
    let format = Format::Scaled(Scaled { code: EightBits::E4m3, granularity, activations });
    rules.push(Rule::new(Layers::Linear, format));
    Ok(rules)
}

pub(super) fn read_fbgemm(fields: &Fields) -> Result<Vec<Rule>> {
    let mut rules = skipped(fields, &["modules_to_not_convert"])?;
    let format = Scaled { code: EightBits::E4m3, granularity: Granularity::Rows, activations: ActivationBits::Eight };
    rules.push(Rule::new(Layers::Linear, Format::Scaled(format)));
    Ok(rules)
}
