//! `generation_config.json`: how a checkpoint wants to be sampled.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Result;

use super::fields::{Fields, brief};

/// End tokens and sampling defaults of a checkpoint. `None` is a field that the checkpoint does not set.
///
/// Where a field is not set, `transformers` 5 is greedy (`do_sample`), takes a temperature, top-p and repetition penalty
/// of 1, and keeps the 50 most likely tokens when it samples (`top_k`). All but the last is the rule here too: an
/// unset `top_k` keeps all tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a text, ascending: those of `generation_config.json` and of `config.json`.
    pub eos: Vec<u32>,
    pub bos: Option<u32>,
    /// Unset or false means greedy, whatever the other fields say.
    pub do_sample: Option<bool>,
    /// At least 0.
    pub temperature: Option<f32>,
    /// From 0 to 1.
    pub top_p: Option<f32>,
    /// 0 keeps all.
    pub top_k: Option<usize>,
    /// From 0 to 1.
    pub min_p: Option<f32>,
    /// From 0 to 1.
    pub typical_p: Option<f32>,
    /// Above 0.
    pub repetition_penalty: Option<f32>,
    /// No stretch of so many tokens comes twice; 0 lets all.
    pub no_repeat_ngram_size: Option<usize>,
}

/// Fields by which `transformers` would choose other tokens and which have no counterpart here, with the value at which
/// they do nothing.
const UNSUPPORTED: [(&str, f64); 7] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("penalty_alpha", 0.0),
    ("guidance_scale", 1.0),
];

/// Likewise, for fields that do nothing only when they are empty.
const UNSUPPORTED_LISTS: [&str; 7] = [
    "bad_words_ids",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "suppress_tokens",
];

impl GenerationConfig {
    /// From the two files, each with the name that errors call it by. Without `generation_config.json` all but the
    /// token ids is unset.
    pub(super) fn read(
        generation: Option<(&Path, &Map<String, Value>)>,
        (config_file, config): (&Path, &Map<String, Value>),
    ) -> Result<Self> {
        let config = Fields::new(config_file, config);
        let mut eos = token_ids(&config, "eos_token_id")?;
        let mut bos = token_ids(&config, "bos_token_id")?.first().copied();
        let Some((file, map)) = generation else {
            eos.sort_unstable();
            eos.dedup();
            return Ok(Self { eos, bos, ..Self::default() });
        };
        let fields = Fields::new(file, map);
        eos.extend(token_ids(&fields, "eos_token_id")?);
        eos.sort_unstable();
        eos.dedup();
        bos = token_ids(&fields, "bos_token_id")?.first().copied().or(bos);
        supported(&fields)?;

        const SHARE: &str = "a number from 0 to 1";
        let number = |key, expected, holds| Ok(fields.number_where(key, expected, holds)?.map(|x| x as f32));
        Ok(Self {
            eos,
            bos,
            do_sample: fields.flag("do_sample")?,
            temperature: number("temperature", "a number of at least 0", |x| x >= 0.0)?,
            top_p: number("top_p", SHARE, |x| (0.0..=1.0).contains(&x))?,
            top_k: fields.size("top_k", 0..=u32::MAX as usize)?,
            min_p: number("min_p", SHARE, |x| (0.0..=1.0).contains(&x))?,
            typical_p: number("typical_p", SHARE, |x| (0.0..=1.0).contains(&x))?,
            repetition_penalty: number("repetition_penalty", "a number above 0", |x| x > 0.0)?,
            no_repeat_ngram_size: fields.size("no_repeat_ngram_size", 0..=u32::MAX as usize)?,
        })
    }
}

/// A token id or a list of them.
fn token_ids(fields: &Fields, key: &'static str) -> Result<Vec<u32>> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| fields.error(key, "a token id or a list of token ids", brief(value)))
    };
    match fields.raw(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(one) => Ok(vec![id(one)?]),
    }
}

fn supported(fields: &Fields) -> Result<()> {
    for (key, neutral) in UNSUPPORTED {
        if let Some(value) = fields.number(key)?.filter(|value| *value != neutral) {
            return Err(fields.error(key, format_args!("{neutral}, as others are not supported"), value));
        }
    }
    for key in UNSUPPORTED_LISTS {
        let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if let Some(value) = fields.raw(key).filter(|value| !empty(value)) {
            return Err(fields.error(key, "null, as this is not supported", brief(value)));
        }
    }
    Ok(())
}
