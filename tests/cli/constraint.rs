use std::fs;

use serde_json::{Value, json};

use crate::support::{Checkpoint, run, with_input};

fn generate(more: &[&str]) -> crate::support::Ran {
    let base =
        ["generate", "And the king said", "--json", "--temperature", "1.5", "--seed", "4", "--max-tokens", "300"];
    run(&[&base[..], more].concat())
}

fn text(more: &[&str]) -> String {
    let report = generate(more).json();
    assert_eq!(report["finish_reason"], "stop", "{report}");
    report["text"].as_str().unwrap().to_owned()
}

#[test]
fn texts_satisfy_their_constraint() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    assert!(["yes", "no"].contains(&&*text(&["--choice", "yes", "--choice", "no"])));
    let date = text(&["--regex", "[0-9]{4}-[0-9]{2}"]);
    assert!(date.len() == 7 && date.as_bytes()[4] == b'-', "{date:?}");
    let grammar = file("sums.lark", "start: N \"+\" N\nN: /[0-9]{1,3}/");
    assert_eq!(text(&["--grammar", &grammar]).split('+').filter(|n| n.parse::<u32>().is_ok()).count(), 2);
    let schema = r#"{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                     "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}}"#;
    let schema_file = file("schema.json", schema);
    let value: Value = serde_json::from_str(&text(&["--json-schema", &schema_file])).unwrap();
    assert!(value["ok"].is_boolean(), "{value}");
    let piped = with_input(&["generate", "x", "--json-schema", "-", "--quiet", "--max-tokens", "100"], schema).ok();
    assert!(serde_json::from_str::<Value>(&piped).unwrap()["ok"].is_boolean(), "{piped:?}");
    let object = generate(&["--json-object"]).json();
    assert!(object["text"].as_str().unwrap().starts_with('{'), "{object}");

    let refused = |args: &[&str], part: &str| {
        let ran = generate(args);
        assert!(ran.error(2).contains(part), "{ran:?}");
    };
    refused(&["--regex", "a("], "regex: expected");
    refused(&["--grammar", &file("none.lark", "start: missing")], "grammar: expected");
    refused(&["--json-schema", &file("none.json", "{\"type\"")], "none.json: expected a JSON schema");
    refused(&["--json-schema", &file("frob.json", r#"{"type": "frob"}"#)], "json_schema: expected");
    refused(&["--json-schema", "/nowhere.json"], "/nowhere.json");
    refused(&["--choice", ""], "--choice <TEXT>");
    refused(&["--choice", "a", "--json-object"], "--json-object");
    let ids = Checkpoint::golden("llama-gqa");
    let ran = run(&["generate", "--model", ids.path(), "--token-ids", "1", "--choice", "a"]);
    assert!(ran.error(2).contains("no tokenizer.json"), "{ran:?}");
}

#[test]
fn batch_takes_the_constraint_fields_of_other_servers() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let schema = json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2,
                        "x-guidance": {"whitespace_flexible": false}});
    let good = [
        (
            "format",
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "two", "schema": schema}}}),
        ),
        ("guided", json!({"guided_json": schema})),
        ("text", json!({"guided_json": schema.to_string()})),
        ("structured", json!({"structured_outputs": {"json": schema}})),
        ("choice", json!({"guided_choice": ["[true,false]"]})),
        ("regex", json!({"structured_outputs": {"regex": "\\[true,(true|false)\\]"}})),
        ("grammar", json!({"guided_grammar": "start: \"[true,true]\""})),
    ];
    let bad = [
        ("type", json!({"response_format": {"type": "yaml"}}), "yaml"),
        ("schema", json!({"guided_json": {"type": "frob"}}), "json_schema"),
        ("two", json!({"guided_regex": "a", "guided_choice": ["a"]}), "several"),
        ("empty", json!({"guided_choice": []}), "choice"),
        ("field", json!({"structured_outputs": {"yaml": 1}}), "yaml"),
        ("typical", json!({"typical_p": 0}), "typical_p"),
        ("dry", json!({"dry_multiplier": -1}), "dry_multiplier"),
        ("words", json!({"bad_words": [""]}), "bad_words"),
        ("scale", json!({"guidance_scale": -1}), "guidance_scale"),
        ("negative", json!({"negative_prompt": "In"}), "guidance_scale"),
    ];
    let plain = [
        ("object", json!({"response_format": {"type": "json_object"}})),
        ("free", json!({"response_format": {"type": "text"}})),
        ("guidance", json!({"guidance_scale": 1.5, "negative_prompt": "In the beginning"})),
        ("away", json!({"guidance_scale": 1.5, "negative_prompt": [41, 78]})),
        (
            "careful",
            json!({"typical_p": 0.9, "no_repeat_ngram_size": 3, "dry_multiplier": 0.8, "dry_base": 2,
            "dry_allowed_length": 3, "dry_penalty_last_n": 64, "dry_sequence_breakers": ["."], "bad_words": ["LORD"]}),
        ),
    ];
    let line = |id: &str, more: &Value| {
        let mut body = json!({"prompt": "And the king said", "max_tokens": 60, "temperature": 1.5, "seed": 2});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("{}\n", json!({"custom_id": id, "url": "/v1/completions", "body": body}))
    };
    let lines = good.iter().map(|(id, more)| line(id, more));
    let lines = lines.chain(bad.iter().map(|(id, more, _)| line(id, more)));
    let lines: String = lines.chain(plain.iter().map(|(id, more)| line(id, more))).collect();
    fs::write(path("in.jsonl"), lines).unwrap();
    run(&["batch", "--input", &path("in.jsonl"), "--output", &path("out.jsonl"), "--quiet"]).ok();
    let answers: Vec<Value> = fs::read_to_string(path("out.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let answer = |id: &str| answers.iter().find(|answer| answer["custom_id"] == id).unwrap()["response"].clone();
    for (id, _) in good {
        let choice = &answer(id)["body"]["choices"][0];
        let value: Value = serde_json::from_str(choice["text"].as_str().unwrap()).unwrap();
        assert!(value.as_array().is_some_and(|two| two.len() == 2), "{id}: {choice}");
        assert_eq!(choice["finish_reason"], "stop", "{id}");
    }
    for (id, _, part) in bad {
        let answer = answer(id);
        assert_eq!(answer["status_code"], 400, "{id}");
        assert!(answer["body"]["error"]["message"].as_str().unwrap().contains(part), "{id}: {answer}");
    }
    assert!(answer("object")["body"]["choices"][0]["text"].as_str().unwrap().starts_with('{'));
    assert_eq!(answer("free")["status_code"], 200);
    let careful = answer("careful");
    assert!(!careful["body"]["choices"][0]["text"].as_str().unwrap().contains("LORD"), "{careful}");
}
