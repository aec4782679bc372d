//! Rewrites a JSON Schema into one that `llguidance` takes and that bounds white space.
//!
//! `llguidance` refuses keywords that it does not implement even where they say nothing, formats that it does not know,
//! whole numbers written as `1.0`, and references with escapes. All of these are legal.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

use super::regex_error;

/// White space between two tokens of JSON: a blank, or a line end and an indent. A model that prefers white space would
/// otherwise never go on.
const WHITE_SPACE: &str = r"[ \t]|\r?\n[ \t]{0,32}";

/// The formats that `llguidance` enforces. Any other is an annotation (JSON Schema 2020-12 Validation, 7.2.3).
const FORMATS: [&str; 10] =
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];

/// The schema as `llguidance` takes it.
///
/// # Errors
/// A reference leads nowhere or to another document; a pattern is not a regular expression.
pub fn prepare(schema: &Value) -> Result<Value> {
    let mut rewriter = Rewriter { root: schema, names: BTreeMap::new(), pending: Vec::new() };
    let mut prepared = rewriter.schema(schema)?;
    let mut definitions = Map::new();
    while let Some((name, target)) = rewriter.pending.pop() {
        definitions.insert(name, rewriter.schema(target)?);
    }
    if prepared == Value::Bool(true) {
        prepared = json!({});
    }
    if let Value::Object(fields) = &mut prepared {
        if !definitions.is_empty() {
            fields.insert("$defs".to_owned(), definitions.into());
        }
        bound_white_space(fields);
    }
    Ok(prepared)
}

/// Bounds white space, except where the schema's own options for `llguidance` say something about it.
fn bound_white_space(schema: &mut Map<String, Value>) {
    let options = schema.entry("x-guidance").or_insert_with(|| json!({}));
    let Value::Object(options) = options else { return };
    if options.get("whitespace_flexible") == Some(&Value::Bool(false)) {
        return;
    }
    let pattern = options.entry("whitespace_pattern").or_insert(Value::Null);
    if pattern.is_null() {
        *pattern = WHITE_SPACE.into();
    }
}

struct Rewriter<'a> {
    root: &'a Value,
    /// Definitions by the fragment (decoded) of the references to them.
    names: BTreeMap<String, String>,
    /// Definitions that are still to be rewritten.
    pending: Vec<(String, &'a Value)>,
}

impl<'a> Rewriter<'a> {
    fn schema(&mut self, schema: &'a Value) -> Result<Value> {
        let Value::Object(fields) = schema else { return Ok(schema.clone()) };
        let mut rewritten = Map::new();
        for (key, value) in fields {
            if !says_nothing(key, value, fields) {
                rewritten.insert(key.clone(), self.keyword(key, value)?);
            }
        }
        Ok(rewritten.into())
    }

    fn keyword(&mut self, key: &str, value: &'a Value) -> Result<Value> {
        match (key, value) {
            ("$ref", Value::String(reference)) => self.reference(reference),
            ("pattern", Value::String(pattern)) => check_pattern(pattern).map(|()| value.clone()),
            (
                "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" | "minContains"
                | "maxContains",
                Value::Number(_),
            ) => Ok(whole(value)),
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(schemas)) => {
                schemas.iter().map(|schema| self.schema(schema)).collect()
            }
            ("properties" | "patternProperties" | "dependentSchemas" | "dependencies", Value::Object(schemas)) => {
                if key == "patternProperties" {
                    schemas.keys().try_for_each(|pattern| check_pattern(pattern))?;
                }
                let rewritten = schemas.iter().map(|(name, schema)| Ok((name.clone(), self.schema(schema)?)));
                Ok(Value::Object(rewritten.collect::<Result<_>>()?))
            }
            (
                "items"
                | "additionalItems"
                | "additionalProperties"
                | "contains"
                | "propertyNames"
                | "not"
                | "if"
                | "then"
                | "else"
                | "unevaluatedItems"
                | "unevaluatedProperties",
                Value::Object(_),
            ) => self.schema(value),
            _ => Ok(value.clone()),
        }
    }

    /// The definition that a reference leads to goes into the root's `$defs`, under a name without escapes.
    fn reference(&mut self, reference: &str) -> Result<Value> {
        let refused = |expected: &str| Error::request("json_schema", expected, format!("$ref {reference:?}"));
        let (document, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let own = ["$id", "id"].iter().filter_map(|key| self.root.get(key)?.as_str());
        if !document.is_empty() && !own.into_iter().any(|id| id.trim_end_matches('#') == document) {
            return Err(refused("references into the schema itself, such as #/$defs/name"));
        }
        let fragment = percent_decode_str(fragment).decode_utf8();
        let fragment = fragment.map_err(|_| refused("references in UTF-8"))?.into_owned();
        if fragment.is_empty() {
            return Ok("#".into());
        }
        let name = match self.names.get(&fragment) {
            Some(name) => name.clone(),
            None => {
                let target = match fragment.starts_with('/') {
                    true => self.root.pointer(&fragment),
                    false => anchored(self.root, &fragment),
                };
                let target = target.ok_or_else(|| refused("references to something that the schema has"))?;
                let mut name = fragment.trim_start_matches('/').replace('/', ".");
                while self.names.values().any(|taken| *taken == name) {
                    name.push('.');
                }
                self.names.insert(fragment, name.clone());
                self.pending.push((name.clone(), target));
                name
            }
        };
        Ok(format!("#/$defs/{name}").into())
    }
}

/// The subschema that calls itself `name`.
fn anchored<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => {
            let is = |key: &str, prefix: &str| {
                fields.get(key).and_then(Value::as_str).and_then(|text| text.strip_prefix(prefix)) == Some(name)
            };
            if is("$anchor", "") || is("$dynamicAnchor", "") || is("$id", "#") || is("id", "#") {
                return Some(value);
            }
            fields.values().find_map(|value| anchored(value, name))
        }
        Value::Array(items) => items.iter().find_map(|value| anchored(value, name)),
        _ => None,
    }
}

