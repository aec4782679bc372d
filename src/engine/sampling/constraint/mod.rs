//! Constrained decoding: grammars, JSON schemas, regular expressions and choices as masks over the vocabulary.

mod grammar;
mod guide;
mod json_schema;

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use crate::error::{Error, Result};

pub use grammar::Grammars;
pub use guide::{Guide, Masks};

/// What a generation must look like, from its first token to its last: it ends where the constraint is fulfilled and
/// nothing more may follow, and may end where it is fulfilled. `max_tokens` cuts it off all the same.
///
/// ```
/// # #[cfg(feature = "builtin-model")]
/// # fn main() -> burrstone::Result<()> {
/// use burrstone::{Constraint, Engine, Request};
///
/// let engine = Engine::builtin().build()?;
/// let choice = Constraint::Choice(vec!["yes".to_owned(), "no".to_owned()]);
/// let mut text = String::new();
/// for token in engine.generate(Request::text("And the king said").constraint(choice))? {
///     text += &token?.text;
/// }
/// assert!(text == "yes" || text == "no");
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "builtin-model"))]
/// # fn main() {}
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum Constraint {
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes. References are to the schema's own document (`#/$defs/…`).
    JsonSchema(Value),
    /// The whole text matches a regular expression in the syntax of the `regex` crate, without look-around.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Grammar(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// One of the caller's own, at its start.
    Custom(Arc<dyn ConstraintState>),
}

/// How far a constraint has come. One state belongs to one sequence.
pub trait ConstraintState: Send + Sync {
    /// Sets the bits of the tokens that may come next, all of which are clear: bit `t % 32` of word `t / 32` for token
    /// `t`. End tokens are among them where the text may end. Called once between two tokens, on a thread beside the
    /// step loop's: while it takes long, its sequence waits and the others go on.
    ///
    /// # Errors
    /// The state has no continuation; the request ends with the error.
    fn allow(&mut self, mask: &mut [u32]) -> Result<()>;

    /// Goes on by a token that was chosen among those. True where nothing may follow it: the request is done. Called on
    /// the same thread as [`allow`](Self::allow): while it takes long, the token is not handed out yet.
    ///
    /// # Errors
    /// The request ends with the error.
    fn advance(&mut self, token: u32) -> Result<bool>;

    /// Another state, as far as this one, that goes its own way.
    fn fork(&self) -> Box<dyn ConstraintState>;
}

impl Constraint {
    /// Its start. The vocabulary's grammars are only asked for where they are needed.
    ///
    /// # Errors
    /// It is none.
    pub(in crate::engine) fn start<'a>(
        &self,
        grammars: impl FnOnce() -> Result<&'a Grammars>,
    ) -> Result<Box<dyn ConstraintState>> {
        let (grammar, expected) = match self {
            Self::Custom(state) => return Ok(state.fork()),
            Self::JsonObject => {
                let schema = json_schema::prepare(&json!({"type": "object"}))?;
                (TopLevelGrammar::from_json_schema(schema), "a vocabulary that has JSON")
            }
            Self::JsonSchema(schema) => {
                let schema = json_schema::prepare(schema)?;
                (TopLevelGrammar::from_json_schema(schema), "a JSON schema that can be fulfilled")
            }
            Self::Regex(pattern) => {
                let expected = "a regular expression without look-around";
                if let Some(found) = regex_error(pattern) {
                    return Err(Error::request(self.name(), expected, found));
                }
                (TopLevelGrammar::from_regex(pattern), expected)
            }
            Self::Grammar(lark) => (TopLevelGrammar::from_lark(lark.clone()), "a Lark grammar"),
            Self::Choice(texts) if texts.is_empty() => {
                return Err(Error::request("choice", "at least one text", "none"));
            }
            Self::Choice(texts) if texts.iter().any(String::is_empty) => {
                return Err(Error::request("choice", "texts that are not empty", "an empty one"));
            }
            Self::Choice(texts) => (TopLevelGrammar::from_lark(choice(texts)), "texts to choose from"),
        };
        grammars()?.compile(self.name(), grammar, expected)
    }

    /// What errors call it.
    fn name(&self) -> &'static str {
        match self {
            Self::JsonObject => "json_object",
            Self::JsonSchema(_) => "json_schema",
            Self::Regex(_) => "regex",
            Self::Grammar(_) => "grammar",
            Self::Choice(_) => "choice",
            Self::Custom(_) => "constraint",
        }
    }
}

/// A Lark grammar of these texts. Its strings have JSON's escapes, and may not hold DEL as it is.
fn choice(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| json!(text).to_string().replace('\x7f', "\\u007f")).collect();
    format!("start: {}", texts.join(" | "))
}

/// What is wrong with a regular expression, and where.
fn regex_error(pattern: &str) -> Option<String> {
    let (kind, start) = match regex_syntax::parse(pattern).err()? {
        regex_syntax::Error::Parse(error) => (error.kind().to_string(), error.span().start),
        regex_syntax::Error::Translate(error) => (error.kind().to_string(), error.span().start),
        other => return Some(other.to_string()),
    };
    Some(format!("{kind}, at character {} of {pattern:?}", pattern[..start.offset].chars().count() + 1))
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tuple = f.debug_tuple(self.name());
        match self {
            Self::JsonObject | Self::Custom(_) => &mut tuple,
            Self::JsonSchema(schema) => tuple.field(schema),
            Self::Regex(text) | Self::Grammar(text) => tuple.field(text),
            Self::Choice(texts) => tuple.field(texts),
        };
        tuple.finish()
    }
}

impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::JsonObject, Self::JsonObject) => true,
            (Self::JsonSchema(a), Self::JsonSchema(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) | (Self::Grammar(a), Self::Grammar(b)) => a == b,
            (Self::Choice(a), Self::Choice(b)) => a == b,
            (Self::Custom(a), Self::Custom(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}
