//! Where a checkpoint keeps its chat template and the special tokens that it names.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::chat::ChatTemplate;
use super::one_line;
use crate::device::Bytes;
use crate::error::{Error, Result};

const CONFIG: &str = "tokenizer_config.json";

/// The small files of a checkpoint, in a folder or elsewhere.
pub trait Files {
    /// The contents of a file; `None` where there is none.
    ///
    /// # Errors
    /// It is there and cannot be read.
    fn read(&self, name: &str) -> Result<Option<Bytes>>;

    /// What messages call it.
    fn path(&self, name: &str) -> PathBuf;
}

/// A folder.
impl Files for Path {
    fn read(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&path, e)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.join(name)
    }
}

/// See [`ChatTemplate::load`].
pub(super) fn load(files: &(impl Files + ?Sized), instead: Option<&Path>) -> Result<Option<ChatTemplate>> {
    let settings = object(files, CONFIG)?.unwrap_or_default();
    let found = match instead {
        Some(file) => {
            let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
            Some((file.to_owned(), utf8(file, &bytes)?))
        }
        None => find(files, &settings)?,
    };
    let Some((file, source)) = found else { return Ok(None) };
    let template = ChatTemplate::parse(&source).map_err(|e| match e {
        Error::Request { field, expected, found } => Error::Checkpoint { file, field, expected, found },
        other => other,
    })?;
    Ok(Some(template.with_special_tokens(special_tokens(files, &settings)?)))
}

/// The file that holds the template, and its source.
fn find(files: &(impl Files + ?Sized), settings: &Map<String, Value>) -> Result<Option<(PathBuf, String)>> {
    const JINJA: &str = "chat_template.jinja";
    const JSON: &str = "chat_template.json";

    let path = files.path(JINJA);
    if let Some(bytes) = files.read(JINJA)? {
        let source = utf8(&path, &bytes)?;
        return Ok(Some((path, source)));
    }
    let (path, value) = match object(files, JSON)? {
        Some(mut object) => (files.path(JSON), object.remove("chat_template").unwrap_or_default()),
        None => match settings.get("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => (files.path(CONFIG), value.clone()),
        },
    };
    let source = template_in(&path, &value)?;
    Ok(Some((path, source)))
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
fn special_tokens(files: &(impl Files + ?Sized), settings: &Map<String, Value>) -> Result<Map<String, Value>> {
    let older = object(files, "special_tokens_map.json")?.unwrap_or_default();
    let tokens = older.iter().chain(settings).filter(|(name, _)| name.ends_with("_token"));
    Ok(tokens
        .filter_map(|(name, token)| {
            let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
            Some((name.clone(), Value::from(text)))
        })
        .collect())
}

fn object(files: &(impl Files + ?Sized), name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = files.read(name)? else { return Ok(None) };
    let bad = |found| Err(Error::checkpoint(&files.path(name), "contents", "a JSON object", found));
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(other) => bad(kind(&other).to_owned()),
        Err(e) => bad(one_line(e)),
    }
}

fn utf8(file: &Path, bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|e| Error::checkpoint(file, "encoding", "UTF-8", one_line(e)))?;
    Ok(text.to_owned())
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
