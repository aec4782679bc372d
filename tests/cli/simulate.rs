use serde_json::Value;

use crate::support::{Checkpoint, run};

const LLAMA_8B: &str = r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192, "rope_theta": 500000.0, "torch_dtype": "bfloat16"}"#;

fn mix(args: &[&str]) -> Value {
    let report = run(&[&["simulate"], args, &["--json"]].concat()).json();
    assert_eq!(report["modelled"], true);
    report["mixes"][0].clone()
}

#[test]
fn faster_gpus_serve_requests_faster() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    std::fs::write(&config, LLAMA_8B).unwrap();
    let file = config.to_str().unwrap();
    let fixed = ["--workload", "fixed", "--requests", "300"];
    let on = |gpu: &str| mix(&[&[file, "--gpu", gpu], &fixed[..]].concat());
    let (h200, a100) = (on("h200"), on("a100"));
    for mix in [&h200, &a100] {
        assert_eq!((mix["requests"].as_u64(), mix["refused"].as_u64()), (Some(300), Some(0)));
        assert_eq!(mix["tokens"], 300 * 64);
        let parts: f64 = ["queue_s", "prefill_s"].iter().map(|part| mix[part]["median"].as_f64().unwrap()).sum();
        assert!(parts > 0.0 && mix["seconds"].as_f64().unwrap() > parts);
    }
    let speed = |mix: &Value| mix["tokens_per_s"].as_f64().unwrap();
    assert!(speed(&h200) > 1.2 * speed(&a100), "{h200} {a100}");
    // The same from the folder.
    let again = mix(&[&[folder.path().to_str().unwrap(), "--gpu", "h200"], &fixed[..]].concat());
    assert_eq!(again, h200);
    // At a low rate no request waits.
    let rare = mix(&[file, "--workload", "fixed", "--requests", "50", "--rate", "1"]);
    assert!(rare["queue_s"]["p99"].as_f64().unwrap() < 0.05 && rare["seconds"].as_f64().unwrap() > 20.0, "{rare}");
}

/// #9474: the reported capacity predicts the throughput of many requests.
#[test]
fn issue_9474_the_reported_capacity_is_reached() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    std::fs::write(&config, LLAMA_8B).unwrap();
    let args = [config.to_str().unwrap(), "--gpu", "a100", "--workload", "fixed", "--requests", "2000"];
    let mix = mix(&[&args[..], &["--max-sequences", "96"]].concat());
    let capacity = &mix["capacity"];
    assert_eq!((capacity["median_tokens"].as_u64(), capacity["p95_tokens"].as_u64()), (Some(192), Some(192)));
    assert_eq!((capacity["median_sequences"].as_u64(), capacity["p95_sequences"].as_u64()), (Some(96), Some(96)));
    let ratio = mix["tokens_per_s"].as_f64().unwrap() / capacity["tokens_per_s"].as_f64().unwrap();
    assert!((0.9..1.1).contains(&ratio), "{mix}");
    // A request rate beyond the capacity.
    let args = ["simulate", "--workload", "fixed", "--requests", "20", "--max-sequences", "1", "--rate"];
    assert!(run(&[&args[..], &["1000000"]].concat()).err.contains("warning: fixed: 64000000.0 tokens/s are asked for"));
    assert_eq!(run(&[&args[..], &["0.1"]].concat()).err, "");
}

#[test]
fn every_mix_is_in_the_table() {
    let table = run(&["simulate", "--requests", "20"]).ok();
    for part in ["modelled", "tokens/step", "fixed", "conversations", "long-prompts", "shared-prefix"] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn what_cannot_be_simulated_is_refused() {
    assert!(run(&["simulate", "--gpu", "abacus"]).error(2).contains("abacus"));
    assert!(run(&["simulate", "/nowhere/config.json"]).error(2).contains("nowhere"));
    assert!(run(&["simulate", "--rate", "0"]).error(2).contains("above 0"));
    let message = run(&["simulate", "--max-sequences", "600"]).error(2).to_owned();
    assert_eq!(message, "--step-tokens: expected at least --max-sequences, 600, found 512");
    assert!(run(&["simulate", "--context", "2000000"]).error(2).contains("--context: expected at most"));
    let model = Checkpoint::golden("llama-gqa");
    run(&["simulate", model.path(), "--requests", "3", "--workload", "fixed"]).ok();
}

/// Every kernel's time is at least the machine's floor, and at most the runner-up's.
#[test]
fn kernels_are_ranked_for_a_gpu() {
    let args = ["simulate", "kernels", "qwen3-0.6b", "llama-3-70b", "--rows", "1,129,8192", "--json"];
    for gpu in ["t4", "a100", "h100"] {
        let report = run(&[&args[..], &["--gpu", gpu]].concat()).json();
        assert_eq!((report["modelled"].as_bool(), report["gpu"].as_str()), (Some(true), Some(gpu)));
        assert_eq!(report["machine"]["memory_latency_s"], 700e-9);
        let models = report["models"].as_array().unwrap();
        let names: Vec<&str> = models.iter().map(|model| model["model"].as_str().unwrap()).collect();
        assert_eq!(names, ["qwen3-0.6b", "llama-3-70b"]);
        for model in models {
            assert_eq!(model["dtype"], if gpu == "t4" { "f16" } else { "bf16" });
            let [products, attention] = ["products", "attention"].map(|part| model[part].as_array().unwrap());
            assert_eq!((products.len(), attention.len()), (5 * 3, 16));
            for row in products.iter().chain(attention) {
                let number = |field: &str| row[field].as_f64().unwrap();
                let (seconds, floor) = (number("seconds"), number("floor_s"));
                assert!(0.0 < floor && floor <= seconds, "{gpu}: {row}");
                assert!((number("of_floor") * seconds / floor - 1.0).abs() < 1e-9, "{gpu}: {row}");
                let ratio = row["runner_up"]["ratio"].as_f64().unwrap();
                assert!(ratio >= 1.0 || row["step"] == "decode", "{gpu}: {row}");
            }
        }
        let [down, many] = [9, 11].map(|i| models[1]["products"][i].clone());
        assert_eq!((down["layer"].as_str(), down["rows"].as_u64()), (Some("down"), Some(1)));
        assert_eq!((down["n"].as_u64(), down["k"].as_u64()), (Some(8192), Some(28672)));
        assert_eq!([&down["bound"], &many["bound"]], ["memory", "products"]);
        assert_eq!(many["pair"].is_null(), gpu != "h100");
    }
}

#[test]
fn the_table_of_kernels_says_that_it_is_modelled() {
    let table = run(&["simulate", "kernels", "--gpu", "h200", "--rows", "16"]).ok();
    assert!(table.starts_with(concat!(
        "burrstone ",
        env!("CARGO_PKG_VERSION"),
        ": kernels on h200, modelled, not measured\n"
    )));
    for model in ["llama-3-8b", "llama-3-70b", "qwen3-0.6b", "qwen3-8b", "qwen3-32b"] {
        assert!(table.contains(&format!("\n{model} in bf16, modelled\n")), "{model}: {table}");
    }
    for part in [
        "4800 GB/s of memory",
        "gate_up [57344, 8192]",
        "decode of 128",
        "prefill of 8",
        " matmul__bf16_bf16_m64k16_dense_",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    for argument in ["qwen9", "/nowhere"] {
        assert!(run(&["simulate", "kernels", argument]).error(2).contains(argument));
    }
    assert!(run(&["simulate", "kernels", "--rows", "0"]).error(2).contains("--rows"));
    assert!(run(&["simulate", "kernels", "--gpu", "abacus"]).error(2).contains("abacus"));
}
