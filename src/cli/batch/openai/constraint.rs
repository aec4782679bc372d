//! Constraints as OpenAI (`response_format`) and vLLM (`structured_outputs`, `guided_*`) write them.

use burrstone::{Constraint, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{neutral, refused};

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFormat {
    Text,
    /// With a schema, as llama.cpp and others have it.
    JsonObject {
        schema: Option<Value>,
    },
    JsonSchema {
        json_schema: NamedSchema,
    },
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
    /// A schema is always enforced.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

/// One of these fields says what is generated.
#[derive(Default, Deserialize)]
pub struct StructuredOutputs {
    json: Option<Schema>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// A schema, or the text of one.
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
            Self::JsonObject { schema: None } => Some(Constraint::JsonObject),
            Self::JsonObject { schema: Some(schema) } => Some(Constraint::JsonSchema(schema)),
            Self::JsonSchema { json_schema } => Some(Constraint::JsonSchema(json_schema.schema)),
        }
    }
}

impl StructuredOutputs {
    /// The constraint, if there is one; `field` is where it is.
    pub fn constraint(self, field: &str) -> Result<Option<Constraint>> {
        neutral::check(&format!("{field}."), &self.others, neutral::STRUCTURED_OUTPUTS)?;
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
            Self::Text(text) => serde_json::from_str(&text).map_err(|error| refused(field, "a JSON schema", error))?,
        };
        Ok(Constraint::JsonSchema(schema))
    }
}

/// The only constraint of several fields.
pub fn one(field: &str, all: impl IntoIterator<Item = Option<Constraint>>) -> Result<Option<Constraint>> {
    let mut all = all.into_iter().flatten();
    match (all.next(), all.next()) {
        (first, None) => Ok(first),
        (_, Some(_)) => Err(refused(field, "one constraint", "several")),
    }
}
