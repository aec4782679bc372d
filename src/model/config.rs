//! Reads `config.json` into an [`ArchSpec`].
//!
//! Both spellings are supported: `rope_theta`, `rope_scaling`, `torch_dtype`, and the newer `rope_parameters`, `dtype`.
//! An absent field has the default of the `transformers` class. No field is silently ignored:
//!
//! 1. A field that the family uses is read and checked.
//! 2. A field that is known not to change a forward pass (see [`families::harmless`]) may have any value.
//! 3. Any other field may only have a value that switches nothing on: `null`, `false`, `0` or empty; or `true`, for the
//!    few whose absence means true (see [`families::ALWAYS_TRUE`]).
//!
//! Anything else is an error that names the field. If an unknown field really changes nothing, set it to `null`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::dtype::DType;
use crate::error::Result;
use crate::ops::Activation;

use super::families::{self, Bias, FAMILIES, Family, Windows};
use super::fields::{Fields, parse_object};
use super::quantization::QUANTIZATION_KEYS;
use super::rope_config;
use super::spec::{ArchSpec, MAX_CONTEXT};

// Limits beyond any existing model. They keep products of sizes within 64 bits, and hostile numbers from allocating.
const MAX_WIDTH: usize = 1 << 28;
const MAX_LAYERS: usize = 1 << 14;
const MAX_HEADS: usize = 1 << 16;
const MAX_HEAD_DIM: usize = 1 << 14;

impl ArchSpec {
    /// Parses a `config.json`. `file` names it in errors; `stored` is the dtype of the weights, for configurations
    /// without one.
    ///
    /// # Errors
    /// The text is not a configuration, the architecture is not supported, a value is out of range, or a field that may
    /// change the mathematics is unknown.
    pub fn from_config(file: &Path, text: &[u8], stored: Option<DType>) -> Result<Self> {
        Self::from_map(file, &parse_object(file, text)?, stored)
    }

    pub(super) fn from_map(file: &Path, config: &Map<String, Value>, stored: Option<DType>) -> Result<Self> {
        let fields = Fields::new(file, config);
        let family = family(&fields)?;
        // How weights are stored: read with them.
        QUANTIZATION_KEYS.iter().for_each(|key| _ = fields.raw(key));

        let vocab_size = fields.size_or("vocab_size", 1..=MAX_WIDTH, family.vocab_size)?;
        let hidden_size = fields.size_or("hidden_size", 1..=MAX_WIDTH, families::HIDDEN_SIZE)?;
        let intermediate_size = fields.size_or("intermediate_size", 1..=MAX_WIDTH, family.intermediate_size)?;
        let layers = fields.size_or("num_hidden_layers", 1..=MAX_LAYERS, families::LAYERS)?;
        let heads = fields.size_or("num_attention_heads", 1..=MAX_HEADS, families::HEADS)?;
        let kv_heads = kv_heads(&fields, family, heads)?;
        let head_dim = head_dim(&fields, family, hidden_size, heads)?;
        let max_positions = fields.size_or("max_position_embeddings", 1..=MAX_CONTEXT, family.context)?;
        let norm_eps = fields.number_where("rms_norm_eps", "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?;

        let attention_bias = fields.flag("attention_bias")?;
        let qkv_bias = bias(&fields, "attention_bias", family.qkv_bias, attention_bias)?;
        let output_bias = match family.output_bias {
            Bias::Asked => attention_bias.unwrap_or(false),
            fixed => fixed == Bias::Always,
        };
        let mlp_bias = bias(&fields, "mlp_bias", family.mlp_bias, fields.flag("mlp_bias")?)?;

        let (rope, context) = rope_config::read(&fields, head_dim, max_positions)?;
        let spec = Self {
            model_type: family.model_type.to_owned(),
            vocab_size,
            hidden_size,
            intermediate_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            norm_eps: norm_eps.unwrap_or(families::NORM_EPS) as f32,
            activation: activation(&fields)?,
            qkv_bias,
            output_bias,
            mlp_bias,
            qk_norm: family.qk_norm,
            tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            rope,
            windows: windows(&fields, family.windows, layers, max_positions)?,
            attention_scale: (head_dim as f64).powf(-0.5) as f32,
            context,
            dtype: dtype(&fields, stored)?,
        };
        for key in families::ALWAYS_TRUE {
            if fields.flag(key)? == Some(false) {
                return Err(fields.error(key, "true, as in every model of this architecture", false));
            }
        }
        fields.finish(families::harmless)?;
        Ok(spec)
    }
}

fn family(fields: &Fields) -> Result<&'static Family> {
    let architectures = fields.texts("architectures")?.unwrap_or_default();
    let named = |family: &&Family| architectures.iter().any(|name| family.architectures.contains(name));
    let Some(model_type) = fields.text("model_type")? else {
        return FAMILIES
            .iter()
            .find(named)
            .ok_or_else(|| fields.error("model_type", format_args!("one of {}", known_types()), "no such field"));
    };
    let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) else {
        return Err(fields.error("model_type", format_args!("one of {}", known_types()), model_type));
    };
    if !architectures.is_empty() && !named(&family) {
        let found = architectures.join(", ");
        return Err(fields.error("architectures", family.architectures[0], found));
    }
    Ok(family)
}

