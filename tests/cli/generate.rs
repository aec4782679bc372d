use std::io::Read as _;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Checkpoint, comma, command, ids, run, tokenizer, with_input};

/// A greedy continuation as JSON.
fn greedy(more: &[&str]) -> Value {
    let limit: &[&str] = if more.contains(&"--max-tokens") { &[] } else { &["--max-tokens", "32"] };
    run(&[&["generate", "--json", "--temperature", "0"], limit, more].concat()).json()
}

#[test]
fn text_streams_to_stdout_and_one_line_of_timings_to_stderr() {
    let plain = run(&["generate", "In the beginning", "--temperature", "0", "--max-tokens", "32"]);
    assert_eq!(plain.err.lines().count(), 1, "{}", plain.err);
    assert!(plain.err.contains("prefill") && plain.err.contains("tokens/s"), "{}", plain.err);
    let text = plain.ok();
    assert!(text.split_whitespace().count() > 10 && text.contains(" the "), "{text:?}");
    assert!(text.ends_with('\n') && !text.contains('\u{1b}'), "{text:?}");
    assert_eq!(greedy(&["In the beginning"])["text"].as_str().unwrap().trim_end(), text.trim_end());

    let quiet = run(&["generate", "In the beginning", "--max-tokens", "2", "--quiet"]);
    assert_eq!(quiet.err, "");
}

/// The simulated CUDA kernels give the CPU's tokens; this text has no near ties.
#[cfg(feature = "sim")]
#[test]
fn the_simulator_and_the_cpu_give_the_same_text() {
    let on = |device: &str| greedy(&["In the beginning", "--max-tokens", "8", "--device", device])["token_ids"].clone();
    assert_eq!(on("sim"), on("cpu"));
}

