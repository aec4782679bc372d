//! Constrained generation: outputs satisfy their constraint, whatever the model prefers.
#![cfg(feature = "builtin-model")]

use std::collections::BTreeSet;
use std::sync::Arc;

use burrstone::{Constraint, ConstraintState, Engine, Error, FinishReason, Request};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn engine() -> Engine {
    Engine::builtin().threads(2).build().unwrap()
}

/// A request at so high a temperature that nearly any token is drawn.
fn wild(constraint: Constraint, seed: u64) -> Request {
    Request::text("And the king said").temperature(1.5).seed(seed).max_tokens(600).constraint(constraint)
}

/// The text and the finish reason, or the error.
fn answer(engine: &Engine, request: Request) -> Result<(String, Option<FinishReason>), Error> {
    let mut generation = engine.generate(request)?;
    let text = generation.by_ref().map(|token| token.map(|token| token.text)).collect::<Result<String, Error>>()?;
    Ok((text, generation.finish_reason()))
}

fn fulfilled(engine: &Engine, request: Request) -> String {
    let (text, finish) = answer(engine, request).unwrap();
    assert_eq!(finish, Some(FinishReason::Stop), "{text:?}");
    text
}

fn refused(engine: &Engine, constraint: Constraint, field: &str) {
    let error = engine.generate(wild(constraint, 1)).err().unwrap_or_else(|| panic!("{field} is accepted"));
    let line = error.to_string();
    assert!(error.is_input() && line.starts_with(field) && !line.contains('\n'), "{line}");
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

/// Schemas whose values are all short.
fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        (-50i64..50, 0i64..1000)
            .prop_map(|(low, more)| json!({"type": "integer", "minimum": low, "maximum": low + more})),
        (0usize..4, 0usize..8)
            .prop_map(|(least, more)| json!({"type": "string", "minLength": least, "maxLength": least + more})),
        prop::collection::btree_set("[a-z\"\\\\é ]{1,6}", 1..4).prop_map(|texts| json!({"enum": texts})),
        (-1000i64..1000).prop_map(|number| json!({"const": number})),
        Just(json!({"$ref": "#/$defs/word"})),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), 0usize..2, 0usize..3).prop_map(|(items, least, more)| {
                json!({"type": "array", "items": items, "minItems": least, "maxItems": least + more})
            }),
            prop::collection::vec(("[a-zA-Z_ ]{1,8}", inner.clone(), any::<bool>()), 0..4).prop_map(|fields| {
                let (mut properties, mut required) = (Map::new(), BTreeSet::new());
                for (name, field, needed) in fields {
                    if needed {
                        required.insert(name.clone());
                    }
                    properties.insert(name, field);
                }
                json!({
                    "type": "object", "properties": properties, "required": required, "additionalProperties": false
                })
            }),
            prop::collection::vec(inner, 1..3).prop_map(|any| json!({"anyOf": any})),
        ]
    })
    .prop_map(|mut schema| {
        schema["$defs"] = json!({"word": {"type": "string", "pattern": "^[a-z]{2,5}$"}});
        // At this temperature white space would go on for ever.
        schema["x-guidance"] = json!({"whitespace_flexible": false});
        schema
    })
}

/// Whether a value is valid under one of the schemas generated here.
fn valid(value: &Value, schema: &Value) -> bool {
    if schema["$ref"].is_string() {
        return value
            .as_str()
            .is_some_and(|word| (2..=5).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_lowercase()));
    }
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| valid(value, schema));
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    if !schema["const"].is_null() {
        return *value == schema["const"];
    }
    let within = |count: usize, least: &str, most: &str| {
        schema[least].as_u64().is_none_or(|n| count as u64 >= n)
            && schema[most].as_u64().is_none_or(|n| count as u64 <= n)
    };
    match (schema["type"].as_str().unwrap(), value) {
        ("boolean", Value::Bool(_)) | ("null", Value::Null) => true,
        ("integer", Value::Number(number)) => {
            let (low, high) = (schema["minimum"].as_i64().unwrap(), schema["maximum"].as_i64().unwrap());
            // -0 is an integer too; it is parsed as a float.
            number.as_f64().is_some_and(|number| number.fract() == 0.0 && (low..=high).contains(&(number as i64)))
        }
        ("string", Value::String(text)) => within(text.chars().count(), "minLength", "maxLength"),
        ("array", Value::Array(items)) => {
            within(items.len(), "minItems", "maxItems") && items.iter().all(|item| valid(item, &schema["items"]))
        }
        ("object", Value::Object(fields)) => {
            let required = schema["required"].as_array().unwrap();
            required.iter().all(|name| fields.contains_key(name.as_str().unwrap()))
                && fields
                    .iter()
                    .all(|(name, field)| schema["properties"].get(name).is_some_and(|schema| valid(field, schema)))
        }
        _ => false,
    }
}