fn known_types() -> String {
    FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", ")
}

fn kv_heads(fields: &Fields, family: &Family, heads: usize) -> Result<usize> {
    const KEY: &str = "num_key_value_heads";
    let absent = fields.raw(KEY).is_none();
    let kv_heads = match fields.size(KEY, 1..=MAX_HEADS)? {
        Some(n) => n,
        None if absent => family.kv_heads.unwrap_or(heads),
        None => heads,
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(fields.error(KEY, format_args!("a divisor of num_attention_heads ({heads})"), kv_heads));
    }
    Ok(kv_heads)
}

fn head_dim(fields: &Fields, family: &Family, hidden_size: usize, heads: usize) -> Result<usize> {
    const KEY: &str = "head_dim";
    let given = match family.head_dim {
        Some(default) => Some(fields.size_or(KEY, 1..=MAX_HEAD_DIM, default)?),
        None => fields.size(KEY, 1..=MAX_HEAD_DIM)?,
    };
    let head_dim = given.unwrap_or(hidden_size / heads);
    if given.is_none() && !(2..=MAX_HEAD_DIM).contains(&head_dim) {
        let found = format!("{heads} heads for a hidden_size of {hidden_size}");
        return Err(fields.error("num_attention_heads", "a number that leaves a head some dimensions", found));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(fields.error(KEY, "an even number, as dimensions rotate in pairs", head_dim));
    }
    Ok(head_dim)
}

fn bias(fields: &Fields, key: &str, rule: Bias, flag: Option<bool>) -> Result<bool> {
    match (rule, flag) {
        (Bias::Asked, flag) => Ok(flag.unwrap_or(false)),
        (Bias::Never, Some(true)) => Err(fields.error(key, "false, as this architecture has no such bias", true)),
        (Bias::Always, Some(false)) => Err(fields.error(key, "true, as this architecture always has it", false)),
        (rule, _) => Ok(rule == Bias::Always),
    }
}

fn activation(fields: &Fields) -> Result<Activation> {
    let name = fields.text("hidden_act")?.unwrap_or("silu");
    let activation = match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" | "gelu_python_tanh" => Activation::GeluTanh,
        _ => return Err(fields.error("hidden_act", "silu, gelu or gelu_pytorch_tanh", name)),
    };
    // Some Llama files say it a second time under another name.
    match fields.text("activation")? {
        None => Ok(activation),
        Some("silu" | "swish" | "swiglu") if activation == Activation::Silu => Ok(activation),
        Some(other) => Err(fields.error("activation", format_args!("what hidden_act says ({name})"), other)),
    }
}

