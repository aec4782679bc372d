use std::fs;
#[cfg(feature = "sim")]
use std::process::Command;

use serde_json::json;

#[cfg(feature = "sim")]
use crate::support::command;
use crate::support::{Checkpoint, comma, run};

/// Asserts exit code 2 and a message of one line that names the file and contains `parts`.
#[track_caller]
fn refused(model: &Checkpoint, more: &[&str], parts: &[&str]) {
    let ran =
        run(&[&["generate", "--model", model.path(), "--token-ids", "1,2,3", "--max-tokens", "2"], more].concat());
    let message = ran.error(2);
    for part in ["expected ", ", found "].iter().chain(parts) {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn a_truncated_shard() {
    let model = Checkpoint::golden("llama-sharded");
    let shard = fs::read_dir(model.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().contains("00002-of"))
        .unwrap();
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 100]).unwrap();
    refused(&model, &[], &[shard.to_str().unwrap()]);
}

/// Rewrites the header of a checkpoint's only weight file.
fn rewrite(model: &Checkpoint, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>, &mut Vec<u8>)) {
    let file = model.file("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&rest[..length]).unwrap();
    let mut data = rest[length..].to_vec();
    change(&mut header, &mut data);
    let header = serde_json::to_vec(&header).unwrap();
    let parts = [&(header.len() as u64).to_le_bytes(), header.as_slice(), data.as_slice()];
    fs::write(&file, parts.concat()).unwrap();
}

#[test]
fn a_wrong_shape() {
    let model = Checkpoint::golden("llama-gqa");
    rewrite(&model, |header, _| {
        let shape = header["model.norm.weight"]["shape"].as_array_mut().unwrap();
        shape.insert(0, json!(1));
    });
    refused(&model, &[], &["model.safetensors", "model.norm.weight", "shape"]);
}

#[test]
fn a_missing_tensor() {
    let model = Checkpoint::golden("llama-gqa");
    rewrite(&model, |header, _| {
        let tensor = header.remove("model.norm.weight").unwrap();
        header.insert("model.unrelated.weight".to_owned(), tensor);
    });
    refused(&model, &[], &["model.safetensors", "model.norm.weight"]);
}

#[test]
fn an_oversized_header() {
    let model = Checkpoint::golden("llama-gqa");
    let file = model.file("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    bytes[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    fs::write(&file, bytes).unwrap();
    refused(&model, &[], &["model.safetensors", "header"]);
}

/// A clone without Git LFS has a pointer in place of a large file.
#[test]
fn a_git_lfs_pointer() {
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4977222960\n", "a".repeat(64));
    for file in ["model.safetensors", "tokenizer.json", "config.json", "generation_config.json"] {
        let model = Checkpoint::builtin();
        fs::write(model.file(file), &pointer).unwrap();
        refused(&model, &[], &[file, "Git LFS pointer", "git lfs pull"]);
    }
    let model = Checkpoint::golden("llama-sharded");
    let index = model.file("model.safetensors.index.json");
    assert!(index.exists());
    fs::write(index, &pointer).unwrap();
    refused(&model, &[], &["index.json", "Git LFS pointer"]);
}

#[test]
fn a_quantized_checkpoint_of_an_unknown_method() {
    for (quantization, found) in [
        (json!({"bits": 4, "group_size": 128}), "a quantized checkpoint that does not name its method"),
        (json!({"quant_method": "hqq", "nbits": 4}), "found hqq"),
    ] {
        let model = Checkpoint::golden("llama-gqa");
        model.edit("config.json", |config| config["quantization_config"] = quantization);
        refused(&model, &[], &["config.json", "quantization_config", found]);
    }
}

#[test]
fn an_unknown_rope_kind() {
    let model = Checkpoint::golden("llama-gqa");
    model.edit("config.json", |config| {
        config.as_object_mut().unwrap().remove("rope_parameters");
        config["rope_theta"] = json!(10000.0);
        config["rope_scaling"] = json!({"rope_type": "spiral", "factor": 2.0});
    });
    refused(&model, &[], &["config.json", "rope", "spiral"]);
}

#[test]
fn a_nan_weight_is_found_on_request() {
    let model = Checkpoint::builtin();
    rewrite(&model, |header, data| {
        let place = &header["model.norm.weight"]["data_offsets"];
        let at = place[0].as_u64().unwrap() as usize + 2 * 5;
        data[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    });
    refused(&model, &["--check"], &["model.safetensors", "model.norm.weight[5]", "NaN"]);
    // By default loading does not read all weights.
    assert_eq!(run(&["inspect", model.path()]).code, Some(0));
    run(&["generate", "--check", "--max-tokens", "1"]).ok();
}

#[test]
fn a_prompt_longer_than_the_context() {
    let long = comma(&vec![5; 1025]);
    let ran = run(&["generate", "--token-ids", &long]);
    assert_eq!(ran.error(2), "prompt: expected at most 1024 tokens, the context, found 1025 tokens");
    run(&["score", "--token-ids", &long]).error(2);
    run(&["generate", "--context", "2000", "a"]).error(2);
}

#[test]
fn empty_prompts() {
    assert_eq!(run(&["generate", ""]).error(2), "prompt: expected a text, found an empty one");
    let empty = tempfile::NamedTempFile::new().unwrap();
    let file = empty.path().to_str().unwrap();
    assert_eq!(run(&["generate", "--prompt-file", file]).error(2), "prompt: expected a text, found an empty one");
    let gone = run(&["generate", "--prompt-file", "no/such/file"]);
    assert!(gone.error(2).starts_with("no/such/file: "), "{gone:?}");
    let latin = tempfile::NamedTempFile::new().unwrap();
    fs::write(latin.path(), b"caf\xe9").unwrap();
    assert!(run(&["generate", "--prompt-file", latin.path().to_str().unwrap()]).error(2).contains("UTF-8"));
    let model = Checkpoint::builtin();
    assert!(run(&["generate", "--model", model.path()]).error(2).starts_with("prompt: expected a PROMPT"));
}

#[test]
fn a_token_id_out_of_range() {
    let ran = run(&["generate", "--token-ids", "1,2048"]);
    assert_eq!(ran.error(2), "prompt: token 1: expected an id below 2048, the vocabulary's size, found 2048");
    run(&["score", "--token-ids", "2048"]).error(2);
}

#[test]
fn paths_without_a_model() {
    assert!(run(&["generate", "--model", "./no-such-folder", "a"]).error(2).contains("no-such-folder"));
    let empty = tempfile::tempdir().unwrap();
    assert!(run(&["generate", "--model", empty.path().to_str().unwrap(), "a"]).error(2).contains("config.json"));
    let model = Checkpoint::builtin();
    fs::write(model.file("tokenizer.json"), "{}").unwrap();
    assert!(run(&["generate", "--model", model.path(), "a"]).error(2).contains("tokenizer.json: tokenizer: expected"));
}

#[test]
fn values_out_of_range_are_refused_before_anything_is_loaded() {
    let cases: [(&[&str], &str); 27] = [
        (&["--threads", "100000"], r#"--threads <N>: expected a whole number from 1 to 1024, found "100000""#),
        (&["--temperature", "-1"], r#"--temperature <T>: expected a number from 0 up, found "-1""#),
        (&["--temperature", "NaN"], r#"--temperature <T>: expected a number from 0 up, found "NaN""#),
        (&["--temperature", "inf"], r#"--temperature <T>: expected a number from 0 up, found "inf""#),
        (&["--top-p", "0"], r#"--top-p <P>: expected a number above 0, at most 1, found "0""#),
        (&["--top-p", "1.5"], r#"--top-p <P>: expected a number above 0, at most 1, found "1.5""#),
        (&["--top-k", "-1"], r#"--top-k <K>: expected a whole number from 0 up, found "-1""#),
        (&["--min-p", "2"], r#"--min-p <P>: expected a number from 0 to 1, found "2""#),
        (&["--repetition-penalty", "0"], r#"--repetition-penalty <R>: expected a number above 0, found "0""#),
        (&["--typical-p", "0"], r#"--typical-p <P>: expected a number above 0, at most 1, found "0""#),
        (
            &["--no-repeat-ngram-size", "-1"],
            r#"--no-repeat-ngram-size <N>: expected a whole number from 0 up, found "-1""#,
        ),
        (&["--dry-multiplier", "-1"], r#"--dry-multiplier <MULTIPLIER>: expected a number from 0 up, found "-1""#),
        (
            &["--dry-multiplier", "1", "--dry-base", "0.5"],
            r#"--dry-base <BASE>: expected a number from 1 up, found "0.5""#,
        ),
        (&["--presence-penalty", "3"], r#"--presence-penalty <P>: expected a number from -2 to 2, found "3""#),
        (
            &["--logit-bias", "7"],
            r#"--logit-bias <TOKEN=BIAS>: expected TOKEN=BIAS, such as 42=-5 or 42=-inf, found "7""#,
        ),
        (
            &["--seed", "18446744073709551616"],
            r#"--seed <N>: expected a whole number from 0 to 18446744073709551615, found "18446744073709551616""#,
        ),
        (&["--max-tokens", "0"], r#"--max-tokens <N>: expected a whole number from 1 up, found "0""#),
        (&["--max-tokens", "many"], r#"--max-tokens <N>: expected a whole number from 1 up, found "many""#),
        (
            &["--max-sequences", "99999999999"],
            r#"--max-sequences <N>: expected a whole number from 1 to 1048576, found "99999999999""#,
        ),
        (
            &["--step-tokens", "18446744073709551615"],
            r#"--step-tokens <TOKENS>: expected a whole number from 1 to 1048576, found "18446744073709551615""#,
        ),
        (&["--threads", "0"], r#"--threads <N>: expected a whole number from 1 to 1024, found "0""#),
        (&["--context", "-5"], r#"--context <TOKENS>: expected a whole number from 1 up, found "-5""#),
        (&["--stop", ""], r#"--stop <TEXT>: expected a text that is not empty, found """#),
        (
            &["--kv-dtype", "f8"],
            r#"--kv-dtype <KV_DTYPE>: expected one of auto, f32, bf16, f16, fp8_e4m3, fp8_e5m2, int8, found "f8""#,
        ),
        (&["--dtype", "f8"], r#"--dtype <DTYPE>: expected one of auto, f32, bf16, f16, found "f8""#),
        (&["--device", "gpu"], r#"--device <DEVICE>: expected auto, cpu, cuda, cuda:N or sim, found "gpu""#),
        (
            &["--token-ids", "1,-2"],
            r#"--token-ids <1,2,3>: expected token ids, whole numbers with commas between them, found "1,-2""#,
        ),
    ];
    for (args, message) in cases {
        // The model does not exist, but the option's error comes first.
        assert_eq!(run(&[&["generate", "--model", "./nowhere"], args].concat()).error(2), message);
    }
}

#[test]
fn usage_errors_are_one_line_too() {
    for args in [
        &["generate", "--no-such-option"][..],
        &["generate", "a", "--token-ids", "1"],
        &["generate", "a", "--prompt-file", "b"],
        &["generate", "a", "b"],
        &["generate", "a", "--dry-base", "2"],
        &["generate", "--seed"],
        &["frobnicate"],
        &["inspect", "--memory", "much"],
        &["bench", "throughput", "--batch", "1,99999999999"],
        &["bench", "latency", "--decode", "99999999999"],
        &["simulate", "config.json", "--requests", "99999999999"],
        &["completions", "tcsh"],
    ] {
        run(args).error(2);
    }
    // Without a command the help is printed.
    let help = run(&[]);
    assert!(help.code == Some(2) && help.err.contains("Usage:"), "{help:?}");
}

#[test]
fn missing_devices_are_failures() {
    let ran = run(&["generate", "a", "--device", "cuda:99"]);
    assert!(ran.error(1).starts_with("device cuda:99: "), "{ran:?}");
}

#[cfg(feature = "sim")]
#[test]
fn dtypes_that_a_device_lacks_are_bad_input() {
    let sim = |args: &[&str]| run(&[&["generate", "a", "--device", "sim"], args].concat());
    assert_eq!(sim(&["--dtype", "f32"]).error(2), "dtype: expected bf16 or f16 on a GPU, found f32");
    let ran = sim(&["--dtype", "f16", "--kv-dtype", "bf16"]);
    assert_eq!(ran.error(2), "KV dtype: expected f16 as the activations, e4m3, e5m2 or i8 on a GPU, found bf16");
    let ran = sim(&["--dtype", "bf16", "--sim-arch", "sm_75"]);
    assert_eq!(ran.error(2), "dtype: expected f16: sm_75 has no bf16, give --dtype f16, found bf16");
    let ran = sim(&["--sim-arch", "sm_60"]);
    let expected = "--sim-arch <ARCH>: expected sm_70, sm_75, sm_80, sm_86, sm_89 or sm_90a, found \"sm_60\"";
    assert_eq!(ran.error(2), expected);
}

#[cfg(feature = "sim")]
#[test]
fn a_simulator_without_kernels_says_how_to_get_them() {
    let error = |change: fn(&mut Command) -> &mut Command| {
        let output = change(&mut command(&["generate", "a", "--device", "sim"])).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let message = error(|command| command.env("BURRSTONE_SIM_KERNELS", "/nowhere/kernels.so"));
    assert!(message.starts_with("error: device sim: BURRSTONE_SIM_KERNELS: /nowhere/kernels.so: "), "{message}");
    if !cfg!(feature = "sim-kernels") {
        let message = error(|command| command.env_remove("BURRSTONE_SIM_KERNELS"));
        assert!(message.starts_with("error: device sim: ") && message.contains("feature sim-kernels"), "{message}");
    }
}

#[test]
fn budgets_that_are_too_small_are_refused_with_the_numbers() {
    let ran = run(&["generate", "x", "--memory", "1MB"]);
    let message = ran.error(2);
    assert!(message.starts_with("memory: expected") && message.ends_with("found 1000000 bytes"), "{message}");
    let ran = run(&[
        "generate",
        "--token-ids",
        "1,2,3,4,5",
        "--kv-tokens",
        "64",
        "--max-tokens",
        "100",
        "--ignore-eos",
        "--json",
    ]);
    assert_eq!(ran.json()["usage"]["completion_tokens"], 60);
    let long = vec!["7"; 65].join(",");
    let ran = run(&["generate", "--token-ids", &long, "--kv-tokens", "64"]);
    assert!(ran.error(2).contains("at most 64 tokens"), "{ran:?}");
    run(&["generate", "x", "--max-sequences", "600", "--step-tokens", "512"]).error(2);
}