/// Outputs for random schemas parse and are valid.
#[test]
fn issue_3714_outputs_are_valid_under_their_schema() {
    let engine = engine();
    let config = ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let cases = (schema(), any::<u64>());
    runner
        .run(&cases, |(schema, seed)| {
            let request = wild(Constraint::JsonSchema(schema.clone()), seed);
            for generation in engine.generate_several(request, 3).unwrap() {
                let text: String = generation.map(|token| token.unwrap().text).collect();
                let value = serde_json::from_str(&text);
                prop_assert!(value.is_ok(), "{:?} for {}", text, schema);
                prop_assert!(valid(&value.unwrap(), &schema), "{:?} for {}", text, schema);
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn issue_3714_outputs_satisfy_objects_choices_expressions_and_grammars() {
    let engine = engine();
    for seed in 0..8 {
        let (text, finish) = answer(&engine, wild(Constraint::JsonObject, seed)).unwrap();
        // An object without a schema may be cut off by the token limit.
        let parsed = serde_json::from_str::<Map<String, Value>>(&text);
        assert!(text.starts_with('{') && (parsed.is_ok() || finish == Some(FinishReason::Length)), "{text:?}");

        let all = texts(&["yes", "no", "no, \"never\"", "Grüße/\n", "\x7f\u{1}"]);
        assert!(all.contains(&fulfilled(&engine, wild(Constraint::Choice(all.clone()), seed))));

        let date = fulfilled(&engine, wild(Constraint::Regex(r"[12][0-9]{3}-[01][0-9]/[a-c]+!".to_owned()), seed));
        let (number, letters) = date.split_once('/').unwrap();
        assert!(number.len() == 7 && number.starts_with(['1', '2']) && letters.ends_with('!'), "{date:?}");
        assert!(letters.trim_end_matches('!').bytes().all(|letter| (b'a'..=b'c').contains(&letter)), "{date:?}");

        let lark = "start: pair pair\npair: \"(\" WORD \")\"\nWORD: /[a-z]{1,3}/";
        let pairs = fulfilled(&engine, wild(Constraint::Grammar(lark.to_owned()), seed));
        assert_eq!((pairs.matches('(').count(), pairs.matches(')').count()), (2, 2), "{pairs:?}");
    }
}

/// A text ends with the last token that the constraint allows; where it may end, the model's end token is allowed.
#[test]
fn texts_end_where_the_constraint_ends() {
    let engine = engine();
    let choice = Constraint::Choice(texts(&["yes"]));
    assert_eq!(fulfilled(&engine, wild(choice.clone(), 1).ignore_eos(true)), "yes");
    assert_eq!(fulfilled(&engine, wild(choice.clone(), 1).min_tokens(50)), "yes");
    let (text, finish) = answer(&engine, wild(choice, 1).max_tokens(1)).unwrap();
    assert!("yes".starts_with(&text) && (text == "yes" || finish == Some(FinishReason::Length)), "{text:?}");

    let eos = engine.generation_config().eos[0];
    let letters = || wild(Constraint::Regex("[a-z ]*".to_owned()), 3).logit_bias(eos, 1000.0);
    assert_eq!(fulfilled(&engine, letters()), "");
    let generation = engine.generate(letters().min_tokens(5)).unwrap();
    let tokens: Vec<u32> = generation.map(|token| token.unwrap().id).collect();
    assert_eq!((tokens.len(), tokens[5]), (6, eos));
}

#[test]
fn bad_constraints_are_refused_by_name() {
    let engine = engine();
    refused(&engine, Constraint::JsonSchema(json!({"type": "frob"})), "json_schema: expected");
    refused(&engine, Constraint::JsonSchema(json!({"$ref": "http://elsewhere/x"})), "json_schema: expected");
    refused(
        &engine,
        Constraint::JsonSchema(json!({"type": "integer", "minimum": 3, "maximum": 2})),
        "json_schema: expec",
    );
    refused(&engine, Constraint::JsonSchema(json!([1])), "json_schema: expected");
    refused(&engine, Constraint::Regex("a(".to_owned()), "regex: expected");
    let look = "regex: expected a regular expression without look-around, found look-around, including look-ahead and \
                look-behind, is not supported, at character 2 of \"ü(?=a)b\"";
    refused(&engine, Constraint::Regex("ü(?=a)b".to_owned()), look);
    refused(&engine, Constraint::Regex("\\p{Nothing}".to_owned()), "regex: expected");
    let error = engine.generate(wild(Constraint::Grammar("start: /(?=a)a/".to_owned()), 1)).err().unwrap().to_string();
    assert!(error.starts_with("grammar: expected") && error.contains("look-around, including"), "{error}");
    refused(&engine, Constraint::Grammar("start: missing".to_owned()), "grammar: expected");
    refused(&engine, Constraint::Grammar(String::new()), "grammar: expected");
    refused(&engine, Constraint::Choice(Vec::new()), "choice: expected");
    refused(&engine, Constraint::Choice(texts(&["a", ""])), "choice: expected");
    assert_eq!(fulfilled(&engine, wild(Constraint::Choice(texts(&["yes"])), 1)), "yes");
}

/// Legal schemas that llguidance would refuse, each with texts that are valid under it, or their beginnings.
#[test]
fn legal_schemas_are_accepted() {
    let engine = engine();
    let schemas = [
        (json!({"type": "string", "format": "password", "maxLength": 3}), "\""),
        (json!({"format": "int32", "type": ["string", "null"], "maxLength": 2.0}), ""),
        (json!({"type": "array", "items": {"const": 1}, "uniqueItems": false, "minItems": 1, "maxItems": 2.0}), "["),
        (json!({"enum": ["r"], "type": "string", "maxLength": 1e300}), "\"r\""),
        (json!({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": "r"}}}), "\"r\""),
        (json!({"$ref": "#/$defs/a%20b", "$defs": {"a b": {"const": "r"}}}), "\"r\""),
        (json!({"$ref": "#/definitions/a~0%25b", "definitions": {"a~%b": {"const": "r"}}}), "\"r\""),
        (json!({"$ref": "#/prefixItems/0", "prefixItems": [{"const": "r"}]}), "\"r\""),
        (json!({"$ref": "#name", "$defs": {"x": {"$anchor": "name", "const": "r"}}}), "\"r\""),
        (json!({"type": "string", "minLength": 1.0, "maxLength": 2.0, "propertyNames": {}, "not": false}), "\""),
    ];
    for (schema, start) in schemas {
        let text = fulfilled(&engine, wild(Constraint::JsonSchema(schema.clone()), 1));
        assert!(text.starts_with(start), "{text:?} for {schema}");
        assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text:?} for {schema}");
    }
    refused(&engine, Constraint::JsonSchema(json!({"type": "array", "uniqueItems": true})), "json_schema: expected");
    refused(&engine, Constraint::JsonSchema(json!({"$ref": "#/$defs/none"})), "json_schema: expected");
    refused(&engine, Constraint::JsonSchema(json!({"type": "string", "pattern": "(?=a)a"})), "json_schema: expected");
}

/// A model that prefers white space still reaches the end of the object.
#[test]
fn white_space_is_bounded() {
    let engine = engine();
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}},
                        "required": ["a", "b"], "additionalProperties": false});
    let white: Vec<u32> = (0..engine.spec().vocab_size as u32)
        .filter(|&id| {
            let text = engine.tokenizer().unwrap().decode(&[id], true).unwrap_or_default();
            !text.is_empty() && text.trim().is_empty()
        })
        .collect();
    assert!(!white.is_empty());
    for seed in 0..4 {
        let request = wild(Constraint::JsonSchema(schema.clone()), seed);
        let text = fulfilled(&engine, white.iter().fold(request, |request, &id| request.logit_bias(id, 100.0)));
        assert!(text.contains(['\n', ' ']) && text.matches('\n').count() <= 10, "{text:?}");
        assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text:?}");
    }
}

