use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Checkpoint, command, run};

/// A folder with an input file for `batch`.
pub struct Files(pub tempfile::TempDir);

impl Files {
    pub fn new(lines: &[Value]) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(files.input(), text).unwrap();
        files
    }

    pub fn input(&self) -> PathBuf {
        self.0.path().join("in.jsonl")
    }

    pub fn output(&self) -> PathBuf {
        self.0.path().join("out.jsonl")
    }

    pub fn args<'a>(&self, input: &'a str, output: &'a str) -> Vec<&'a str> {
        vec!["batch", "--input", input, "--output", output, "--quiet"]
    }

    pub fn run(&self, more: &[&str]) -> crate::support::Ran {
        let (input, output) = (self.input(), self.output());
        run(&[&self.args(input.to_str().unwrap(), output.to_str().unwrap())[..], more].concat())
    }

    /// The output's lines by request id, each of which must occur once.
    pub fn answers(&self) -> BTreeMap<String, Value> {
        let mut answers = BTreeMap::new();
        for line in fs::read_to_string(self.output()).unwrap().lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            let id = value["custom_id"].as_str().unwrap().to_owned();
            assert_eq!(value["error"], Value::Null);
            assert!(answers.insert(id, value["response"].clone()).is_none(), "twice: {line}");
        }
        answers
    }
}

pub fn completion(id: &str, body: Value) -> Value {
    json!({"custom_id": id, "method": "POST", "url": "/v1/completions", "body": body})
}

fn text(prompt: &str) -> String {
    let args = ["generate", prompt, "--temperature", "0", "--max-tokens", "12", "--json"];
    run(&args).json()["text"].as_str().unwrap().to_owned()
}

#[test]
fn batch_gives_the_answers_of_generate() {
    let greedy = |prompt: &str| json!({"prompt": prompt, "temperature": 0, "max_tokens": 12, "model": "any"});
    let files = Files::new(&[
        completion("a", greedy("In the beginning")),
        completion("b", greedy("And the king said")),
        completion("tokens", json!({"prompt": [41, 78, 259], "temperature": 0, "max_tokens": 3})),
        completion(
            "stop",
            json!({"prompt": [41, 78, 259], "temperature": 0, "max_tokens": 3, "logit_bias": {"77": 100}, "stop_token_ids": [77]}),
        ),
        completion("two", json!({"prompt": "Blessed", "n": 2, "seed": 3, "temperature": 1.0, "max_tokens": 5})),
        completion(
            "biased",
            json!({"prompt": "x", "temperature": 0, "max_tokens": 3, "logit_bias": {"77": 100, "78": 99},
            "presence_penalty": 2, "frequency_penalty": 1.5}),
        ),
        completion("unknown", json!({"prompt": "x", "frobnicate": 1})),
        completion("range", json!({"prompt": "x", "top_p": 7})),
        completion("long", json!({"prompt": vec![5; 2000]})),
        json!({"custom_id": "url", "url": "/v1/embeddings", "body": {}}),
        completion("chat", json!({"messages": [{"role": "user", "content": "x"}]})),
    ]);
    assert_eq!(files.run(&[]).ok(), "");
    let answers = files.answers();
    assert_eq!(answers.len(), 11);
    assert_eq!(answers["biased"]["status_code"], 200);
    for (id, prompt) in [("a", "In the beginning"), ("b", "And the king said")] {
        let body = &answers[id]["body"];
        assert_eq!((&answers[id]["status_code"], &body["object"]), (&json!(200), &json!("text_completion")));
        assert_eq!(body["choices"][0]["text"], text(prompt));
        assert_eq!(body["choices"][0]["finish_reason"], "length");
        assert_eq!(body["usage"]["completion_tokens"], 12);
    }
    assert_eq!(answers["tokens"]["body"]["usage"]["prompt_tokens"], 3);
    let stop = &answers["stop"]["body"];
    assert_eq!(
        (&stop["usage"]["completion_tokens"], &stop["choices"][0]["finish_reason"]),
        (&json!(1), &json!("stop"))
    );
    let two = answers["two"]["body"]["choices"].as_array().unwrap();
    assert_eq!((two.len(), two[1]["index"].as_u64()), (2, Some(1)));
    for (id, part) in
        [("unknown", "frobnicate"), ("range", "top_p"), ("long", "2000 tokens"), ("url", "/v1/emb"), ("chat", "prompt")]
    {
        assert_eq!(answers[id]["status_code"], 400, "{id}");
        let message = answers[id]["body"]["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{id}: {message}");
    }
}