/// The first read of the pipe returns before the text is complete.
#[test]
fn text_is_streamed() {
    let mut child =
        command(&["generate", "And", "--ignore-eos", "--max-tokens", "600", "--temperature", "0"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 1 << 16];
    let first = out.read(&mut first).unwrap();
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(first > 0 && first < rest.len(), "{first} bytes, then {}", rest.len());
}

/// As in `burrstone generate | head -c 1`.
#[test]
fn a_closed_output_pipe_is_no_error() {
    let mut child = command(&["generate", "And", "--ignore-eos", "--max-tokens", "600", "--quiet"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn json_is_one_object_with_the_documented_fields() {
    let report = greedy(&["In the beginning"]);
    let keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["text", "token_ids", "logprobs", "finish_reason", "usage", "timings"]);
    let tokens = ids(&report["token_ids"]);
    assert_eq!(tokens.len(), 32);
    assert_eq!(report["finish_reason"], "length");
    assert_eq!(report["usage"]["completion_tokens"], 32);
    assert_eq!(report["usage"]["prompt_tokens"], tokenizer().encode("In the beginning", true).unwrap().len());
    assert_eq!(report["text"], tokenizer().decode(&tokens, true).unwrap());
    let logprobs: Vec<f64> = report["logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert_eq!(logprobs.len(), 32);
    assert!(logprobs.iter().all(|x| *x <= 0.0));
    for time in ["load_s", "prefill_s", "decode_s"] {
        assert!(report["timings"][time].as_f64().unwrap() > 0.0, "{time}");
    }
}

#[test]
fn prompts_come_from_arguments_files_and_pipes() {
    let expected = greedy(&["The king said"]);
    let same = |report: Value| assert_eq!((&report["text"], &report["usage"]), (&expected["text"], &expected["usage"]));
    let base = ["generate", "--json", "--temperature", "0", "--max-tokens", "32"];

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "The king said").unwrap();
    same(greedy(&["--prompt-file", file.to_str().unwrap()]));
    same(with_input(&[&base[..], &["--prompt-file", "-"]].concat(), "The king said").json());
    // The final line break of piped text is dropped.
    same(with_input(&base, "The king said\n").json());
    same(greedy(&["--token-ids", &comma(&tokenizer().encode("The king said", true).unwrap())]));
    same(greedy(&["--model", Checkpoint::builtin().path(), "The king said"]));
    // With a prompt argument standard input is ignored.
    same(with_input(&[&base[..], &["The king said"]].concat(), "other words").json());

    let default = run(&base);
    assert!(default.err.contains("In the beginning"), "{}", default.err);
    assert_eq!(default.json()["text"], greedy(&["In the beginning"])["text"]);
}

/// Parent processes often leave standard input open without writing to it.
#[test]
fn a_silent_pipe_is_not_waited_for_forever() {
    let mut child = command(&["generate", "--max-tokens", "3"]).stdin(Stdio::piped()).spawn().unwrap();
    let silent = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && String::from_utf8(output.stderr).unwrap().contains("In the beginning"));
    drop(silent);
}

#[test]
fn the_built_in_model_stops_at_its_end_token_or_the_limit() {
    let report = run(&["generate", "--json", "--seed", "1"]).json();
    let completion = report["usage"]["completion_tokens"].as_u64().unwrap();
    match report["finish_reason"].as_str().unwrap() {
        "stop" => assert_eq!(*ids(&report["token_ids"]).last().unwrap(), 0),
        "length" => assert_eq!(completion, 256),
        other => panic!("{other}"),
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    for [dtype, kv_dtype] in [["bf16", "auto"], ["f32", "auto"], ["f32", "int8"], ["bf16", "fp8_e4m3"]] {
        let with =
            |threads| greedy(&["And it came to pass", "--dtype", dtype, "--kv-dtype", kv_dtype, "--threads", threads]);
        let one = with("1");
        for threads in ["2", "3"] {
            let several = with(threads);
            assert_eq!(one["token_ids"], several["token_ids"], "{dtype}, {threads} threads");
            assert_eq!(one["logprobs"], several["logprobs"], "{dtype}, {threads} threads");
        }
    }
}

#[test]
fn the_seed_decides_the_tokens() {
    let draw = |seed: &str| {
        let args = ["generate", "Behold", "--json", "--temperature", "1", "--max-tokens", "24", "--seed", seed];
        run(&args).json()["token_ids"].clone()
    };
    let first = draw("7");
    assert_eq!(first, draw("7"));
    assert!(["8", "9", "18446744073709551615"].iter().any(|seed| draw(seed) != first));
}

/// Each option reaches the sampler: it changes the tokens of a fixed seed, or makes them greedy.
#[test]
fn sampling_options_take_effect() {
    let draw = |more: &[&str]| {
        let base = ["generate", "Behold", "--json", "--max-tokens", "24", "--seed", "3", "--temperature", "2"];
        ids(&run(&[&base, more].concat()).json()["token_ids"])
    };
    let long =
        |more: &[&str]| greedy(&[&["Behold", "--max-tokens", "48", "--ignore-eos"], more].concat())["text"].clone();
    assert_ne!(long(&["--dry-multiplier", "50", "--dry-allowed-length", "1"]), long(&[]));
    let greedy = ids(&greedy(&["Behold", "--max-tokens", "24"])["token_ids"]);
    let free = draw(&[]);
    assert_ne!(free, greedy);
    assert_eq!(draw(&["--top-k", "1"]), greedy);
    assert_eq!(draw(&["--top-p", "0.0001"]), greedy);
    assert_eq!(draw(&["--min-p", "1"]), greedy);
    assert_ne!(draw(&["--repetition-penalty", "50"]), free);
    assert_ne!(draw(&["--presence-penalty", "2", "--frequency-penalty", "2"]), free);
    assert_ne!(draw(&["--logit-bias", "77=100"]), free);
    assert_ne!(draw(&["--typical-p", "0.2"]), free);
    assert_ne!(draw(&["--no-repeat-ngram-size", "1"]), free);
    let guided = draw(&["--guidance-scale", "3"]);
    assert_ne!(guided, free);
    assert_ne!(draw(&["--guidance-scale", "3", "--negative-prompt", "And the king said"]), guided);
}

#[test]
fn stop_texts_end_the_text_before_them() {
    let whole = greedy(&["In the beginning"]);
    let whole = whole["text"].as_str().unwrap();
    let middle = (whole.len() / 2..).find(|at| whole.is_char_boundary(*at) && whole.is_char_boundary(at + 7)).unwrap();
    let stop = &whole[middle..middle + 7];
    let stopped = greedy(&["In the beginning", "--stop", "never to be seen", "--stop", stop]);
    assert_eq!(stopped["text"], whole[..whole.find(stop).unwrap()]);
    assert_eq!(stopped["finish_reason"], "stop");
    let plain = run(&["generate", "In the beginning", "--temperature", "0", "--max-tokens", "32", "--stop", stop]).ok();
    assert_eq!(plain.trim_end_matches('\n'), stopped["text"].as_str().unwrap().trim_end_matches('\n'));
}

#[test]
fn stop_tokens_end_the_text_before_them() {
    let all = ids(&greedy(&["In the beginning"])["token_ids"]);
    let first = all.iter().position(|id| *id == all[4]).unwrap();
    for option in ["--stop-token", "--stop-token-id"] {
        let ended = greedy(&["In the beginning", option, "2047", option, &all[4].to_string()]);
        assert_eq!(ids(&ended["token_ids"]), all[..=first]);
        assert_eq!(ended["finish_reason"], "stop");
        assert_eq!(ended["text"], tokenizer().decode(&all[..first], true).unwrap());
    }
    let refused = run(&["generate", "And", "--stop-token", "2048"]);
    assert!(refused.error(2).contains("stop_token_ids: expected token ids below 2048"), "{refused:?}");
    assert!(run(&["generate", "And", "--stop-token", "-1"]).error(2).contains("expected a token id"));
}

#[test]
fn the_checkpoints_max_new_tokens_is_the_default() {
    let model = Checkpoint::builtin();
    model.edit("generation_config.json", |config| config["max_new_tokens"] = serde_json::json!(5));
    let count = |more: &[&str]| {
        let args =
            ["generate", "In the beginning", "--ignore-eos", "--temperature", "0", "--json", "--quiet", "--model"];
        ids(&run(&[&args[..], &[model.path()], more].concat()).json()["token_ids"]).len()
    };
    assert_eq!((count(&[]), count(&["--max-tokens", "9"])), (5, 9));
}

#[test]
fn end_tokens_end_unless_ignored() {
    let model = Checkpoint::builtin();
    let all = ids(&greedy(&["In the beginning"])["token_ids"]);
    // Makes the fifth token an end token.
    model.edit("generation_config.json", |config| config["eos_token_id"] = serde_json::json!([0, all[4]]));
    let first = all.iter().position(|id| *id == all[4]).unwrap();
    let ended = greedy(&["In the beginning", "--model", model.path()]);
    assert_eq!(ids(&ended["token_ids"]), all[..=first]);
    assert_eq!(ended["finish_reason"], "stop");
    assert_eq!(ended["text"], tokenizer().decode(&all[..first], true).unwrap());
    let on = greedy(&["In the beginning", "--model", model.path(), "--ignore-eos"]);
    assert_eq!(ids(&on["token_ids"]), all);
}

#[test]
fn end_tokens_do_not_come_before_min_tokens() {
    let model = Checkpoint::builtin();
    let all = ids(&greedy(&["In the beginning"])["token_ids"]);
    let first = all.iter().position(|id| *id == all[4]).unwrap();
    model.edit("generation_config.json", |config| config["eos_token_id"] = serde_json::json!([0, all[4]]));
    let least = |n: usize| {
        let tokens = greedy(&["In the beginning", "--model", model.path(), "--min-tokens", &n.to_string()]);
        ids(&tokens["token_ids"])
    };
    assert_eq!(least(first), all[..=first]);
    let longer = least(first + 3);
    assert!(longer.len() >= first + 3 && longer[..first] == all[..first], "{longer:?}");
    assert!(!longer[..first + 3].contains(&all[4]), "{longer:?}");

    let refused = run(&["generate", "And", "--max-tokens", "5", "--min-tokens", "6"]);
    let error = refused.error(2);
    assert!(error.contains("min_tokens") && error.contains("at most 5") && error.contains('6'), "{error}");
}

#[test]
fn without_a_tokenizer_input_and_output_are_ids() {
    let model = Checkpoint::golden("llama-gqa");
    let base =
        ["generate", "--model", model.path(), "--token-ids", "1, 2,3", "--temperature", "0", "--max-tokens", "5"];
    let report = run(&[&base[..], &["--json"]].concat()).json();
    assert_eq!(report["text"], "");
    let tokens = ids(&report["token_ids"]);
    assert_eq!(run(&base).ok(), format!("{}\n", comma(&tokens)));

    let refused = run(&["generate", "--model", model.path(), "some text"]);
    assert!(refused.error(2).contains("no tokenizer.json"), "{refused:?}");
}

/// #18728: frequencies scaled for a longer context than is used cost quality, so there is a warning.
#[test]
fn issue_18728_unneeded_rope_scaling_is_warned_about() {
    let model = Checkpoint::golden("rope-yarn");
    let said = |more: &[&str]| {
        let args = ["generate", "--model", model.path(), "--token-ids", "5,6,7", "--max-tokens", "1"];
        let ran = run(&[&args, more].concat());
        let said = ran.err.clone();
        ran.ok();
        said
    };
    // The model was trained with 64 tokens.
    assert!(said(&["--context", "64"]).starts_with("warning: rope_type yarn stretches positions by 4 "));
    let unstretched = ["--context", "64", "--rope-scaling", "when-needed"];
    for more in [&["--context", "65"][..], &[], &["--context", "64", "--quiet"], &unstretched] {
        assert!(!said(more).contains("yarn"), "{more:?}");
    }
}

#[test]
fn the_context_limits_the_text() {
    let report = greedy(&["--token-ids", "5,6,7,8,9", "--context", "12", "--max-tokens", "50", "--ignore-eos"]);
    assert_eq!(report["finish_reason"], "length");
    // The last token takes no position of the context.
    assert_eq!(report["usage"]["completion_tokens"], 12 + 1 - 5);
}
