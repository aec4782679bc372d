//! What a text must look like, as the command line says it.

use std::path::PathBuf;

use anyhow::Result;
use burrstone::Constraint;
use clap::Args;

use super::exit::bad_input;
use super::prompt::read_file;
use super::values;

/// At most one constraint.
#[derive(Args, Debug)]
#[command(next_help_heading = "Constraint")]
#[group(multiple = false)]
pub struct ConstraintArgs {
    /// Write a JSON object
    #[arg(long)]
    json_object: bool,

    /// Write JSON that matches the schema in a file; - is standard input
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,

    /// Write a text that matches a regular expression as a whole
    #[arg(long, value_name = "PATTERN")]
    regex: Option<String>,

    /// Write a text of the Lark grammar in a file; - is standard input
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,

    /// Write this text, or one of several given this way
    #[arg(long, value_name = "TEXT", value_parser = values::text)]
    choice: Vec<String>,
}

impl ConstraintArgs {
    pub fn read(&self) -> Result<Option<Constraint>> {
        if let Some(file) = &self.json_schema {
            let schema = serde_json::from_str(&read_file(file)?);
            let schema = schema.map_err(|e| bad_input(&file.display().to_string(), "a JSON schema", e))?;
            return Ok(Some(Constraint::JsonSchema(schema)));
        }
        if let Some(file) = &self.grammar {
            return Ok(Some(Constraint::Grammar(read_file(file)?)));
        }
        if let Some(pattern) = &self.regex {
            return Ok(Some(Constraint::Regex(pattern.clone())));
        }
        if !self.choice.is_empty() {
            return Ok(Some(Constraint::Choice(self.choice.clone())));
        }
        Ok(self.json_object.then_some(Constraint::JsonObject))
    }
}
