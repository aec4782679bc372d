//! Chat templates: Jinja in the dialect that `transformers` speaks.

use std::borrow::Cow;

use minijinja::value::{Kwargs, Serde, ValueKind, merge_maps};
use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use super::json::{Style, dumps};
use super::one_line;
use crate::error::{Error, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    pub content: String,
    /// Tells speakers of one role apart. Undefined in the template where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), name: None }
    }

    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

/// How a conversation becomes the text that a model was trained on.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and their like.
    special_tokens: serde_json::Map<String, serde_json::Value>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template. Its special tokens are undefined, and print as nothing, until
    /// [`with_special_tokens`](Self::with_special_tokens).
    ///
    /// # Errors
    /// [`Error::Request`] where the source is not a template.
    pub fn parse(source: &str) -> Result<Self> {
        let environment =
            compile(source).map_err(|e| Error::request("chat template", "a Jinja template", describe(&e)))?;
        Ok(Self { environment, special_tokens: serde_json::Map::new() })
    }

    /// Sets the variables that name special tokens, `bos_token` and `eos_token` above all.
    #[must_use]
    pub fn with_special_tokens(mut self, tokens: serde_json::Map<String, serde_json::Value>) -> Self {
        self.special_tokens = tokens;
        self
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant's answer begins. `extra`
    /// are further variables, as `apply_chat_template` takes them (`enable_thinking`, `tools`, …).
    ///
    /// # Errors
    /// [`Error::Request`] with the template's own message where it does not accept the conversation.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String> {
        let refused = |e: minijinja::Error| {
            Error::request("messages", "a conversation that the chat template accepts", describe(&e))
        };
        // What `apply_chat_template` defines in every case. Later maps win.
        let messages = Value::from(Serde(messages));
        let fixed = context! { messages, add_generation_prompt, tools => (), documents => () };
        let variables = merge_maps([Value::from(Serde(&self.special_tokens)), fixed, Value::from(Serde(extra))]);
        self.environment.get_template(NAME).and_then(|t| t.render(variables)).map_err(refused)
    }
}

fn compile(source: &str) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment.add_template_owned(NAME, without_generation_tags(source).into_owned())?;
    Ok(environment)
}

/// The cause at the bottom of a template's error, with the line.
fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line} of the template)"));
    one_line(what) + &line
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time in the format language of C.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|cause| {
        let what = format!("strftime_now: bad format {format:?}: {cause}");
        minijinja::Error::new(ErrorKind::InvalidOperation, what)
    })
}

/// `tojson` as `transformers` overrides it: no HTML escapes, and the arguments of `json.dumps`.
fn tojson(value: &Value, arguments: Kwargs) -> Result<Value, minijinja::Error> {
    let bad = |what: &str| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
    let indent = match arguments.get::<Option<Value>>("indent")?.filter(|v| !v.is_none()) {
        None => None,
        Some(v) if v.kind() == ValueKind::String => Some(v.to_string()),
        Some(v) => Some(" ".repeat(usize::try_from(v).map_err(|_| bad("indent is neither a number nor a string"))?)),
    };
    let mut style = Style::new(indent);
    if let Some(separators) = arguments.get::<Option<Value>>("separators")?.filter(|v| !v.is_none()) {
        let pair: Vec<String> = separators.try_iter()?.map(|v| v.to_string()).collect();
        let Ok([item, key]) = <[String; 2]>::try_from(pair) else { return Err(bad("separators is not a pair")) };
        (style.item_separator, style.key_separator) = (item, key);
    }
    style.ensure_ascii = arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    style.sort_keys = arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    arguments.assert_all_used()?;
    let value = serde_json::to_value(value).map_err(|e| bad(&e.to_string()))?;
    Ok(Value::from_safe_string(dumps(&value, &style)))
}

/// Training code marks the assistant's words with `{% generation %}` blocks. They print their contents, in a scope of
/// their own: so does `{% with %}`.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(open) = rest.find('{') {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let (text, after) = tag.split_at(tag_length(tag, raw));
        let word =
            text.strip_prefix("{%").and_then(|t| t.strip_suffix("%}")).map(|t| t.trim_matches(['-', '+']).trim());
        match word {
            Some("generation") if !raw => out.push_str(&text.replace("generation", "with")),
            Some("endgeneration") if !raw => out.push_str(&text.replace("endgeneration", "endwith")),
            _ => out.push_str(text),
        }
        raw = match word {
            Some("raw") => true,
            Some("endraw") => false,
            _ => raw,
        };
        rest = after;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Length of the tag, expression or comment that `text` begins with; 1 where its brace opens none.
fn tag_length(text: &str, raw: bool) -> usize {
    let close = match text.as_bytes() {
        [b'{', b'%', ..] => "%}",
        [b'{', b'{', ..] if !raw => "}}",
        [b'{', b'#', ..] if !raw => return text.find("#}").map_or(text.len(), |at| at + 2),
        _ => return 1,
    };
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if text[at..].starts_with(close) => return at + close.len(),
            None => {}
        }
    }
    // Not closed: inside a raw block it may be text.
    if raw { 1 } else { text.len() }
}
