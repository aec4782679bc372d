//! `generation_config.json`: how a checkpoint wants to be sampled.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Result;

use super::fields::{Fields, brief, inert};

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
    /// At least 1. Goes before `max_length`.
    pub max_new_tokens: Option<usize>,
    /// Tokens of prompt and text together; at least 1.
    pub max_length: Option<usize>,
    /// Goes before `min_length`.
    pub min_new_tokens: Option<usize>,
    /// Tokens of prompt and text together.
    pub min_length: Option<usize>,
    /// Texts that end a text; none is empty.
    pub stop_strings: Vec<String>,
    /// Tokens that are never chosen: `suppress_tokens`, and those of `bad_words_ids` that are words by themselves.
    pub suppress_tokens: Vec<u32>,
    /// Token sequences, and what is added to the logit of the last token after the others: `sequence_bias`, and −∞ for
    /// `bad_words_ids` of several tokens.
    pub sequence_bias: Vec<(Vec<u32>, f32)>,
    /// Tokens that are not chosen as the first.
    pub begin_suppress_tokens: Vec<u32>,
}

/// Fields by which `transformers` would choose other tokens and which have no counterpart here, with the value at which
/// they do nothing.
const UNSUPPORTED: [(&str, f64); 10] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("num_return_sequences", 1.0),
    ("diversity_penalty", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("penalty_alpha", 0.0),
    ("guidance_scale", 1.0),
];

/// Likewise, for fields that do nothing only when they say nothing.
const UNSUPPORTED_UNLESS_EMPTY: [&str; 10] = [
    "constraints",
    "dola_layers",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "max_time",
    "token_healing",
    "top_h",
    "watermarking_config",
];

/// Fields that choose no tokens: how `generate` of `transformers` computes and what it returns, what only beam search,
/// assistant models and encoders read, and what programs have left there.
const HARMLESS: [&str; 29] = [
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "cache_config",
    "cache_implementation",
    "chat_format",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "early_stopping",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "max_window_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "pad_token_id",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "remove_invalid_values",
    "renormalize_logits",
    "speculation_type",
    "target_lookbehind",
    "use_cache",
    "use_mtp",
];

fn harmless(key: &str) -> bool {
    let is_output = ["output_", "return_", "_"].iter().any(|start| key.starts_with(start));
    is_output || key == "transformers_version" || HARMLESS.contains(&key)
}

impl GenerationConfig {
    /// From the two files, each with the name that errors call it by. Without `generation_config.json` all but the
    /// token ids is unset.
    pub(super) fn read(
        generation: Option<(&Path, &Map<String, Value>)>,
        (config_file, config): (&Path, &Map<String, Value>),
    ) -> Result<Self> {
        let config = Fields::new(config_file, config);
        let mut eos = token_ids(&config, "eos_token_id")?;
        let bos = token_ids(&config, "bos_token_id")?.first().copied();
        let Some((file, map)) = generation else {
            return Ok(Self { eos: ascending(eos), bos, ..Self::default() });
        };
        let fields = Fields::new(file, map);
        eos.extend(token_ids(&fields, "eos_token_id")?);
        let eos = ascending(eos);
        let mut suppress_tokens = token_ids(&fields, "suppress_tokens")?;
        let mut biases: Vec<(Vec<u32>, f32)> = sequence_bias(&fields)?.into_iter().collect();
        let has_biases = !biases.is_empty();
        for word in bad_words(&fields)? {
            match word.as_slice() {
                // A bad word that is an end token is none, as in `transformers`.
                [token] if eos.contains(token) => {}
                [token] => suppress_tokens.push(*token),
                _ => biases.push((word, f32::NEG_INFINITY)),
            }
        }
        const SHARE: &str = "a number from 0 to 1";
        const SIZES: RangeInclusive<usize> = 0..=u32::MAX as usize;
        let number = |key, expected, holds| Ok(fields.number_where(key, expected, holds)?.map(|x| x as f32));
        let read = Self {
            bos: token_ids(&fields, "bos_token_id")?.first().copied().or(bos),
            do_sample: fields.flag("do_sample")?,
            temperature: number("temperature", "a number of at least 0", |x| x >= 0.0)?,
            top_p: number("top_p", SHARE, |x| (0.0..=1.0).contains(&x))?,
            top_k: fields.size("top_k", SIZES)?,
            min_p: number("min_p", SHARE, |x| (0.0..=1.0).contains(&x))?,
            typical_p: number("typical_p", SHARE, |x| (0.0..=1.0).contains(&x))?,
            repetition_penalty: number("repetition_penalty", "a number above 0", |x| x > 0.0)?,
            no_repeat_ngram_size: fields.size("no_repeat_ngram_size", SIZES)?,
            max_new_tokens: fields.size("max_new_tokens", 1..=u32::MAX as usize)?,
            max_length: fields.size("max_length", 1..=u32::MAX as usize)?,
            min_new_tokens: fields.size("min_new_tokens", SIZES)?,
            min_length: fields.size("min_length", SIZES)?,
            stop_strings: stop_strings(&fields)?,
            suppress_tokens: ascending(suppress_tokens),
            sequence_bias: biases,
            begin_suppress_tokens: ascending(token_ids(&fields, "begin_suppress_tokens")?),
            eos,
        };
        if let Some(penalty) = read.repetition_penalty.filter(|penalty| has_biases && *penalty != 1.0) {
            let expected =
                "1 beside a sequence_bias, which is added after the penalty here and before it in transformers";
            return Err(fields.error("repetition_penalty", expected, penalty));
        }
        supported(&fields)?;
        fields.finish(harmless)?;
        Ok(read)
    }

