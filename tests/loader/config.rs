//! config.json → ArchSpec: defaults, both spellings, published configurations, and what is refused.

use std::path::Path;

use burrstone::model::{ArchSpec, RopeKind};
use burrstone::ops::Activation;
use burrstone::{DType, Error};
use serde_json::{Value, json};

use super::support::{assert_says, config};

fn read(config: &Value) -> Result<ArchSpec, Error> {
    ArchSpec::from_config(Path::new("there/config.json"), config.to_string().as_bytes(), None)
}

/// The tiny Llama with some fields changed.
fn changed(changes: Value) -> Value {
    let mut config = config();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[track_caller]
fn refused(changes: Value, parts: &[&str]) {
    let result = read(&changed(changes));
    assert_says(result, &[&["there/config.json"], parts].concat());
}

#[test]
fn absent_fields_take_the_defaults_of_their_class() {
    let read = |model_type: &str| read(&json!({"model_type": model_type}));
    let llama = read("llama").unwrap();
    assert_eq!((llama.vocab_size, llama.hidden_size, llama.intermediate_size), (32000, 4096, 11008));
    assert_eq!((llama.layers, llama.heads, llama.kv_heads, llama.head_dim), (32, 32, 32, 128));
    assert_eq!((llama.context, llama.norm_eps, llama.activation), (2048, 1e-6, Activation::Silu));
    assert_eq!((llama.rope.theta, &llama.rope.kind, llama.rope.rotary_dim), (10000.0, &RopeKind::Default, 128));
    assert_eq!((llama.qkv_bias, llama.output_bias, llama.mlp_bias, llama.qk_norm), (false, false, false, false));
    assert_eq!((llama.tied_embeddings, llama.dtype), (false, DType::F32));
    assert_eq!(llama.windows, vec![None; 32]);
    assert_eq!(llama.attention_scale, 128f32.powf(-0.5));

    let mistral = read("mistral").unwrap();
    assert_eq!((mistral.intermediate_size, mistral.kv_heads, mistral.context), (14336, 8, 131072));
    assert_eq!(mistral.windows, vec![Some(4096); 32]);

    let qwen2 = read("qwen2").unwrap();
    assert_eq!((qwen2.vocab_size, qwen2.intermediate_size, qwen2.context), (151936, 22016, 32768));
    assert_eq!((qwen2.qkv_bias, qwen2.output_bias, qwen2.mlp_bias, qwen2.qk_norm), (true, false, false, false));
    assert_eq!(qwen2.windows, vec![None; 32]);

    let qwen3 = read("qwen3").unwrap();
    assert_eq!((qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias), (128, true, false));
}

#[test]
fn both_spellings_say_the_same() {
    let scaling = json!({"rope_type": "linear", "factor": 2.0});
    let older = read(&changed(json!({"rope_theta": 5e5, "rope_scaling": scaling, "torch_dtype": "float16"}))).unwrap();
    let newer = read(&changed(json!({
        "rope_theta": null, "rope_scaling": null, "torch_dtype": null, "dtype": "float16",
        "rope_parameters": {"rope_theta": 5e5, "type": "linear", "factor": 2},
    })))
    .unwrap();
    assert_eq!(older, newer);
    assert_eq!((older.rope.theta, older.dtype, older.context), (5e5, DType::F16, 64));
    // Where the object names the base too, it is the object's that counts.
    let both = read(&changed(json!({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 5e5}}))).unwrap();
    assert_eq!(both.rope.theta, 5e5);
    refused(
        json!({"rope_scaling": scaling, "rope_parameters": {"rope_type": "default"}}),
        &["rope_scaling", "rope_parameters", "both"],
    );
}

#[test]
fn the_model_is_found_by_type_or_by_architecture() {
    assert_eq!(read(&changed(json!({"model_type": null}))).unwrap().model_type, "llama");
    assert_eq!(read(&changed(json!({"architectures": null}))).unwrap().model_type, "llama");
    refused(json!({"model_type": "gpt2"}), &["model_type", "llama, mistral, qwen2, qwen3", "gpt2"]);
    refused(json!({"model_type": 3}), &["model_type", "a string", "3"]);
    refused(json!({"model_type": null, "architectures": []}), &["model_type", "no such field"]);
    let scores = json!(["LlamaForSequenceClassification"]);
    refused(json!({"architectures": scores}), &["architectures", "LlamaForCausalLM", "LlamaForSequenceClassification"]);
}

