//! Quantized checkpoints: what their configurations say, and how their tensors become [`CodedWeight`]s.
//!
//! A configuration becomes a list of rules, of which the first that fits a layer says how it is stored. Each format is a
//! file of this folder, which turns a layer's tensors into a weight and knows nothing else; after loading nothing
//! depends on it.

mod auto_round;
mod awq;
mod bitsandbytes;
mod compressed_tensors;
mod fp4;
mod fp8;
mod gptq;
mod layer;
mod modelopt;
mod packing;
mod report;
mod scaled;

use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::error::Result;
use crate::ops::CodedWeight;

use super::fields::{Fields, brief};
use super::tensors::Tensors;

use layer::Layer;
pub use report::QuantizationReport;

/// The fields of `config.json` that say how weights are quantized.
pub(super) const QUANTIZATION_KEYS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];

/// Files that say it where `config.json` does not.
pub(super) const QUANTIZATION_FILES: [&str; 3] = ["quantize_config.json", "quant_config.json", "hf_quant_config.json"];

/// The methods of those that name none.
const METHODS: [&str; 3] = ["gptq", "awq", "modelopt"];

/// Parts of multimodal configurations that describe the language model.
const NESTED: [&str; 3] = ["text_config", "llm_config", "language_config"];

/// How a checkpoint's layers are stored.
#[derive(Debug)]
pub(super) struct Quantization {
    /// As the configuration spells it.
    method: String,
    rules: Vec<Rule>,
}

/// How some layers are stored.
#[derive(Debug)]
struct Rule {
    layers: Layers,
    /// `None` is unquantized.
    format: Option<Format>,
}

/// Which layers a rule is about.
#[derive(Debug)]
enum Layers {
    /// Every linear layer.
    Linear,
    /// The embedding.
    Embedding,
    /// The layer of this name.
    Name(String),
    /// Every layer whose name contains this one, as whole components.
    Part(String),
    /// Every layer whose name begins with a match.
    Regex(Regex),
}

/// How a layer is stored.
#[derive(Clone, Debug, PartialEq)]
enum Format {
    Awq(awq::Awq),
    BitsAndBytes(bitsandbytes::BitsAndBytes),
    Fp4(fp4::Fp4),
    Gptq(gptq::Gptq),
    Packed(compressed_tensors::Packed),
    Scaled(scaled::Scaled),
}

impl Quantization {
    /// Reads `config.json` and, if that says nothing, the other files; `None` if no file does.
    ///
    /// # Errors
    /// The method is not supported, or a field has no meaning here.
    pub fn read(
        file: &Path,
        config: &Map<String, Value>,
        other: impl Fn(&str) -> Result<Option<(PathBuf, Map<String, Value>)>>,
    ) -> Result<Option<Self>> {
        let top = Fields::new(file, config);
        let nested: Vec<Fields> = NESTED.iter().filter_map(|key| top.object(key).ok().flatten()).collect();
        for fields in std::iter::once(&top).chain(&nested) {
            for key in QUANTIZATION_KEYS {
                if let Some(object) = fields.object(key)? {
                    let method = method(&object, key)?.ok_or_else(|| {
                        let expected = "a quantized checkpoint that names its method (quant_method)";
                        fields.error(key, expected, "a quantized checkpoint that does not name its method")
                    })?;
                    return Self::of_method(&object, method).map(Some);
                }
            }
        }
        for (name, method) in QUANTIZATION_FILES.into_iter().zip(METHODS) {
            if let Some((path, map)) = other(name)? {
                let fields = Fields::new(&path, &map);
                let method = fields.text("quant_method")?.unwrap_or(method);
                return Self::of_method(&fields, method).map(Some);
            }
        }
        Ok(None)
    }

