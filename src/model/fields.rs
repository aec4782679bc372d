//! Reads a JSON object field by field: every field must be read, known to be harmless, or it is an error.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Reads the JSON object that `bytes` hold; `file` names it in errors.
pub(crate) fn parse_object(file: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Error::checkpoint(file, "(whole file)", "a JSON object", brief(&other))),
        Err(e) => Err(Error::checkpoint(file, "(whole file)", "valid JSON", e)),
    }
}

/// An object being read. `null` counts as absent, except where a method says otherwise.
pub(crate) struct Fields<'a> {
    file: &'a Path,
    /// Path of the object in the file, for example `"rope_scaling."`.
    prefix: String,
    map: &'a Map<String, Value>,
    taken: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Fields<'a> {
    pub fn new(file: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { file, prefix: String::new(), map, taken: RefCell::default() }
    }

    /// The raw value, `null` included.
    pub fn raw(&self, key: &'static str) -> Option<&'a Value> {
        self.taken.borrow_mut().insert(key);
        self.map.get(key)
    }

    fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.raw(key).filter(|value| !value.is_null())
    }

    pub fn error(&self, key: &str, expected: impl ToString, found: impl ToString) -> Error {
        Error::checkpoint(self.file, format!("{}{key}", self.prefix), expected, found)
    }

    fn mismatch(&self, key: &str, expected: impl ToString, found: &Value) -> Error {
        self.error(key, expected, brief(found))
    }

    /// A whole number within `range`.
    pub fn size(&self, key: &'static str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if range.contains(&n) => Ok(Some(n)),
            _ => Err(self.mismatch(key, whole(&range), value)),
        }
    }

    /// Like [`Fields::size`] with a default for an absent field; here `null` is an error.
    pub fn size_or(&self, key: &'static str, range: RangeInclusive<usize>, default: usize) -> Result<usize> {
        if let Some(value @ Value::Null) = self.raw(key) {
            return Err(self.mismatch(key, whole(&range), value));
        }
        Ok(self.size(key, range)?.unwrap_or(default))
    }

    /// A finite number.
    pub fn number(&self, key: &'static str) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.mismatch(key, "a finite number", value)),
        }
    }

    /// A number for which `holds` is true; `expected` says so in words.
    pub fn number_where(&self, key: &'static str, expected: &str, holds: fn(f64) -> bool) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(x) if !holds(x) => Err(self.error(key, expected, x)),
            x => Ok(x),
        }
    }

    pub fn flag(&self, key: &'static str) -> Result<Option<bool>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.mismatch(key, "true or false", value))
    }

    pub fn text(&self, key: &'static str) -> Result<Option<&'a str>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.mismatch(key, "a string", value))
    }

    pub fn texts(&self, key: &'static str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.mismatch(key, "a list of strings", value))
    }

    /// A nested object; absent, `null` and `{}` are `None`.
    pub fn object(&self, key: &'static str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.mismatch(key, "an object", value))?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok((!map.is_empty()).then(|| Fields { file: self.file, prefix, map, taken: RefCell::default() }))
    }

    /// The members, each an object or `null`.
    pub fn members(&self) -> Result<Vec<(&'a str, Option<Fields<'a>>)>> {
        let member = |(key, value): (&'a String, &'a Value)| {
            let map = match value {
                Value::Null => None,
                Value::Object(map) => Some(map),
                _ => return Err(self.mismatch(key, "an object", value)),
            };
            let prefix = format!("{}{key}.", self.prefix);
            let fields = map.map(|map| Fields { file: self.file, prefix, map, taken: RefCell::default() });
            Ok((key.as_str(), fields))
        };
        self.map.iter().map(member).collect()
    }

    /// Fails at the first unread field, unless its name or value is known to change nothing.
    pub fn finish(&self, harmless: fn(&str) -> bool) -> Result<()> {
        let taken = self.taken.borrow();
        for (key, value) in self.map {
            if !taken.contains(key.as_str()) && !inert(value) && !harmless(key) {
                let expected = "no such field, as its meaning is not known here (null if it changes nothing)";
                return Err(self.mismatch(key, expected, value));
            }
        }
        Ok(())
    }
}

fn whole(range: &RangeInclusive<usize>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

/// Values that switch nothing on: `null`, `false`, `0` and empty ones.
pub(super) fn inert(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

/// A value as a short text for messages.
pub(crate) fn brief(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
