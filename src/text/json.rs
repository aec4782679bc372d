//! JSON as Python's `json.dumps` writes it: chat templates were written against that, and models trained on it.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// The arguments of `json.dumps` that templates use.
#[derive(Clone, Debug)]
pub(super) struct Style {
    /// One indentation step; `None` writes everything on one line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub ensure_ascii: bool,
    pub sort_keys: bool,
}

impl Style {
    /// Python's defaults: separators with a space, which after an item gives way to the line break.
    pub fn new(indent: Option<String>) -> Self {
        let item = if indent.is_some() { "," } else { ", " };
        Self {
            indent,
            item_separator: item.to_owned(),
            key_separator: ": ".to_owned(),
            ensure_ascii: false,
            sort_keys: false,
        }
    }
}

pub(super) fn dumps(value: &Value, style: &Style) -> String {
    let mut writer = Writer { out: String::new(), style, depth: 0 };
    writer.value(value);
    writer.out
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    depth: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(b) => self.out.push_str(if *b { "true" } else { "false" }),
            Value::Number(n) => match n.as_f64().filter(|_| n.is_f64()) {
                Some(float) => self.out.push_str(&float_repr(float)),
                None => self.out.push_str(&n.to_string()),
            },
            Value::String(s) => self.string(s),
            Value::Array(items) => self.items('[', ']', items.iter(), |w, item| w.value(item)),
            Value::Object(map) => self.object(map),
        }
    }

    fn object(&mut self, map: &Map<String, Value>) {
        let mut entries: Vec<_> = map.iter().collect();
        if self.style.sort_keys {
            entries.sort_by_key(|(key, _)| *key);
        }
        self.items('{', '}', entries.into_iter(), |w, (key, value)| {
            w.string(key);
            w.out.push_str(&w.style.key_separator);
            w.value(value);
        });
    }

    fn items<T>(
        &mut self,
        open: char,
        close: char,
        items: impl ExactSizeIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        let empty = items.len() == 0;
        self.out.push(open);
        self.depth += 1;
        for (i, item) in items.enumerate() {
            if i > 0 {
                self.out.push_str(&self.style.item_separator);
            }
            self.line_break();
            each(self, item);
        }
        self.depth -= 1;
        if !empty {
            self.line_break();
        }
        self.out.push(close);
    }

    fn line_break(&mut self) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(self.depth));
        }
    }

    fn string(&mut self, string: &str) {
        self.out.push('"');
        for c in string.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                ' '..='~' => self.out.push(c),
                _ if c > '\u{1f}' && !self.style.ensure_ascii => self.out.push(c),
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(self.out, "\\u{unit:04x}").expect("writing to a string");
                    }
                }
            }
        }
        self.out.push('"');
    }
}

/// Python's `repr` of a float: Rust's shortest digits, with a sign and two digits at least in the exponent.
fn float_repr(float: f64) -> String {
    let digits = format!("{float:?}");
    match digits.split_once('e') {
        None => digits,
        Some((mantissa, exponent)) => {
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Expected strings are what CPython's `json.dumps` prints.
    #[test]
    fn writes_as_python_does() {
        let value = json!({"b": [1, -2.5, 1e16, 1e-5, true, null], "a": "é<\"\\\n\u{7f}\u{1}😀", "e": [], "o": {}});
        assert_eq!(
            dumps(&value, &Style::new(None)),
            "{\"b\": [1, -2.5, 1e+16, 1e-05, true, null], \"a\": \"é<\\\"\\\\\\n\u{7f}\\u0001😀\", \"e\": [], \"o\": {}}"
        );
        let compact = Style {
            item_separator: ",".to_owned(),
            key_separator: ":".to_owned(),
            ensure_ascii: true,
            sort_keys: true,
            ..Style::new(None)
        };
        assert_eq!(
            dumps(&value, &compact),
            r#"{"a":"\u00e9<\"\\\n\u007f\u0001\ud83d\ude00","b":[1,-2.5,1e+16,1e-05,true,null],"e":[],"o":{}}"#
        );
        assert_eq!(
            dumps(&json!({"a": [1, {"b": 2}], "e": []}), &Style::new(Some("  ".to_owned()))),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": 2\n    }\n  ],\n  \"e\": []\n}"
        );
    }
}
