//! The special and added tokens of a checkpoint, from the files around `tokenizer.json`, by the rules of `transformers`:
//! `tokenizer_config.json`, and where that has no `added_tokens_decoder`, `special_tokens_map.json` and
//! `added_tokens.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::files::{kind, read_object};
use super::one_line;
use crate::error::{Error, Result};

/// The names of special tokens that every tokenizer may have, in the order in which new ones are added.
const ATTRIBUTES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the tokenizer classes of `transformers` call special where the files do not say.
const CLASS_DEFAULTS: [(&str, &[(&str, &str)]); 7] = [
    ("LlamaTokenizer", &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]),
    (
        "CodeLlamaTokenizer",
        &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("prefix_token", "▁<PRE>"),
            ("middle_token", "▁<MID>"),
            ("suffix_token", "▁<SUF>"),
            ("eot_token", "▁<EOT>"),
            ("fill_token", "<FILL_ME>"),
        ],
    ),
    (
        "Qwen2Tokenizer",
        &[("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
    ),
    (
        "GPT2Tokenizer",
        &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")],
    ),
    (
        "GPTNeoXTokenizer",
        &[
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", "<|padding|>"),
        ],
    ),
    (
        "GemmaTokenizer",
        &[
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
    ),
    (
        "CohereTokenizer",
        &[
            ("bos_token", "<BOS_TOKEN>"),
            ("eos_token", "<|END_OF_TURN_TOKEN|>"),
            ("unk_token", "<UNK>"),
            ("sep_token", "<SEP>"),
            ("pad_token", "<PAD>"),
            ("cls_token", "<CLS>"),
            ("mask_token", "<MASK_TOKEN>"),
        ],
    ),
];

/// What the files say.
#[derive(Debug, Default)]
pub(super) struct SpecialTokens {
    /// Special tokens by what they are for: `bos_token`, `eos_token`, …
    named: Vec<(String, AddedToken)>,
    /// Further special tokens.
    extra: Vec<AddedToken>,
    /// Tokens with the ids that they must have, special or not.
    added: BTreeMap<u32, AddedToken>,
    /// The file that `added` is from.
    added_file: PathBuf,
    /// Whether `tokenizer.json` has the last word on its own added tokens.
    definition_wins: bool,
    /// Whether names of special tokens in a text are text.
    split_special: bool,
}

impl SpecialTokens {
    /// Of the checkpoint in `folder`, whose `tokenizer.json` holds `definition`.
    pub fn read(folder: &Path, definition: &str) -> Result<Self> {
        let config = folder.join("tokenizer_config.json");
        let settings = read_object(&config)?.unwrap_or_default();
        let model = read_object(&folder.join("config.json"))?.unwrap_or_default();
        let mut tokens = Self {
            added_file: config.clone(),
            split_special: settings.get("split_special_tokens") == Some(&Value::Bool(true)),
            ..Self::default()
        };
        tokens.take_named(&config, &settings)?;
        tokens.take_extra(&config, &settings)?;
        if let Some(decoder) = settings.get("added_tokens_decoder") {
            tokens.added = added_tokens_decoder(&config, decoder)?;
        } else {
            tokens.definition_wins = true;
            let map = folder.join("special_tokens_map.json");
            let older = read_object(&map)?.unwrap_or_default();
            tokens.take_named(&map, &older)?;
            if !settings.contains_key("additional_special_tokens") && !settings.contains_key("extra_special_tokens") {
                tokens.take_extra(&map, &older)?;
            }
            tokens.added_file = folder.join("added_tokens.json");
            let added = read_object(&tokens.added_file)?.unwrap_or_default();
            tokens.added = tokens.with_ids(&added)?;
        }
        let class = settings.get("tokenizer_class").or(model.get("tokenizer_class")).and_then(Value::as_str);
        let is_byte_level = definition.contains("\"ByteLevel\"");
        let defaults = class_defaults(model.get("model_type").and_then(Value::as_str), class, is_byte_level);
        let is_said = |name: &str| settings.contains_key(name) || tokens.named.iter().any(|(known, _)| known == name);
        let missing: Vec<_> = defaults.iter().filter(|(name, _)| !is_said(name)).collect();
        tokens.named.extend(missing.into_iter().map(|(name, text)| ((*name).to_owned(), special(text))));
        let rank = |name: &str| ATTRIBUTES.iter().position(|known| *known == name).unwrap_or(ATTRIBUTES.len());
        tokens.named.sort_by_key(|(name, _)| rank(name));
        Ok(tokens)
    }

    /// What a chat template knows by name.
    pub fn variables(self) -> Map<String, Value> {
        self.named.into_iter().map(|(name, token)| (name, Value::from(token.content))).collect()
    }

    /// Adds the tokens to a tokenizer.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where a token gets another id than the file says.
    pub fn add_to(&self, tokenizer: &mut tokenizers::Tokenizer) -> Result<()> {
        let own: BTreeMap<u32, AddedToken> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        let own_names: BTreeSet<String> = own.values().map(|token| token.content.clone()).collect();
        let mut tokens = self.added.clone();
        if self.definition_wins {
            tokens.retain(|_, token| !own_names.contains(&token.content));
            tokens.extend(own);
        }
        let is_named = |content: &str| self.named.iter().any(|(_, token)| token.content == content);
        let mut list: Vec<AddedToken> = tokens.into_values().collect();
        for token in &mut list {
            token.special |= is_named(&token.content);
        }
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            if !own_names.contains(&token.content) && list.iter().all(|known| known.content != token.content) {
                list.push(token.clone());
            }
        }
        tokenizer.set_encode_special_tokens(self.split_special);
        let failed = |e| Error::checkpoint(&self.added_file, "added tokens", "tokens that can be added", one_line(e));
        tokenizer.add_tokens(list).map_err(failed)?;
        for (&id, token) in &self.added {
            if let Some(found) = tokenizer.token_to_id(&token.content).filter(|found| *found != id) {
                let expected = format!("an id that follows from tokenizer.json, which is {found}");
                return Err(Error::checkpoint(&self.added_file, format!("token {:?}", token.content), expected, id));
            }
        }
        Ok(())
    }

    /// Tokens by name, from one of the files; those that are there already change.
    fn take_named(&mut self, file: &Path, object: &Map<String, Value>) -> Result<()> {
        let nested = object.get("extra_special_tokens").and_then(Value::as_object).into_iter().flatten();
        for (name, value) in object.iter().filter(|(name, _)| name.ends_with("_token")).chain(nested) {
            let token = match value {
                Value::String(text) => special(text),
                Value::Object(fields) => added_token(file, name, fields, Some(true))?,
                Value::Null => continue,
                // `add_bos_token` and its like.
                _ if !ATTRIBUTES.contains(&name.as_str()) => continue,
                other => return Err(Error::checkpoint(file, name, "a token", kind(other))),
            };
            match self.named.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => *known = token,
                None => self.named.push((name.clone(), token)),
            }
        }
        Ok(())
    }

    /// Special tokens without a name.
    fn take_extra(&mut self, file: &Path, object: &Map<String, Value>) -> Result<()> {
        let lists = ["extra_special_tokens", "additional_special_tokens"].map(|key| (key, object.get(key)));
        let filled = lists.iter().find_map(|(key, value)| Some((*key, value.as_ref()?.as_array()?)));
        let Some((field, list)) = filled.filter(|(_, list)| !list.is_empty()) else { return Ok(()) };
        for value in list {
            self.extra.push(match value {
                Value::String(text) => special(text),
                Value::Object(fields) => added_token(file, field, fields, Some(true))?,
                other => return Err(Error::checkpoint(file, field, "a list of tokens", kind(other))),
            });
        }
        Ok(())
    }

    /// The tokens of `added_tokens.json`, a map of names to ids.
    fn with_ids(&self, object: &Map<String, Value>) -> Result<BTreeMap<u32, AddedToken>> {
        let specials = self.named.iter().map(|(_, token)| token).chain(&self.extra);
        let specials: BTreeSet<&str> = specials.map(|token| token.content.as_str()).collect();
        let token = |(content, id): (&String, &Value)| {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let wrong = || Error::checkpoint(&self.added_file, format!("token {content:?}"), "a token id", id);
            Ok((number.ok_or_else(wrong)?, AddedToken::from(content, specials.contains(content.as_str()))))
        };
        object.iter().map(token).collect()
    }
}