/// Whether a constraint allows this text and may end after it.
fn passes(engine: &Engine, constraint: Constraint, text: &str) -> bool {
    let mut state = engine.constraint(&constraint).unwrap();
    let mut ended = false;
    for token in engine.tokenizer().unwrap().encode(text, false).unwrap() {
        let mut mask = vec![0; engine.spec().vocab_size.div_ceil(32)];
        if ended || state.allow(&mut mask).is_err() || mask[token as usize / 32] >> (token % 32) & 1 == 0 {
            return false;
        }
        ended = state.advance(token).unwrap();
    }
    ended
}

#[test]
fn json_may_have_any_usual_white_space() {
    let engine = engine();
    let value = json!({"a": [1, {"b": [[], {}], "c": "d e"}], "f": {"g": {"h": {"i": [true, null]}}}});
    let pretty = serde_json::to_string_pretty(&value).unwrap();
    let wide = pretty.replace("  ", "    ");
    let texts = [value.to_string(), pretty.replace('\n', "\r\n"), pretty.replace("  ", "\t"), pretty, wide];
    for text in texts {
        assert!(passes(&engine, Constraint::JsonObject, &text), "{text}");
    }
    for text in ["{  \"a\":1}", "{\n\n\n\"a\":1}", &format!("{{\n{}\"a\":1}}", " ".repeat(33))] {
        assert!(!passes(&engine, Constraint::JsonObject, text), "{text}");
    }
    // A schema may allow more.
    let free = json!({"type": "object", "x-guidance": {"whitespace_pattern": "[ \n]+"}});
    assert!(passes(&engine, Constraint::JsonSchema(free), "{\n\n\n  \"a\":1}"));
}

