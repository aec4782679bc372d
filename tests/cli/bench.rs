use crate::support::{Checkpoint, run};

#[test]
fn latency_reports_figures_beside_floors() {
    let args = ["bench", "latency", "--prefill", "8,24", "--decode", "4", "--depth", "8", "--repeat", "1"];
    let report = run(&[&args[..], &["--json"]].concat()).json();
    let figures = report["figures"].as_array().unwrap();
    let what: Vec<_> = figures
        .iter()
        .map(|f| (f["phase"].as_str().unwrap(), f["tokens"].as_u64().unwrap(), f["unit"].as_str().unwrap()))
        .collect();
    assert_eq!(what, [("prefill", 8, "GFLOP/s"), ("prefill", 24, "GFLOP/s"), ("decode", 4, "GB/s")]);
    for figure in figures {
        let number = |name: &str| figure[name].as_f64().unwrap();
        for name in ["seconds", "tokens_per_s", "rate", "machine", "floor_s", "of_floor"] {
            assert!(number(name) > 0.0, "{name}: {figure}");
        }
        assert!((number("rate") / number("machine") / number("of_floor") - 1.0).abs() < 1e-9);
        assert!((number("floor_s") / number("seconds") / number("of_floor") - 1.0).abs() < 1e-9);
    }
    assert_eq!(report["dtype"], "bf16");
    assert!(report["load_s"].as_f64().unwrap() > 0.0);
    if cfg!(target_os = "linux") {
        assert!(report["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    }

    let table = run(&args).ok();
    for part in ["prefill 8", "decode 4 at 8", "tokens/s", "GB/s", "of floor", "peak memory"] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn lengths_beyond_the_context_are_refused() {
    let message = run(&["bench", "latency", "--prefill", "1025"]).error(2).to_owned();
    assert_eq!(message, "--prefill: expected at most 1024 tokens, the context, found 1025 tokens");
    run(&["bench", "latency", "--depth", "1000", "--decode", "100"]).error(2);
    let model = Checkpoint::golden("llama-gqa");
    run(&["bench", "latency", "--model", model.path(), "--prefill", "1000000"]).error(2);
}

#[test]
fn throughput_reports_batches_and_mixes() {
    let args = ["bench", "throughput", "--batch", "1,3", "--decode", "6", "--repeat", "1", "--requests", "8"];
    let report = run(&[&args[..], &["--json"]].concat()).json();
    let batches = report["batches"].as_array().unwrap();
    assert_eq!(batches.iter().map(|b| b["sequences"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
    assert!(batches.iter().all(|batch| batch["tokens_per_s"].as_f64().unwrap() > 0.0));
    let mixes = report["mixes"].as_array().unwrap();
    let names: Vec<_> = mixes.iter().map(|mix| mix["workload"].as_str().unwrap()).collect();
    assert_eq!(names, ["fixed", "conversations", "long-prompts", "shared-prefix"]);
    for mix in mixes {
        assert_eq!(mix["requests"], 8);
        assert!(mix["seconds"].as_f64().unwrap() > 0.0 && mix["tokens"].as_u64().unwrap() > 0);
        // The second request of each group finds the shared prefix in the cache: five blocks of 32.
        let cached = mix["cached_tokens"].as_u64().unwrap();
        assert_eq!(cached, if mix["workload"] == "shared-prefix" { 4 * 160 } else { 0 }, "{mix}");
    }
    let ran = run(&[&args[..], &["--workload", "fixed", "--kv-tokens", "4096", "--host-kv-memory", "1MiB"]].concat());
    // Memory by purpose, with the reason. #6623: also the bytes of a token.
    let (why, room) = ("keys and values: 2 x ", "4  at a time of 1024 tokens, the whole context; 8 of 512");
    for part in
        ["weights", "activations", "for 512 tokens of a step", "4096 tokens: as asked for", "host's KV", why, room]
    {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    let table = ran.ok();
    for part in ["sequences", "of before", "tokens/s", "fixed"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(!table.contains("shared-prefix"));
}
