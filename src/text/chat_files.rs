//! Where a checkpoint keeps its chat template and the special tokens that it names.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::chat::ChatTemplate;
use super::one_line;
use crate::error::{Error, Result};

/// See [`ChatTemplate::load`].
pub(super) fn load(folder: &Path, instead: Option<&Path>) -> Result<ChatTemplate> {
    let config = folder.join("tokenizer_config.json");
    let settings = read_object(&config)?.unwrap_or_default();
    let template = match instead {
        Some(file) => read_template(file)?,
        None => {
            let (file, source) = find(folder, &config, &settings)?;
            parse(file, &source)?
        }
    };
    Ok(template.with_special_tokens(special_tokens(folder, &settings)?))
}

/// See [`ChatTemplate::read`].
pub(super) fn read_template(file: &Path) -> Result<ChatTemplate> {
    let source = read(file)?.ok_or_else(|| Error::io(file, std::io::ErrorKind::NotFound.into()))?;
    parse(file.to_owned(), &source)
}

fn parse(file: PathBuf, source: &str) -> Result<ChatTemplate> {
    ChatTemplate::parse(source).map_err(|e| match e {
        Error::Request { field, expected, found } => Error::Checkpoint { file, field, expected, found },
        other => other,
    })
}

/// The file that holds the template, and its source.
fn find(folder: &Path, config: &Path, settings: &Map<String, Value>) -> Result<(PathBuf, String)> {
    let jinja = folder.join("chat_template.jinja");
    if let Some(source) = read(&jinja)? {
        return Ok((jinja, source));
    }
    let json = folder.join("chat_template.json");
    if let Some(object) = read_object(&json)? {
        return Ok((json.clone(), template_in(&json, object.get("chat_template").unwrap_or(&Value::Null))?));
    }
    match settings.get("chat_template") {
        None | Some(Value::Null) => Err(Error::checkpoint(
            folder,
            "chat template",
            "chat_template.jinja, chat_template.json or a chat_template in tokenizer_config.json, \
             or a file given with --chat-template FILE",
            "none of them",
        )),
        Some(value) => Ok((config.to_owned(), template_in(config, value)?)),
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

/// Variables such as `bos_token`. A token is a string, or an object with its `content`.
fn special_tokens(folder: &Path, settings: &Map<String, Value>) -> Result<Map<String, Value>> {
    let older = read_object(&folder.join("special_tokens_map.json"))?.unwrap_or_default();
    let tokens = older.iter().chain(settings).filter(|(name, _)| name.ends_with("_token"));
    Ok(tokens
        .filter_map(|(name, token)| {
            let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
            Some((name.clone(), Value::from(text)))
        })
        .collect())
}

/// The text of a file; `None` where there is none.
fn read(file: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            Err(Error::checkpoint(file, "encoding", "UTF-8", "other bytes"))
        }
        Err(e) => Err(Error::io(file, e)),
    }
}

fn read_object(file: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read(file)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(other) => Err(Error::checkpoint(file, "contents", "a JSON object", kind(&other))),
        Err(e) => Err(Error::checkpoint(file, "contents", "a JSON object", one_line(e))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
