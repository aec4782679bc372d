//! Constraints in the words of OpenAI (`response_format`) and of vLLM (`structured_outputs`, `guided_*`).

use burrstone::{Constraint, Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// OpenAI's.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: NamedSchema },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedSchema {
    schema: Value,
    /// For people.
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    /// A schema is always kept to.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

/// vLLM's, one field of them.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Structured {
    json: Option<Schema>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
}

/// A schema, or one in a string.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Schema {
    Text(String),
    Value(Value),
}

impl ResponseFormat {
    pub fn constraint(self) -> Option<Constraint> {
        match self {
            Self::Text => None,
            Self::JsonObject => Some(Constraint::JsonObject),
            Self::JsonSchema { json_schema } => Some(Constraint::JsonSchema(json_schema.schema)),
        }
    }
}

impl Structured {
    /// The one that is asked for, `field` being where.
    pub fn constraint(self, field: &str) -> Result<Option<Constraint>> {
        let json = self.json.map(|schema| schema.read(field)).transpose()?;
        let all = [
            json,
            self.json_object.unwrap_or(false).then_some(Constraint::JsonObject),
            self.regex.map(Constraint::Regex),
            self.choice.map(Constraint::Choice),
            self.grammar.map(Constraint::Grammar),
        ];
        one(field, all)
    }
}

impl Schema {
    pub fn read(self, field: &str) -> Result<Constraint> {
        let schema = match self {
            Self::Value(schema) => schema,
            Self::Text(text) => {
                serde_json::from_str(&text).map_err(|e| refused(field, "a JSON schema", &e.to_string()))?
            }
        };
        Ok(Constraint::JsonSchema(schema))
    }
}

/// The one of several that is there.
pub fn one(field: &str, all: impl IntoIterator<Item = Option<Constraint>>) -> Result<Option<Constraint>> {
    let mut all = all.into_iter().flatten();
    match (all.next(), all.next()) {
        (first, None) => Ok(first),
        (_, Some(_)) => Err(refused(field, "one constraint", "several")),
    }
}

fn refused(field: &str, expected: &str, found: &str) -> Error {
    Error::Request { field: field.to_owned(), expected: expected.to_owned(), found: found.to_owned() }
}
