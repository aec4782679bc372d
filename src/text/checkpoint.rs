//! Loads tokenizer and chat template from the folder of a checkpoint.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::chat::ChatTemplate;
use super::files::{kind, read, read_object};
use super::special_tokens::SpecialTokens;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

impl Tokenizer {
    /// The tokenizer of the checkpoint in `folder`: `tokenizer.json`, with the tokens that `tokenizer_config.json`,
    /// `added_tokens.json` and `special_tokens_map.json` add to it, as in `transformers`. `None` without a
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where a file is not what it must be, or gives a token another id than `tokenizer.json`.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let file = folder.join("tokenizer.json");
        let Some(definition) = read(&file)? else { return Ok(None) };
        let special = SpecialTokens::read(folder, &definition)?;
        Self::with_tokens(&file, definition.as_bytes(), |inner| special.add_to(inner)).map(Some)
    }
}

impl ChatTemplate {
    /// The template of the checkpoint in `folder`: `chat_template.jinja`, else `chat_template.json`, else the
    /// `chat_template` of `tokenizer_config.json` (of several named ones, `default`). A template in `instead` takes
    /// their place; the special tokens are the checkpoint's in any case.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where there is no template, or one that does not compile.
    pub fn load(folder: &Path, instead: Option<&Path>) -> Result<Self> {
        let template = match instead {
            Some(file) => Self::read(file)?,
            None => {
                let (file, source) = find(folder)?;
                parse(file, &source)?
            }
        };
        let definition = read(&folder.join("tokenizer.json"))?.unwrap_or_default();
        Ok(template.with_special_tokens(SpecialTokens::read(folder, &definition)?.variables()))
    }

    /// The template in a file, without special tokens.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where it does not compile; [`Error::Io`] where it cannot be read.
    pub fn read(file: &Path) -> Result<Self> {
        let source = read(file)?.ok_or_else(|| Error::io(file, std::io::ErrorKind::NotFound.into()))?;
        parse(file.to_owned(), &source)
    }
}

fn parse(file: PathBuf, source: &str) -> Result<ChatTemplate> {
    ChatTemplate::parse(source).map_err(|e| match e {
        Error::Request { field, expected, found } => Error::Checkpoint { file, field, expected, found },
        other => other,
    })
}

/// The file that holds the template, and its source.
fn find(folder: &Path) -> Result<(PathBuf, String)> {
    let jinja = folder.join("chat_template.jinja");
    if let Some(source) = read(&jinja)? {
        return Ok((jinja, source));
    }
    let json = folder.join("chat_template.json");
    if let Some(object) = read_object(&json)? {
        return Ok((json.clone(), template_in(&json, object.get("chat_template").unwrap_or(&Value::Null))?));
    }
    let config = folder.join("tokenizer_config.json");
    let settings = read_object(&config)?.unwrap_or_default();
    match settings.get("chat_template") {
        None | Some(Value::Null) => Err(Error::checkpoint(
            folder,
            "chat template",
            "chat_template.jinja, chat_template.json or a chat_template in tokenizer_config.json, \
             or a file given with --chat-template FILE",
            "none of them",
        )),
        Some(value) => Ok((config.clone(), template_in(&config, value)?)),
    }
}

/// A template, or the default one of a list of `{"name", "template"}`.
fn template_in(file: &Path, value: &Value) -> Result<String> {
    let default = match value {
        Value::String(source) => Some(source.as_str()),
        Value::Array(named) => named.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str()),
        _ => None,
    };
    default.map(str::to_owned).ok_or_else(|| {
        let found = match value {
            Value::Array(named) => {
                let names: Vec<_> = named.iter().filter_map(|t| t["name"].as_str()).collect();
                format!("templates named {names:?}")
            }
            other => kind(other).to_owned(),
        };
        Error::checkpoint(file, "chat_template", "a string, or a list with a template named \"default\"", found)
    })
}