#[test]
fn heads_may_have_any_size_that_rotates() {
    let spec = read(&changed(json!({"head_dim": 6, "num_attention_heads": 3, "num_key_value_heads": null}))).unwrap();
    assert_eq!((spec.heads, spec.kv_heads, spec.head_dim, spec.rope.rotary_dim), (3, 3, 6, 6));
    assert_eq!(read(&changed(json!({"head_dim": null}))).unwrap().head_dim, 2);
    refused(json!({"head_dim": 5}), &["head_dim", "even", "5"]);
    refused(json!({"num_key_value_heads": 3}), &["num_key_value_heads", "divisor", "(2)", "found 3"]);
    refused(json!({"num_attention_heads": 8, "num_key_value_heads": 8}), &["num_attention_heads", "8 heads"]);
    refused(json!({"partial_rotary_factor": 0.5}), &["partial_rotary_factor", "1", "0.5"]);
    assert!(read(&changed(json!({"partial_rotary_factor": 1.0}))).is_ok());
}

#[test]
fn absurd_numbers_are_refused() {
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"] {
        for value in
            [json!(0), json!(-1), json!(1e12 as u64), json!(1.5), json!("8"), json!(null), json!([8]), json!(u64::MAX)]
        {
            refused(json!({key: value}), &[key, "a whole number from 1", &value.to_string()]);
        }
    }
    for value in [json!(0), json!(-8), json!(1u64 << 40)] {
        refused(json!({"num_key_value_heads": value}), &["num_key_value_heads"]);
        refused(json!({"head_dim": value}), &["head_dim"]);
        refused(json!({"max_position_embeddings": value}), &["max_position_embeddings"]);
        refused(json!({"sliding_window": value}), &["sliding_window"]);
    }
    refused(json!({"rms_norm_eps": -1e-5}), &["rms_norm_eps", "-0.00001"]);
    refused(json!({"rms_norm_eps": "small"}), &["rms_norm_eps", "small"]);
    refused(json!({"rope_theta": 0}), &["rope_theta", "above 1", "0"]);
    refused(json!({"tie_word_embeddings": 1}), &["tie_word_embeddings", "true or false", "1"]);
    refused(json!({"torch_dtype": "float8_e4m3fn"}), &["torch_dtype", "bfloat16", "float8_e4m3fn"]);
    refused(json!({"hidden_act": "relu"}), &["hidden_act", "silu", "relu"]);
}

#[test]
fn what_is_not_an_object_is_refused() {
    for text in ["", "[]", "3", "{", "{\"a\": NaN}", "null", "\u{0}"] {
        let result = ArchSpec::from_config(Path::new("there/config.json"), text.as_bytes(), None);
        assert_says(result, &["there/config.json", "JSON"]);
    }
}

#[test]
fn unknown_fields_may_not_say_anything() {
    for (key, value) in [
        ("attn_logit_softcapping", json!(50.0)),
        ("logit_scale", json!(0.0625)),
        ("residual_multiplier", json!(0.22)),
        ("use_qk_norm", json!(true)),
        ("rope_interleaved", json!(true)),
        ("no_rope_layers", json!([1, 1, 0])),
        ("position_embedding_type", json!("alibi")),
        ("num_local_experts", json!(8)),
        ("per_layer_config", json!({"0": {"head_dim": 4}})),
        ("is_encoder_decoder", json!(true)),
        ("transformers_weights", json!("other.safetensors")),
        ("experts_per_token", json!(2)),
    ] {
        refused(json!({key: value}), &[key, "not known", &value.to_string()]);
    }
    for inert in [json!(null), json!(false), json!(0), json!(0.0), json!(""), json!([]), json!({})] {
        read(&changed(json!({"a_field_of_tomorrow": inert}))).unwrap();
    }
    refused(json!({"two\nlines\u{1b}": 1}), &[r"two\nlines\u{1b}", "found 1"]);
    refused(json!({"is_causal": false}), &["is_causal", "true", "found false"]);
    read(&changed(json!({"is_causal": true}))).unwrap();
    let long = "x".repeat(1000);
    let Err(error) = read(&changed(json!({"novelty": long}))) else { panic!("an unknown field was read") };
    assert!(error.to_string().len() < 400, "{error}");
}