/// Allows consecutive token ids; at id `last` it misbehaves as `after` does.
struct Counting {
    next: u32,
    last: u32,
    after: fn(&mut [u32]) -> burrstone::Result<()>,
}

impl ConstraintState for Counting {
    fn allow(&mut self, mask: &mut [u32]) -> burrstone::Result<()> {
        if self.next == self.last {
            return (self.after)(mask);
        }
        mask[self.next as usize / 32] |= 1 << (self.next % 32);
        Ok(())
    }

    fn advance(&mut self, token: u32) -> burrstone::Result<bool> {
        assert_eq!(token, self.next);
        self.next += 1;
        Ok(false)
    }

    fn fork(&self) -> Box<dyn ConstraintState> {
        Box::new(Self { ..*self })
    }
}

/// A custom constraint that fails, allows nothing or panics ends its own request with an error, and no other.
#[test]
fn custom_constraints_fail_alone() {
    let engine = engine();
    let counting = |from, after| Constraint::Custom(Arc::new(Counting { next: from, last: 104, after }));
    let nothing: fn(&mut [u32]) -> burrstone::Result<()> = |_| Ok(());
    let fails = |_: &mut [u32]| {
        let (field, expected, found) = ("mine".to_owned(), "more".to_owned(), "less".to_owned());
        Err(Error::Request { field, expected, found })
    };
    let panics = |_: &mut [u32]| std::panic::resume_unwind(Box::new("mine"));
    let neighbour = engine.generate(Request::text("In the beginning").temperature(0.0).max_tokens(40)).unwrap();
    for (after, says) in [(nothing, "constraint: expected a token"), (fails, "mine"), (panics, "a panic")] {
        let generation = engine.generate(wild(counting(100, after), 1)).unwrap();
        let tokens: Vec<_> = generation.map(|token| token.map(|token| token.id)).collect();
        let ids: Vec<u32> = tokens.iter().flatten().copied().collect();
        assert_eq!(ids, [100, 101, 102, 103]);
        let error = tokens.last().unwrap().as_ref().unwrap_err();
        assert!(error.is_input() && error.to_string().contains(says), "{error}");
        // The first mask already fails, so the request is refused.
        let error = engine.generate(wild(counting(104, after), 1)).err().unwrap();
        assert!(error.is_input() && error.to_string().contains(says), "{error}");
    }
    // A ban leaves no allowed token.
    let banned = wild(counting(100, nothing), 1).logit_bias(102, f32::NEG_INFINITY);
    let error = engine.generate(banned).unwrap().find_map(Result::err).unwrap();
    assert!(error.to_string().contains("banned"), "{error}");
    assert_eq!(neighbour.filter(Result::is_ok).count(), 40);
    assert_eq!(engine.status().unwrap().blocks.held, 0);
}