    /// Tokens that may follow a prompt of so many; `None` where the checkpoint sets no limit.
    pub fn max_tokens(&self, prompt_len: usize) -> Option<usize> {
        self.max_new_tokens.or(self.max_length.map(|length| length.saturating_sub(prompt_len)))
    }

    /// Tokens that follow a prompt of so many at least.
    pub fn min_tokens(&self, prompt_len: usize) -> usize {
        self.min_new_tokens.or(self.min_length.map(|length| length.saturating_sub(prompt_len))).unwrap_or(0)
    }
}

fn ascending(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// A token id or a list of them.
fn token_ids(fields: &Fields, key: &'static str) -> Result<Vec<u32>> {
    match fields.raw(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|value| token_id(fields, key, value)).collect(),
        Some(one) => Ok(vec![token_id(fields, key, one)?]),
    }
}

fn token_id(fields: &Fields, key: &str, value: &Value) -> Result<u32> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| fields.error(key, "a token id or a list of token ids", brief(value)))
}

/// A list of token ids, which is not empty; `None` for anything else.
fn sequence(value: &Value) -> Option<Vec<u32>> {
    let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array().filter(|list| !list.is_empty())?.iter().map(token).collect()
}

fn bad_words(fields: &Fields) -> Result<Vec<Vec<u32>>> {
    const KEY: &str = "bad_words_ids";
    let wrong = |value: &Value| fields.error(KEY, "lists of token ids, none of them empty", brief(value));
    match fields.raw(KEY) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|word| sequence(word).ok_or_else(|| wrong(word))).collect(),
        Some(value) => Err(wrong(value)),
    }
}

/// Pairs of token ids and a number. The last one of the same ids counts.
fn sequence_bias(fields: &Fields) -> Result<BTreeMap<Vec<u32>, f32>> {
    const KEY: &str = "sequence_bias";
    let wrong = |value: &Value| fields.error(KEY, "pairs of a list of token ids and a number", brief(value));
    let pair = |value: &Value| match value.as_array().map(Vec::as_slice) {
        Some([tokens, bias]) => sequence(tokens).zip(bias.as_f64()).ok_or_else(|| wrong(value)),
        _ => Err(wrong(value)),
    };
    match fields.raw(KEY) {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::Array(list)) => {
            list.iter().map(|value| pair(value).map(|(tokens, bias)| (tokens, bias as f32))).collect()
        }
        Some(value) => Err(wrong(value)),
    }
}

/// A text or a list of them.
fn stop_strings(fields: &Fields) -> Result<Vec<String>> {
    const KEY: &str = "stop_strings";
    let text = |value: &Value| match value.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(fields.error(KEY, "a text or a list of texts, none of them empty", brief(value))),
    };
    match fields.raw(KEY) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        Some(one) => Ok(vec![text(one)?]),
    }
}

fn supported(fields: &Fields) -> Result<()> {
    for (key, neutral) in UNSUPPORTED {
        if let Some(value) = fields.number(key)?.filter(|value| *value != neutral) {
            return Err(fields.error(key, format_args!("{neutral}, as others are not supported"), value));
        }
    }
    for key in UNSUPPORTED_UNLESS_EMPTY {
        // A number says something, even 0: it may be a token id.
        if let Some(value) = fields.raw(key).filter(|value| value.is_number() || !inert(value)) {
            return Err(fields.error(key, "null, as this is not supported", brief(value)));
        }
    }
    Ok(())
}
