use std::io::Write as _;

use serde_json::{Value, json};

use crate::checkpoint::case;
use crate::support::{Checkpoint, run};

/// `number` of the bytes a token takes in a cache of each dtype, with 5 layers and 2 key heads of 64.
fn of_all(number: impl Fn(u64) -> u64) -> Value {
    let [f32, half, fp8, int8] = [5120, 2560, 1280, 1360].map(number);
    json!({"f32": f32, "bf16": half, "f16": half, "fp8_e4m3": fp8, "fp8_e5m2": fp8, "int8": int8})
}

#[test]
fn json_counts_every_byte_once() {
    let report = run(&["inspect", "--json", "--tensors"]).json();
    let weights = &report["weights"];
    assert_eq!(weights["parameters"], 3_967_744);
    assert_eq!(weights["bytes"], 2 * 3_967_744);
    let sum = |group: &Value, field: &str| -> u64 {
        group.as_object().unwrap().values().map(|amount| amount[field].as_u64().unwrap()).sum()
    };
    for field in ["tensors", "parameters", "bytes"] {
        assert_eq!(sum(&weights["by_owner"], field), weights[field].as_u64().unwrap());
        assert_eq!(sum(&weights["by_dtype"], field), weights[field].as_u64().unwrap());
    }
    assert_eq!(weights["by_owner"]["embedding"]["parameters"], 2048 * 256);
    assert_eq!(weights["by_owner"]["feed_forward"]["parameters"], 5 * 3 * 256 * 640);
    assert_eq!(weights["by_owner"]["head"], Value::Null);
    assert_eq!(report["kv_cache"]["bytes_per_token"], of_all(|bytes| bytes));
    assert_eq!(report["architecture"]["model_type"], "llama");
    assert_eq!(report["architecture"]["tied_embeddings"], true);
    assert_eq!(report["tensors"].as_array().unwrap().len(), 47);
    assert_eq!(report["memory"], Value::Null);
}

#[test]
fn a_budget_holds_weights_and_tokens() {
    let report = run(&["inspect", "--json", "--memory", "16MiB"]).json();
    let room = 16 * 1024 * 1024 - 2 * 3_967_744;
    assert_eq!(report["memory"]["tokens"], of_all(|bytes| room / bytes));
    let report = run(&["inspect", "--json", "--memory", "1MB"]).json();
    assert_eq!(report["memory"]["tokens"]["f32"], 0);
}

#[test]
fn the_text_output_has_the_same_numbers() {
    let text = run(&["inspect", "--tensors", "--memory", "16MiB"]).ok();
    for part in ["llama, 3.97 M parameters", "feed-forward", "2560", "full context", "model.norm.weight", "tokens"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn other_checkpoints() {
    let model = Checkpoint::golden("llama-sharded");
    let report = run(&["inspect", model.path(), "--json", "--tensors"]).json();
    let files: std::collections::BTreeSet<_> =
        report["tensors"].as_array().unwrap().iter().map(|t| t["file"].as_str().unwrap().to_owned()).collect();
    assert!(files.len() > 1, "{files:?}");
    assert!(run(&["inspect", "./no-such-folder/here"]).error(2).contains("no-such-folder"));
}

#[test]
fn quantized_checkpoints() {
    let model = Checkpoint::golden("quantized-mixed");
    let report = run(&["inspect", model.path(), "--json", "--tensors"]).json();
    let quantization = &report["quantization"];
    assert_eq!(quantization["method"], "compressed-tensors");
    let formats = json!({"int4, groups of 32": 8, "e4m3, a scale for each row": 2});
    assert_eq!(quantization["formats"], formats);
    let gate_and_down =
        json!([quantization["dense"]["model.layers.*.mlp.gate_proj"], quantization["dense"]["lm_head"]]);
    assert_eq!(gate_and_down, json!([2, 1]));
    // As many as the dense model has: packed weights count by what they stand for, scales not at all.
    let case = case("quantized-mixed");
    let size = |key: &str| case.config[key].as_u64().unwrap();
    let (hidden, inter, vocab) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let key_value = hidden / size("num_attention_heads") * size("num_key_value_heads");
    let layer = 2 * hidden + 2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * inter;
    let parameters = 2 * vocab * hidden + hidden + size("num_hidden_layers") * layer;
    assert_eq!(report["weights"]["parameters"], parameters);

    let text = run(&["inspect", model.path()]).ok();
    for part in ["compressed-tensors: int4, groups of 32 (8); e4m3", "mlp.down_proj (2)", "lm_head (1)"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!run(&["inspect"]).ok().contains("quantization"));
}

/// 256 GiB of weights in a sparse file.
#[test]
fn weights_are_not_read() {
    let model = Checkpoint::golden("llama-gqa");
    let size: u64 = 256 << 30;
    let header = json!({"big": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).to_string();
    let mut file = std::fs::File::create(model.file("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + size).unwrap();
    let report = run(&["inspect", model.path(), "--json"]).json();
    assert_eq!(report["weights"]["bytes"], size);
}