/// A special token by its name alone.
fn special(content: &str) -> AddedToken {
    AddedToken::from(content, true)
}

fn added_tokens_decoder(file: &Path, value: &Value) -> Result<BTreeMap<u32, AddedToken>> {
    let field = "added_tokens_decoder";
    let wrong = |found: &Value| Error::checkpoint(file, field, "token ids, each with an object", kind(found));
    let mut tokens = BTreeMap::new();
    for (id, token) in value.as_object().ok_or_else(|| wrong(value))? {
        let number = id.parse().map_err(|_| Error::checkpoint(file, field, "token ids", format!("{id:?}")))?;
        let fields = token.as_object().ok_or_else(|| wrong(token))?;
        tokens.insert(number, added_token(file, &format!("{field}.{id}"), fields, None)?);
    }
    Ok(tokens)
}

/// A token as an object with its `content` and flags; `special` replaces what it says of itself.
fn added_token(file: &Path, field: &str, fields: &Map<String, Value>, special: Option<bool>) -> Result<AddedToken> {
    let flag = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(Error::checkpoint(file, format!("{field}.{key}"), "true or false", kind(other))),
    };
    let missing = || Error::checkpoint(file, format!("{field}.content"), "a token", "none");
    let content = fields.get("content").and_then(Value::as_str).ok_or_else(missing)?;
    let token = AddedToken::from(content, special.or(flag("special")?).unwrap_or(false));
    Ok(AddedToken {
        single_word: flag("single_word")?.unwrap_or(false),
        lstrip: flag("lstrip")?.unwrap_or(false),
        rstrip: flag("rstrip")?.unwrap_or(false),
        normalized: flag("normalized")?.unwrap_or(token.normalized),
        ..token
    })
}

/// The defaults of the tokenizer class that `transformers` 5 takes for a model with these entries in its files.
fn class_defaults(
    model_type: Option<&str>,
    class: Option<&str>,
    is_byte_level: bool,
) -> &'static [(&'static str, &'static str)] {
    let class = class.map(|class| class.strip_suffix("Fast").unwrap_or(class));
    let class = match (model_type, class) {
        (Some("mistral"), _) => return &[],
        // For this model the class in the file is known to be often wrong.
        (Some("qwen2"), _) | (Some("qwen3"), None) => "Qwen2Tokenizer",
        // Published for Llama 3: the class cannot be meant.
        (_, Some("LlamaTokenizer")) if is_byte_level => return &[],
        (_, Some(class)) => class,
        (_, None) => return &[],
    };
    CLASS_DEFAULTS.iter().find(|(known, _)| *known == class).map_or(&[], |(_, defaults)| defaults)
}