#[test]
fn conversations_go_through_the_chat_template() {
    let model = Checkpoint::builtin();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    fs::write(model.file("chat_template.jinja"), template).unwrap();
    let parts = json!([{"type": "text", "text": "In the "}, {"type": "text", "text": "beginning"}]);
    let body = |content: Value| json!({"messages": [{"role": "user", "content": content}], "temperature": 0, "max_completion_tokens": 12});
    let ask = |id: &str, content: Value| json!({"custom_id": id, "url": "/v1/chat/completions", "body": body(content)});
    let files = Files::new(&[ask("whole", json!("In the beginning")), ask("parts", parts)]);
    files.run(&["--model", model.path()]).ok();
    let answers = files.answers();
    let message = &answers["whole"]["body"]["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    assert_eq!(message["content"], text("user: In the beginning\n"));
    assert_eq!(message, &answers["parts"]["body"]["choices"][0]["message"]);
}

fn lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.iter().filter(|&&byte| byte == b'\n').count())
}

/// Killed again and again, in the end every request has one line, the same as without.
#[test]
fn a_killed_run_is_continued() {
    let ask = |i: usize| {
        let body = json!({"prompt": format!("Chapter {i}"), "max_tokens": 40, "seed": i, "temperature": 1.0});
        completion(&format!("r{i}"), body)
    };
    let asks: Vec<Value> = (0..40).map(ask).collect();
    let (whole, killed) = (Files::new(&asks), Files::new(&asks));
    whole.run(&[]).ok();
    let (input, output) = (killed.input(), killed.output());
    for _ in 0..3 {
        let before = lines(&output);
        let args = killed.args(input.to_str().unwrap(), output.to_str().unwrap());
        let mut child = command(&[&args[..], &["--max-sequences", "4"]].concat()).spawn().unwrap();
        let started = Instant::now();
        while lines(&output) < before + 3 && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(lines(&output) >= before + 3 && lines(&output) < 40);
    }
    // As if killed in the middle of a line.
    let bytes = fs::read(&output).unwrap();
    fs::write(&output, &bytes[..bytes.len() - 40]).unwrap();
    killed.run(&[]).ok();
    let texts = |files: &Files| {
        let text = |(id, answer): (String, Value)| (id, answer["body"]["choices"][0]["text"].clone());
        files.answers().into_iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(texts(&killed), texts(&whole));
    assert_eq!(lines(&output), 40);
    // All requests are answered, so no model is loaded.
    killed.run(&["--model", "/nowhere"]).ok();
}

/// #15253: the cost of preemption is reported, and the preemption mode does not change answers.
#[test]
fn issue_15253_preemptions_are_reported() {
    let ask = |i: usize| {
        let body = json!({"prompt": format!("Chapter {i}"), "max_tokens": 300, "temperature": 0, "ignore_eos": true});
        completion(&format!("r{i}"), body)
    };
    let asks: Vec<Value> = (0..8).map(ask).collect();
    let answer = |more: &[&str]| {
        let files = Files::new(&asks);
        let (input, output) = (files.input(), files.output());
        let io = ["batch", "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()];
        let ran = run(&[&io, more].concat());
        let said = ran.err.clone();
        ran.ok();
        let text = |(id, answer): (String, Value)| (id, answer["body"]["choices"][0]["text"].clone());
        (said, files.answers().into_iter().map(text).collect::<Vec<_>>())
    };
    let (said, expected) = answer(&[]);
    assert!(!said.contains("preemptions"), "{said}");
    let small = ["--kv-tokens", "640", "--host-kv-memory", "64MiB", "--preemption"];
    for (how, back) in [("swap", false), ("recompute", true)] {
        let (said, found) = answer(&[&small[..], &[how]].concat());
        assert_eq!(found, expected, "{how}");
        let line = said.lines().find(|line| line.contains(" preemptions, ")).unwrap();
        assert!(!line.starts_with("0 preemptions") && !line.contains("memory 0 B"), "{line}");
        assert_eq!(line.ends_with("back 0 B"), back, "{line}");
    }
    let refused = Files::new(&asks).run(&["--preemption", "swap"]);
    assert!(refused.error(2).contains("preemption: expected memory of the host"), "{refused:?}");
}

/// #7842: repetition detection with vLLM's field names.
#[test]
fn issue_7842_repetition_ends_an_answer() {
    let ask = |id: &str, detection: Value| {
        let body = json!({"prompt": "And the king said", "max_tokens": 300, "temperature": 0, "ignore_eos": true,
            "repetition_detection": detection});
        completion(id, body)
    };
    let files = Files::new(&[
        ask("circle", json!({"max_pattern_size": 50, "min_pattern_size": 3, "min_count": 2})),
        ask("none", json!({"max_pattern_size": 0})),
        ask("wrong", json!({"max_pattern_size": 50})),
    ]);
    files.run(&[]).ok();
    let answers = files.answers();
    let finish = |id: &str| answers[id]["body"]["choices"][0]["finish_reason"].clone();
    assert_eq!((finish("circle"), finish("none")), (json!("repetition"), json!("length")));
    assert_eq!(answers["wrong"]["status_code"], 400);
    let flags = ["--repetition-max-pattern-size", "50", "--repetition-min-pattern-size", "3", "--repetition-min-count"];
    let args = ["generate", "And the king said", "--max-tokens", "300", "--temperature", "0", "--ignore-eos", "--json"];
    assert_eq!(run(&[&args[..], &flags[..], &["2"]].concat()).json()["finish_reason"], "repetition");
    run(&[&args[..], &flags[..2]].concat()).error(2);
}

/// A list of prompts is answered in one line, with choices in the prompts' order.
#[test]
fn a_list_of_prompts_is_answered_by_a_list_of_choices() {
    let body = |prompt: Value| json!({"prompt": prompt, "temperature": 0, "max_tokens": 4});
    let several = json!({"prompt": ["Blessed", "In the"], "n": 2, "temperature": 0, "max_tokens": 4});
    let files = Files::new(&[
        completion("several", several),
        completion("tokens", body(json!([[41, 78], [259]]))),
        completion("first", body(json!("Blessed"))),
        completion("second", body(json!("In the"))),
        completion("none", body(json!([]))),
    ]);
    files.run(&[]).ok();
    let answers = files.answers();
    let choices = |id: &str| answers[id]["body"]["choices"].as_array().unwrap().clone();
    let texts: Vec<Value> = choices("several").iter().map(|choice| choice["text"].clone()).collect();
    let (first, second) = (choices("first")[0]["text"].clone(), choices("second")[0]["text"].clone());
    assert_eq!(texts, [first.clone(), first, second.clone(), second]);
    assert_eq!(choices("tokens").len(), 2);
    let usage = |id: &str| answers[id]["body"]["usage"].clone();
    let sum = |field: &str| usage("first")[field].as_u64().unwrap() + usage("second")[field].as_u64().unwrap();
    assert_eq!(usage("several")["prompt_tokens"], sum("prompt_tokens"));
    assert_eq!(usage("several")["completion_tokens"], 2 * sum("completion_tokens"));
    assert_eq!(answers["none"]["status_code"], 400);
}
