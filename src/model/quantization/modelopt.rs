//! NVIDIA ModelOpt's configuration: FP8 with a scale for each tensor, and NVFP4.

use crate::error::Result;
use crate::model::fields::Fields;
use crate::ops::ActivationBits;

use super::fp4::Fp4;
use super::scaled::{EightBits, Granularity, Scaled};
use super::{Format, Layers, Rule};

pub(super) fn read(fields: &Fields) -> Result<Vec<Rule>> {
    // hf_quant_config.json nests what config.json has at the top.
    match fields.object("quantization")? {
        Some(nested) => read_flat(&nested),
        None => read_flat(fields),
    }
}

fn read_flat(fields: &Fields) -> Result<Vec<Rule>> {
    let format = match fields.text("quant_algo")? {
        Some("FP8") => {
            let (code, activations) = (EightBits::E4m3, ActivationBits::Eight);
            Format::Scaled(Scaled { code, granularity: Granularity::Tensor, activations })
        }
        Some("NVFP4") => Format::Fp4(Fp4::ModelOptNv),
        other => return Err(fields.error("quant_algo", "FP8 or NVFP4", other.unwrap_or("no such field"))),
    };
    let mut rules = Vec::new();
    for key in ["exclude_modules", "ignore"] {
        for glob in fields.texts(key)?.unwrap_or_default() {
            let layers = if glob.contains(['*', '?']) {
                let pattern = fancy_regex::escape(glob).replace("\\*", ".*").replace("\\?", ".");
                Layers::regex(fields, &format!("{pattern}$"), key)?
            } else {
                Layers::Part(glob.to_owned())
            };
            rules.push(Rule { layers, format: None });
        }
    }
    rules.push(Rule::new(Layers::Linear, format));
    Ok(rules)
}