fn dtype(fields: &Fields, stored: Option<DType>) -> Result<DType> {
    let (newer, older) = (fields.text("dtype")?, fields.text("torch_dtype")?);
    let key = if newer.is_some() { "dtype" } else { "torch_dtype" };
    match newer.or(older).map(|name| name.strip_prefix("torch.").unwrap_or(name)) {
        None | Some("auto") => Ok(stored.unwrap_or(DType::F32)),
        Some("float32" | "float") => Ok(DType::F32),
        Some("bfloat16") => Ok(DType::BF16),
        Some("float16" | "half") => Ok(DType::F16),
        Some(other) => Err(fields.error(key, "bfloat16, float16 or float32", other)),
    }
}

/// The sliding window of each layer. A query at position `p` then sees `p - window + 1 ..= p`.
fn windows(fields: &Fields, rule: Windows, layers: usize, context: usize) -> Result<Vec<Option<usize>>> {
    let given = fields.size("sliding_window", 1..=MAX_CONTEXT)?;
    let absent = fields.raw("sliding_window").is_none();
    let switch = fields.flag("use_sliding_window")?;
    let kinds = layer_kinds(fields, layers)?;
    match rule {
        Windows::Never => {
            if switch == Some(true) {
                return Err(fields.error("use_sliding_window", "false, as this architecture has no windows", true));
            }
            match given {
                Some(window) if switch.is_none() && window < context => {
                    Err(fields.error("sliding_window", "null, as this architecture has no windows", window))
                }
                _ => agree(fields, kinds, vec![None; layers]),
            }
        }
        Windows::Everywhere(default) => {
            let window = if absent { Some(default) } else { given };
            match window {
                Some(window) if switch == Some(false) && window < context => {
                    Err(fields.error("use_sliding_window", format_args!("true, as sliding_window is {window}"), false))
                }
                _ => agree(fields, kinds, vec![window; layers]),
            }
        }
        Windows::Switched { window: default, first_layer } => {
            let window = if absent { Some(default) } else { given };
            let window = window.filter(|_| switch.unwrap_or(false));
            let first = fields.size("max_window_layers", 0..=MAX_WIDTH)?.unwrap_or(first_layer);
            let Some(kinds) = kinds else {
                return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
            };
            if window.is_none() && kinds.contains(&true) {
                let expected = "true and a sliding_window, as layer_types names sliding_attention";
                return Err(fields.error("use_sliding_window", expected, switch.unwrap_or(false)));
            }
            Ok(kinds.into_iter().map(|slides| window.filter(|_| slides)).collect())
        }
    }
}

/// `layer_types`, as: does the layer slide?
fn layer_kinds(fields: &Fields, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(names) = fields.texts("layer_types")? else { return Ok(None) };
    if names.len() != layers {
        let expected = format!("{layers} entries, as num_hidden_layers says");
        return Err(fields.error("layer_types", expected, names.len()));
    }
    let slides = |name: &str| match name {
        "full_attention" | "attention" => Ok(false),
        "sliding_attention" => Ok(true),
        _ => Err(fields.error("layer_types", "full_attention or sliding_attention", name)),
    };
    names.into_iter().map(slides).collect::<Result<_>>().map(Some)
}

/// Checks `layer_types` for models whose windows it does not decide.
fn agree(fields: &Fields, kinds: Option<Vec<bool>>, windows: Vec<Option<usize>>) -> Result<Vec<Option<usize>>> {
    let name = |slides: bool| if slides { "sliding_attention" } else { "full_attention" };
    for (layer, (slides, window)) in kinds.into_iter().flatten().zip(&windows).enumerate() {
        if slides != window.is_some() {
            let expected = format!("{} in every layer of this model", name(window.is_some()));
            return Err(fields.error("layer_types", expected, format_args!("{} in layer {layer}", name(slides))));
        }
    }
    Ok(windows)
}