    fn of_method(fields: &Fields, method: &str) -> Result<Self> {
        let rules = match method {
            "awq" => awq::read(fields)?,
            "gptq" => gptq::read(fields)?,
            "auto-round" | "auto_round" | "autoround" | "intel/auto-round" => auto_round::read(fields)?,
            "compressed-tensors" | "compressed_tensors" => compressed_tensors::read(fields)?,
            "fp8" => fp8::read(fields)?,
            "fbgemm_fp8" => fp8::read_fbgemm(fields)?,
            "modelopt" | "modelopt_fp4" => modelopt::read(fields)?,
            "bitsandbytes" => bitsandbytes::read(fields)?,
            other => {
                let expected = "awq, gptq, auto-round, compressed-tensors, fp8, fbgemm_fp8, modelopt or bitsandbytes";
                let found = match other {
                    "mxfp4" => "mxfp4, which quantizes experts: this architecture has none",
                    other => other,
                };
                return Err(fields.error("quant_method", expected, found));
            }
        };
        Ok(Self { method: method.to_owned(), rules })
    }

    /// The weight `[n, k]` of a layer, whose tensors have names that begin with `layer`; `None` if it is not quantized.
    ///
    /// # Errors
    /// A tensor is missing, has another shape or dtype, or a value that cannot be.
    pub fn weight(&self, tensors: &Tensors, layer: &str, shape: [usize; 2]) -> Result<Option<CodedWeight>> {
        // Lists of layers that are left in 16 bits are often incomplete; the stored dtype is not.
        if tensors.is_dense(layer) {
            return Ok(None);
        }
        self.format(layer).map(|format| format.load(&Layer::new(tensors, layer, shape))).transpose()
    }

    /// How the layer of this name is stored; `None` if it is not quantized.
    fn format(&self, layer: &str) -> Option<&Format> {
        self.rules.iter().find(|rule| rule.layers.contain(layer)).and_then(|rule| rule.format.as_ref())
    }
}

/// The method that an object of `config.json` names, or shows by its fields.
fn method<'a>(object: &Fields<'a>, key: &str) -> Result<Option<&'a str>> {
    if let Some(method) = object.text("quant_method")? {
        return Ok(Some(method));
    }
    let has = |key| object.raw(key).is_some_and(|value| !value.is_null());
    Ok(match () {
        () if key == "quantization" => Some("mlx"),
        () if has("config_groups") || key == "compression_config" => Some("compressed-tensors"),
        () if has("quant_algo") => Some("modelopt"),
        () if has("w_bit") => Some("awq"),
        () if has("load_in_4bit") || has("load_in_8bit") => Some("bitsandbytes"),
        () => None,
    })
}

impl Rule {
    fn new(layers: Layers, format: Format) -> Self {
        Self { layers, format: Some(format) }
    }
}

impl Layers {
    /// A pattern as Python's `re.match` takes it; `key` is the field that has it.
    fn regex(fields: &Fields, pattern: &str, key: &str) -> Result<Self> {
        let regex = Regex::new(&format!("^(?:{pattern})"));
        regex.map(Self::Regex).map_err(|e| fields.error(key, "a regular expression", format_args!("{pattern}: {e}")))
    }

    fn contain(&self, layer: &str) -> bool {
        let is_embedding = layer.ends_with("embed_tokens");
        match self {
            Self::Linear => !is_embedding,
            Self::Embedding => is_embedding,
            Self::Name(name) => layer == name,
            Self::Part(part) => format!(".{layer}.").contains(&format!(".{part}.")),
            // A pattern that needs too many steps matches nothing.
            Self::Regex(regex) => regex.is_match(layer).unwrap_or(false),
        }
    }
}

impl Format {
    fn load(&self, layer: &Layer) -> Result<CodedWeight> {
        match self {
            Self::Awq(format) => format.load(layer),
            Self::BitsAndBytes(format) => format.load(layer),
            Self::Fp4(format) => format.load(layer),
            Self::Gptq(format) => format.load(layer),
            Self::Packed(format) => format.load(layer),
            Self::Scaled(format) => format.load(layer),
        }
    }
}

