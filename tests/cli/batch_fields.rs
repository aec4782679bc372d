//! Fields of `batch` requests: those without effect, those that are refused, logprobs and echo.

use std::fs;

use serde_json::{Value, json};

use crate::batch::{Files, completion};
use crate::support::{Checkpoint, run};

fn body(more: &Value) -> Value {
    let mut body = json!({"prompt": "And the king said", "temperature": 0, "max_tokens": 4});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn fields_without_effect_are_accepted() {
    let neutral = [
        json!({"stream": false, "stream_options": {"include_usage": true}, "n": null, "stop": null, "seed": null}),
        json!({"logprobs": null, "echo": false, "best_of": 1, "suffix": null, "user": "me", "top_logprobs": 0}),
        json!({"logprobs": false, "suffix": "", "logit_bias": {}, "metadata": {"a": "b"}, "store": false}),
        json!({"tools": null, "tool_choice": null, "frobnicate": null, "response_format": null}),
        json!({"tools": [], "tool_choice": "none", "parallel_tool_calls": true, "functions": []}),
        json!({"service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "y", "modalities": ["text"]}),
        json!({"presence_penalty": 0, "frequency_penalty": 0.0, "top_p": 1, "top_k": -1, "seed": -1, "stop": []}),
        json!({"use_beam_search": false, "length_penalty": 1.0, "stop_token_ids": [], "skip_special_tokens": true}),
        json!({"add_special_tokens": true, "cache_salt": "mine", "prompt_logprobs": null, "min_p": 0.0}),
        json!({"structured_outputs": {"disable_fallback": false, "json": null}, "response_format": {"type": "text"}}),
    ];
    let line = |(i, more)| completion(&format!("{i}"), body(more));
    let files = Files::new(
        &neutral.iter().enumerate().map(line).chain([completion("plain", body(&json!({})))]).collect::<Vec<_>>(),
    );
    files.run(&[]).ok();
    let answers = files.answers();
    for (id, answer) in &answers {
        assert_eq!(answer["body"]["choices"], answers["plain"]["body"]["choices"], "{id}: {answer}");
    }
    assert_eq!(answers.len(), neutral.len() + 1);
}

#[test]
fn fields_that_would_change_the_answer_are_refused_by_name() {
    let refused = [
        json!({"stream": true}),
        json!({"tools": [{"type": "function"}]}),
        json!({"tool_choice": "required"}),
        json!({"best_of": 2}),
        json!({"suffix": "end"}),
        json!({"logprobs": 5}),
        json!({"logprobs": true}),
        json!({"top_logprobs": 1}),
        json!({"skip_special_tokens": false}),
        json!({"add_special_tokens": false}),
        json!({"prompt_logprobs": 0}),
        json!({"frobnicate": 0}),
        json!({"top_k": -2}),
        json!({"seed": 1e30}),
        json!({"temperature": "hot"}),
        json!({"max_tokens": 0}),
        json!({"n": 0}),
        json!({"structured_outputs": {"disable_any_whitespace": true}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "mine": 1}}}),
    ];
    let line = |(i, more)| completion(&format!("{i}"), body(more));
    let files = Files::new(&refused.iter().enumerate().map(line).collect::<Vec<_>>());
    files.run(&[]).ok();
    let answers = files.answers();
    for (i, more) in refused.iter().enumerate() {
        let answer = &answers[&i.to_string()];
        let (name, _) = more.as_object().unwrap().iter().next().unwrap();
        let message = answer["body"]["error"]["message"].as_str().unwrap_or_default();
        assert!(answer["status_code"] == 400 && message.contains(name.as_str()), "{more}: {answer}");
    }
}

#[test]
fn message_fields_without_effect_are_accepted() {
    let model = Checkpoint::builtin();
    fs::write(model.file("chat_template.jinja"), "{% for m in messages %}{{ m.name }}{{ m.content }}{% endfor %}")
        .unwrap();
    let ask = |id: &str, more: Value| {
        let mut message = json!({"role": "assistant", "content": "b"});
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let messages = json!([{"role": "user", "content": [{"type": "text", "text": "a", "mine": null}]}, message]);
        let body = json!({"messages": messages, "max_tokens": 2, "temperature": 0});
        json!({"custom_id": id, "url": "/v1/chat/completions", "body": body})
    };
    let files = Files::new(&[
        ask("plain", json!({})),
        ask("none", json!({"refusal": null, "tool_calls": null, "name": null, "annotations": [], "audio": null})),
        ask("named", json!({"name": "Bob"})),
        ask("spelled", json!({"content": "Bobb"})),
        ask("number", json!({"name": 5})),
        ask("calls", json!({"tool_calls": [{"id": "x"}]})),
        ask("content", json!({"content": 5})),
        ask("image", json!({"content": [{"type": "image_url", "image_url": {"url": "x"}}]})),
    ]);
    files.run(&["--model", model.path()]).ok();
    let answers = files.answers();
    assert_eq!(answers["none"]["body"]["choices"], answers["plain"]["body"]["choices"]);
    assert_eq!(answers["plain"]["status_code"], 200);
    for part in ["choices", "usage"] {
        assert_eq!(answers["named"]["body"][part], answers["spelled"]["body"][part]);
    }
    assert_ne!(answers["named"]["body"]["usage"], answers["plain"]["body"]["usage"]);
    for (id, part) in [
        ("calls", "messages[1].tool_calls"),
        ("content", "messages[1].content"),
        ("image", "messages[1].content"),
        ("number", "messages[1]"),
    ] {
        let message = answers[id]["body"]["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn logprobs_are_those_of_the_chosen_tokens() {
    let args = ["generate", "And the king said", "--temperature", "0", "--max-tokens", "4", "--json"];
    let expected = run(&args).json();
    let files = Files::new(&[completion("a", body(&json!({"logprobs": 0})))]);
    files.run(&[]).ok();
    let choice = files.answers()["a"]["body"]["choices"][0].clone();
    let (logprobs, text) = (&choice["logprobs"], choice["text"].as_str().unwrap());
    assert_eq!(logprobs["token_logprobs"], expected["logprobs"]);
    assert_eq!((&logprobs["top_logprobs"], text), (&Value::Null, expected["text"].as_str().unwrap()));
    // Each token occurs in the text at its offset.
    let tokens = logprobs["tokens"].as_array().unwrap();
    for (token, offset) in tokens.iter().zip(logprobs["text_offset"].as_array().unwrap()) {
        let rest: String = text.chars().skip(offset.as_u64().unwrap() as usize).collect();
        assert!(rest.starts_with(token.as_str().unwrap()), "{token} in {rest:?}");
    }
    assert_eq!(tokens.len(), 4);

    let model = Checkpoint::builtin();
    fs::write(model.file("chat_template.jinja"), "{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
    let messages = json!([{"role": "user", "content": "And the king said"}]);
    let ask = |id: &str, logprobs: Value| {
        let body = json!({"messages": messages, "max_tokens": 4, "temperature": 0, "logprobs": logprobs});
        json!({"custom_id": id, "url": "/v1/chat/completions", "body": body})
    };
    let files = Files::new(&[ask("with", json!(true)), ask("without", json!(false)), ask("number", json!(0))]);
    files.run(&["--model", model.path()]).ok();
    let answers = files.answers();
    let content = answers["with"]["body"]["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let found: Vec<Value> = content.iter().map(|token| token["logprob"].clone()).collect();
    assert_eq!(Value::from(found), expected["logprobs"]);
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8))
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), text);
    assert_eq!(content[0]["top_logprobs"], json!([]));
    assert_eq!(answers["without"]["body"]["choices"][0]["logprobs"], Value::Null);
    assert_eq!(answers["number"]["status_code"], 400);
}

#[test]
fn an_echo_is_the_prompt_before_the_completion() {
    let prompt = "And the king said";
    let score = run(&["score", "--text", prompt, "--json"]).json();
    let files = Files::new(&[
        completion("plain", body(&json!({"logprobs": 0}))),
        completion("echo", body(&json!({"echo": true, "n": 2}))),
        completion("scored", body(&json!({"echo": true, "logprobs": 0}))),
        completion("only", body(&json!({"echo": true, "logprobs": 0, "max_tokens": 0}))),
        completion("tokens", body(&json!({"echo": true, "max_tokens": 0, "prompt": score["token_ids"]}))),
        completion("many", body(&json!({"echo": true, "max_tokens": 0, "n": 1_000_000_000}))),
    ]);
    files.run(&[]).ok();
    let answers = files.answers();
    let choice = |id: &str| answers[id]["body"]["choices"][0].clone();
    let whole = format!("{prompt}{}", choice("plain")["text"].as_str().unwrap());
    assert_eq!((&choice("echo")["text"], &choice("scored")["text"]), (&json!(whole), &json!(whole)));
    assert_eq!(answers["echo"]["body"]["choices"][1]["text"], whole);
    assert_eq!((&choice("only")["text"], &choice("tokens")["text"]), (&json!(prompt), &json!(prompt)));
    assert_eq!(choice("only")["logprobs"]["token_logprobs"], score["logprobs"]);
    let list = |id: &str, of: &str| choice(id)["logprobs"][of].as_array().unwrap().clone();
    let both = [list("only", "token_logprobs"), list("plain", "token_logprobs")].concat();
    assert_eq!(list("scored", "token_logprobs"), both);
    for (token, offset) in list("scored", "tokens").iter().zip(list("scored", "text_offset")) {
        let rest: String = whole.chars().skip(offset.as_u64().unwrap() as usize).collect();
        assert!(rest.starts_with(token.as_str().unwrap()), "{token} in {rest:?}");
    }
    assert_eq!(answers["only"]["body"]["usage"]["completion_tokens"], 0);
    assert_eq!(answers["many"]["status_code"], 400);
}