fn check_pattern(pattern: &str) -> Result<()> {
    match regex_error(pattern) {
        None => Ok(()),
        Some(found) => Err(Error::request("json_schema", "patterns without look-around", found)),
    }
}

/// A count such as `2.0` (JSON Schema has whole numbers, not integers) as `llguidance` reads it, which takes 32 bits: no
/// context is as long.
fn whole(count: &Value) -> Value {
    match count.as_f64() {
        Some(number) if number >= 0.0 && number.fract() == 0.0 => (number.min(f64::from(u32::MAX)) as u64).into(),
        _ => count.clone(),
    }
}

/// Whether a keyword leaves the schema as it is without it. Definitions are found again by the references to them.
fn says_nothing(key: &str, value: &Value, siblings: &Map<String, Value>) -> bool {
    let has = |key: &str| siblings.contains_key(key);
    let any_contents = || siblings.get("minContains").and_then(Value::as_f64) == Some(0.0) && !has("maxContains");
    match key {
        "$defs" | "definitions" | "$anchor" | "$dynamicAnchor" | "$recursiveAnchor" => true,
        "uniqueItems" | "not" => *value == Value::Bool(false),
        "format" => value.as_str().is_some_and(|format| !FORMATS.contains(&format)),
        "propertyNames" => accepts_everything(value) || *value == json!({"type": "string"}),
        "unevaluatedProperties" | "unevaluatedItems" => accepts_everything(value),
        "dependentRequired" | "dependentSchemas" | "dependencies" => *value == json!({}),
        "if" => !has("then") && !has("else"),
        "then" | "else" => !has("if"),
        "contains" => any_contents(),
        "minContains" | "maxContains" => !has("contains") || any_contents(),
        _ => false,
    }
}

fn accepts_everything(schema: &Value) -> bool {
    *schema == Value::Bool(true) || *schema == json!({})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(schema: Value) -> Value {
        let mut prepared = prepare(&schema).unwrap();
        prepared.as_object_mut().unwrap().remove("x-guidance");
        prepared
    }

    #[test]
    fn keywords_that_say_nothing_go_and_values_stay() {
        let value = json!({"format": "byte", "$ref": "x", "uniqueItems": false, "minLength": 1.0});
        let schema = json!({
            "properties": {"format": {"format": "byte", "uniqueItems": false, "not": false, "minLength": 1.0}},
            "items": {"if": {}, "propertyNames": {"type": "string"}, "contains": {}, "minContains": 0},
            "then": false, "dependentRequired": {}, "unevaluatedItems": true,
            "const": value, "enum": [value], "default": value,
        });
        let expected = json!({
            "properties": {"format": {"minLength": 1}}, "items": {}, "const": value, "enum": [value], "default": value,
        });
        assert_eq!(prepared(schema), expected);
        assert_eq!(
            prepared(json!({"maxLength": 1e300, "maxItems": 1_u64 << 32})),
            json!({"maxLength": u32::MAX, "maxItems": u32::MAX})
        );
        let kept = json!({"format": "date", "uniqueItems": true, "not": {}, "if": {}, "then": {}, "minLength": 1.5});
        assert_eq!(prepared(kept.clone()), kept);
    }

    #[test]
    fn references_are_followed_wherever_they_lead() {
        let schema = json!({
            "$id": "https://example.com/s",
            "items": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/x/c%20d/0"}, {"$ref": "#/$defs/a~1b"}, {"$ref": "#"},
                      {"$ref": "#here"}, {"$ref": "https://example.com/s#/$defs/a.b"}],
            "x": {"c d": [{"format": "byte", "$ref": "#/$defs/~0"}]},
            "$defs": {"a/b": {"minItems": 2.0}, "a.b": {"const": 1}, "~": {"$anchor": "here", "type": "null"}},
        });
        let found = prepared(schema);
        let definition = |item: usize| {
            let reference = found["items"][item]["$ref"].as_str().unwrap();
            found["$defs"].get(reference.strip_prefix("#/$defs/").unwrap()).unwrap().clone()
        };
        assert_eq!(definition(0), json!({"minItems": 2}));
        assert_eq!(definition(2), definition(0));
        assert_eq!(definition(4), json!({"type": "null"}));
        assert_eq!(definition(5), json!({"const": 1}));
        assert_eq!(found["items"][3], json!({"$ref": "#"}));
        let nested = definition(1)["$ref"].as_str().unwrap().strip_prefix("#/$defs/").unwrap().to_owned();
        assert_eq!(found["$defs"][nested], json!({"type": "null"}));
        for reference in ["#/$defs/none", "other.json", "https://example.com/t#/$defs/a", "#nowhere", "#/%ff"] {
            let error = prepare(&json!({"$ref": reference})).unwrap_err().to_string();
            assert!(error.starts_with("json_schema: expected") && error.contains(reference), "{error}");
        }
    }

    #[test]
    fn white_space_is_bounded_unless_the_schema_says_how_it_is() {
        let pattern = |schema: Value| prepare(&schema).unwrap()["x-guidance"]["whitespace_pattern"].clone();
        assert_eq!(pattern(json!(true)), WHITE_SPACE);
        assert_eq!(pattern(json!({"x-guidance": {"whitespace_pattern": null}})), WHITE_SPACE);
        assert_eq!(pattern(json!({"x-guidance": {"whitespace_pattern": " "}})), " ");
        assert_eq!(pattern(json!({"x-guidance": {"whitespace_flexible": false}})), Value::Null);
    }
}