/// Rules for the layers that lists name as not quantized.
fn skipped(fields: &Fields, keys: &[&'static str]) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for key in keys {
        let names = fields.texts(key)?.unwrap_or_default();
        rules.extend(names.into_iter().map(|name| Rule { layers: Layers::Part(name.to_owned()), format: None }));
    }
    Ok(rules)
}

/// Inputs per group: -1 and `null` are `None`, all inputs.
fn group_size(fields: &Fields, key: &'static str) -> Result<Option<usize>> {
    match fields.raw(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) if value.as_i64() == Some(-1) => Ok(None),
        Some(value) => match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
            Some(size) if size > 0 => Ok(Some(size)),
            _ => Err(fields.error(key, "a number of inputs, or -1", brief(value))),
        },
    }
}

/// Two sizes above 0.
fn numbers(fields: &Fields, key: &'static str) -> Result<Option<[usize; 2]>> {
    let Some(value) = fields.raw(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let size = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let sizes: Option<Vec<usize>> = value.as_array().and_then(|all| all.iter().map(size).collect());
    match sizes.as_deref() {
        Some(&[rows, columns]) => Ok(Some([rows, columns])),
        _ => Err(fields.error(key, "two sizes", brief(value))),
    }
}

/// Fails if a field has one of these values.
fn refuse(fields: &Fields, key: &'static str, values: &[&str], expected: &str) -> Result<()> {
    match fields.text(key)? {
        Some(value) if values.contains(&value) => Err(fields.error(key, expected, value)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: &Value) -> Result<Option<Quantization>> {
        Quantization::read(Path::new("config.json"), config.as_object().unwrap(), |_| Ok(None))
    }

    #[test]
    fn multimodal_configurations_nest_it() {
        let inner = json!({"quant_method": "awq", "bits": 4, "group_size": 64});
        for config in [
            json!({"quantization_config": inner, "text_config": {}}),
            json!({"quantization_config": null, "text_config": {"quantization_config": inner}}),
            json!({"vision_config": {}, "llm_config": {"quantization_config": inner}}),
        ] {
            let quantization = read(&config).unwrap().unwrap();
            assert_eq!(quantization.format("model.x"), Some(&Format::Awq(awq::Awq { group: Some(64) })));
        }
        let other = json!({"text_config": {"quantization_config": {"quant_method": "quark"}}});
        assert!(read(&other).unwrap_err().to_string().contains("text_config.quantization_config.quant_method"));
        assert!(read(&json!({"text_config": {"quantization_config": {}}})).unwrap().is_none());
    }

    #[test]
    fn rules_name_layers_by_whole_components_or_by_patterns_from_the_start() {
        let regex = |pattern: &str| {
            let map = Map::new();
            Layers::regex(&Fields::new(Path::new("config.json"), &map), pattern, "targets").unwrap()
        };
        let layer = "model.layers.1.mlp.gate_proj";
        for (layers, contains) in [
            (Layers::Part("mlp".to_owned()), true),
            (Layers::Part("model.layers.1".to_owned()), true),
            (Layers::Part("layers.1.mlp.gate_proj".to_owned()), true),
            // A router of experts, in lists that were made for them.
            (Layers::Part("mlp.gate".to_owned()), false),
            (Layers::Part("model.layers".to_owned()), true),
            (Layers::Part("odel.layers".to_owned()), false),
            (Layers::Name(layer.to_owned()), true),
            (Layers::Name("mlp.gate_proj".to_owned()), false),
            (regex("model"), true),
            (regex("mlp"), false),
            (regex(r".*\.(gate|up)_proj$"), true),
            (regex(r".*layers\.(?!1\.)"), false),
            (Layers::Linear, true),
            (Layers::Embedding, false),
        ] {
            assert_eq!(layers.contain(layer), contains, "{layers:?}");
        }
        assert!(Layers::Embedding.contain("model.embed_tokens") && !Layers::Linear.contain("model.embed_tokens"));
    }
}