#[test]
fn biases_follow_the_family() {
    let spec = read(&changed(json!({"attention_bias": true, "mlp_bias": true}))).unwrap();
    assert_eq!((spec.qkv_bias, spec.output_bias, spec.mlp_bias), (true, true, true));
    let qwen3 = json!({"model_type": "qwen3", "architectures": null, "attention_bias": true});
    let spec = read(&changed(qwen3)).unwrap();
    assert_eq!((spec.qkv_bias, spec.output_bias, spec.mlp_bias), (true, true, false));
    let of = |model_type: &str, key: &str, value: bool| json!({"model_type": model_type, "architectures": null, "sliding_window": null, key: value});
    refused(of("mistral", "attention_bias", true), &["attention_bias", "false"]);
    refused(of("qwen2", "attention_bias", false), &["attention_bias", "true"]);
    refused(of("qwen2", "mlp_bias", true), &["mlp_bias", "false"]);
    assert!(read(&changed(of("qwen2", "attention_bias", true))).is_ok());
}

#[test]
fn activations_have_many_names() {
    for (name, activation) in [
        ("swish", Activation::Silu),
        ("gelu", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
    ] {
        assert_eq!(read(&changed(json!({"hidden_act": name}))).unwrap().activation, activation);
    }
    refused(json!({"activation": "geglu"}), &["activation", "silu", "geglu"]);
}

#[test]
fn windows_are_where_transformers_puts_them() {
    let of = |model_type: &str, changes: Value| {
        let mut config = changed(json!({
            "model_type": model_type, "architectures": null, "num_hidden_layers": 4, "max_position_embeddings": 64,
        }));
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    let windows = |model_type: &str, changes: Value| read(&of(model_type, changes)).map(|spec| spec.windows);
    let kinds = |text: &str| -> Value {
        let name = |c| if c == 's' { "sliding_attention" } else { "full_attention" };
        text.chars().map(name).collect()
    };
    let (w, n) = (Some(16), None);

    assert_eq!(windows("mistral", json!({"sliding_window": 16})).unwrap(), [w; 4]);
    assert_eq!(windows("mistral", json!({"sliding_window": null})).unwrap(), [n; 4]);
    assert_eq!(windows("mistral", json!({"sliding_window": 16, "layer_types": kinds("ssss")})).unwrap(), [w; 4]);
    let mixed = windows("mistral", json!({"sliding_window": 16, "layer_types": kinds("sfsf")}));
    assert_says(mixed, &["layer_types", "sliding_attention in every layer", "full_attention in layer 1"]);

    for family in ["qwen2", "qwen3"] {
        assert_eq!(windows(family, json!({"sliding_window": 16})).unwrap(), [n; 4]);
        let on = json!({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": 3});
        assert_eq!(windows(family, on).unwrap(), [n, n, n, w]);
        let on = json!({"use_sliding_window": true, "sliding_window": 16});
        assert_eq!(windows(family, on).unwrap(), [n; 4], "28 layers without windows come first");
        let on = json!({"use_sliding_window": true, "sliding_window": 16, "layer_types": kinds("sfsf")});
        assert_eq!(windows(family, on).unwrap(), [w, n, w, n]);
        assert_eq!(windows(family, json!({"layer_types": kinds("ffff")})).unwrap(), [n; 4]);
        let off = windows(family, json!({"sliding_window": 16, "layer_types": kinds("fffs")}));
        assert_says(off, &["use_sliding_window", "layer_types", "found false"]);
    }

    assert_eq!(windows("llama", json!({"layer_types": kinds("ffff"), "sliding_window": 64})).unwrap(), [n; 4]);
    assert_says(windows("llama", json!({"sliding_window": 16})), &["sliding_window", "null", "16"]);
    assert_says(windows("llama", json!({"layer_types": kinds("fffs")})), &["layer_types", "layer 3"]);
    assert_says(windows("llama", json!({"layer_types": kinds("fff")})), &["layer_types", "4 entries", "found 3"]);
    assert_says(
        windows("llama", json!({"layer_types": ["mamba", "mamba", "mamba", "mamba"]})),
        &["layer_types", "mamba"],
    );
}

#[test]
fn rope_kinds_are_read_and_checked() {
    let rope = |scaling: Value| read(&changed(json!({"rope_scaling": scaling, "head_dim": 8}))).unwrap();
    assert_eq!(
        rope(json!({"type": "dynamic", "factor": 4.0})).rope.kind,
        RopeKind::Dynamic { factor: 4.0, context: 32 }
    );
    assert_eq!(rope(json!({"type": "dynamic", "factor": 4.0})).context, 128);
    assert_eq!(rope(json!({"type": "linear", "factor": 1.5})).context, 48);
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    assert_eq!(rope(llama3.clone()).context, 32);
    let yarn = rope(json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "finetuned": true}));
    assert_eq!(yarn.context, 64);
    let RopeKind::Yarn {
        attention_factor, original_context: 16, beta_fast: 32.0, beta_slow: 1.0, truncate: true, ..
    } = yarn.rope.kind
    else {
        panic!("{:?}", yarn.rope)
    };
    assert_eq!(attention_factor, 0.1 * 4f64.ln() + 1.0);
    // The extended context is never below the stated one.
    let yarn = json!({"type": "yarn", "factor": 1.5, "original_max_position_embeddings": 16});
    assert_eq!(rope(yarn).context, 32);

    let refused = |scaling: Value, parts: &[&str]| refused(json!({"rope_scaling": scaling, "head_dim": 8}), parts);
    refused(json!({"rope_type": "longrope", "factor": 2.0}), &["rope_scaling.rope_type", "yarn", "longrope"]);
    refused(json!({"type": "su", "factor": 2.0}), &["rope_scaling.type", "default, linear", "su"]);
    refused(json!({"type": "mrope", "rope_type": "default"}), &["rope_scaling.type", "default", "mrope"]);
    refused(json!({"rope_type": 7}), &["rope_scaling.rope_type", "a string", "7"]);
    refused(json!("linear"), &["rope_scaling", "an object", "linear"]);
    refused(json!({"type": "linear"}), &["rope_scaling.factor", "no such field"]);
    refused(json!({"type": "linear", "factor": 0.5}), &["rope_scaling.factor", "from 1", "0.5"]);
    refused(json!({"type": "linear", "factor": "2"}), &["rope_scaling.factor", "a finite number", "\"2\""]);
    refused(json!({"type": "linear", "factor": 2.0, "mrope_section": [1, 2, 1]}), &["rope_scaling.mrope_section"]);
    refused(json!({"rope_type": "default", "factor": 8.0}), &["rope_scaling.factor", "1", "8"]);
    refused(json!({"rope_type": "llama3", "factor": 8.0}), &["rope_scaling.low_freq_factor", "no such field"]);
    let mut swapped = llama3;
    swapped["low_freq_factor"] = json!(4.0);
    refused(swapped, &["rope_scaling.high_freq_factor", "more than low_freq_factor (4)", "found 4"]);
    let yarn = |key: &str, value: Value| json!({"rope_type": "yarn", "factor": 2.0, key: value});
    refused(yarn("beta_fast", json!(0.5)), &["rope_scaling.beta_fast", "beta_slow"]);
    refused(yarn("attention_factor", json!(-1.0)), &["rope_scaling.attention_factor", "above 0"]);
    refused(yarn("original_max_position_embeddings", json!(0)), &["rope_scaling.original_max_position_embeddings"]);
    refused(yarn("long_factor", json!([1.0])), &["rope_scaling.long_factor", "not known"]);
}

/// Configurations as their authors published them, odd fields included.
#[test]
fn published_configurations_load() {
    let cases: Value = serde_json::from_str(include_str!("published.json")).unwrap();
    let cases = cases.as_object().unwrap();
    assert!(cases.len() >= 20);
    for (name, config) in cases {
        let spec = read(config).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(spec.model_type, config["model_type"], "{name}");
    }
    let context = |name: &str| read(&cases[name]).unwrap().context;
    assert_eq!(context("meta-llama/Llama-3.2-1B"), 131072);
    assert_eq!(context("NousResearch/Yarn-Llama-2-7b-64k"), 65536);
    assert_eq!(context("Qwen/Qwen2.5-7B-Instruct with YaRN"), 131072);
    assert_eq!(read(&cases["mistralai/Mistral-7B-v0.1"]).unwrap().windows, vec![Some(4096); 32]);
    assert_eq!(read(&cases["mistralai/Mistral-Nemo-Instruct-2407"]).unwrap().head_dim, 128);
    assert_eq!(read(&cases["Qwen/Qwen1.5-0.5B"]).unwrap().windows, vec![None; 24]);
}
