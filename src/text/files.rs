//! Reads the small text and JSON files of a checkpoint.

use std::path::Path;

use serde_json::{Map, Value};

use super::one_line;
use crate::error::{Error, Result};

/// The text of a file; `None` where there is none.
pub(super) fn read(file: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            Err(Error::checkpoint(file, "encoding", "UTF-8", "other bytes"))
        }
        Err(e) => Err(Error::io(file, e)),
    }
}

/// The JSON object in a file; `None` where there is no file.
pub(super) fn read_object(file: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read(file)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(other) => Err(Error::checkpoint(file, "contents", "a JSON object", kind(&other))),
        Err(e) => Err(Error::checkpoint(file, "contents", "a JSON object", one_line(e))),
    }
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
