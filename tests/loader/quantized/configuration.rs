//! Where configurations are, which layers they name, and what is left over.

use burrstone::model::Checkpoint;
use burrstone::ops::{ActivationBits, Weight};
use safetensors::Dtype;
use serde_json::json;

use super::export::{DENSE, LINEAR, Linear, config, tensors};
use super::floats::{f32s, float_layer};
use super::{assert_loads, coded, folder, gptq, layer, load, packed, seed, values};
use crate::support::{Folder, Tensor, Tensors, assert_says};

#[test]
fn auto_round_packs_as_the_others_do() {
    let layer = |name: &str, shape| layer(name, shape, 4, 32);
    let dense = |name: &str, shape| layer(name, shape).dense();
    let auto =
        |packing: &str| json!({"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": packing});
    for (packing, less) in [("auto_round:auto_gptq", 1), ("auto_round", 0), ("auto_round:gptqmodel", 0)] {
        assert_loads(&folder(auto(packing), &tensors(|name, shape| layer(name, shape).gptq(less))), dense);
    }
    assert_loads(&folder(auto("auto_round:auto_awq"), &tensors(|name, shape| layer(name, shape).awq())), dense);

    // Layers of their own bits, by name and by pattern.
    let mut mixed = auto("auto_round");
    mixed["extra_config"] =
        json!({"model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 48}, ".*self_attn.*": {"bits": 2}});
    let layer = |name: &str, shape| match name {
        _ if name.ends_with("down_proj") => self::layer(name, shape, 8, 48),
        _ if name.contains("self_attn") => self::layer(name, shape, 2, 32),
        _ => self::layer(name, shape, 4, 32),
    };
    let export = folder(mixed, &tensors(|name, shape| layer(name, shape).gptq(0)));
    assert_loads(&export, |name, shape| layer(name, shape).dense());
}

#[test]
fn dynamic_rules_of_gptq_override_and_skip() {
    let dynamic = json!({
        r"-:.*\.mlp\.up_proj$": {},
        r"+:.*\.(gate|down)_proj": {"bits": 8, "group_size": -1},
        r"model\.layers\.0\.self_attn\.(?!o_proj)": {"bits": 3},
    });
    let layer = |name: &str, shape| match name.rsplit_once('.').unwrap().1 {
        "gate_proj" | "down_proj" => self::layer(name, shape, 8, -1),
        "o_proj" => self::layer(name, shape, 4, 32),
        _ => self::layer(name, shape, 3, 32),
    };
    let export = tensors(|name, shape| match name {
        _ if name.ends_with("up_proj") => vec![("weight", Tensor::ones(&shape))],
        _ => layer(name, shape).gptq(1),
    });
    let weights = load(&folder(gptq(4, 32, json!({"dynamic": dynamic})), &export)).unwrap();
    for ((name, shape), weight) in LINEAR.into_iter().zip(&weights[1..]) {
        match weight {
            Weight::Dense(_) => assert!(name.ends_with("up_proj"), "{name}"),
            Weight::Coded(_) => assert!(values(weight) == layer(name, shape).dense(), "{name}"),
        }
    }
}

/// Each group has its format, and names come before patterns and those before classes.
#[test]
fn groups_of_mixed_precision() {
    let int4 = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32});
    let int8 = json!({"num_bits": 8, "type": "int", "strategy": "channel"});
    let float = json!({"num_bits": 8, "type": "float", "strategy": "channel"});
    let config = json!({
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "ignore": ["re:.*o_proj"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "format": "pack-quantized", "weights": int4},
            "group_1": {"targets": ["re:.*mlp.*"], "format": "pack-quantized", "weights": int8},
            "group_2": {"targets": ["model.layers.0.mlp.down_proj"], "format": "naive-quantized", "weights": float},
        },
    });
    let layer = |name: &str, shape| match name.contains("mlp") {
        true => layer(name, shape, 8, -1).symmetric(),
        false => layer(name, shape, 4, 32).symmetric(),
    };
    let float = |name: &str, [n, k]: [usize; 2]| float_layer([n, k], [1, k], f32s(&[n, 1], seed(name)), seed(name) + 1);
    let export = tensors(|name, shape| match name.rsplit_once('.').unwrap().1 {
        "o_proj" => vec![("weight", Tensor::ones(&shape))],
        "down_proj" => vec![("weight", float(name, shape).0), ("weight_scale", float(name, shape).1)],
        _ => layer(name, shape).packed(true),
    });
    for ((name, shape), weight) in LINEAR.into_iter().zip(&load(&folder(config, &export)).unwrap()[1..]) {
        match name.rsplit_once('.').unwrap().1 {
            "o_proj" => assert!(matches!(weight, Weight::Dense(_))),
            "down_proj" => {
                assert!(values(weight) == float(name, shape).2);
                assert_eq!(coded(weight).activations, ActivationBits::Full);
            }
            _ => assert!(values(weight) == layer(name, shape).dense(), "{name}"),
        }
    }
}

/// The files that other exporters write the configuration to.
#[test]
fn the_configuration_is_found_where_it_is() {
    let layer = |name: &str, shape| layer(name, shape, 4, 32);
    let dense = |name: &str, shape| layer(name, shape).dense();
    let export = tensors(|name, shape| layer(name, shape).gptq(1));
    let gptq = json!({"bits": 4, "group_size": 32, "desc_act": false, "sym": false, "damp_percent": 0.01});
    let beside = Folder::with(&config(), &export);
    beside.json("quantize_config.json", &gptq);
    assert_loads(&beside, dense);

    let beside = Folder::with(&config(), &tensors(|name, shape| layer(name, shape).awq()));
    beside.json("quant_config.json", &json!({"w_bit": 4, "q_group_size": 32, "zero_point": true, "version": "GEMM"}));
    assert_loads(&beside, dense);

    let older = folder(json!(null), &tensors(|name, shape| layer(name, shape).packed(false)));
    let mut old = config();
    old["compression_config"] =
        json!({"quantization_config": packed(4, 32, false), "sparsity_config": {"format": "dense"}});
    older.json("config.json", &old);
    assert_loads(&older, dense);

    let float = |name: &str, size: [usize; 2]| float_layer(size, size, f32s(&[], seed(name)), seed(name) + 1);
    let beside = Folder::with(
        &config(),
        &tensors(|name, size| vec![("weight", float(name, size).0), ("weight_scale", float(name, size).1)]),
    );
    beside.json(
        "hf_quant_config.json",
        &json!({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head*"]}}),
    );
    assert_loads(&beside, |name, size| float(name, size).2);
}

#[test]
fn embedding_and_head_may_be_quantized() {
    let table = Linear::new([16, 64], 8, 64, 77).symmetric();
    let head = Linear::new([16, 64], 8, 64, 78).symmetric();
    let linear = |name: &str, shape| layer(name, shape, 8, -1).symmetric();
    let mut quantization = packed(8, -1, true);
    quantization["ignore"] = json!([]);
    quantization["config_groups"]["group_0"]["targets"] = json!(["Linear", "Embedding"]);
    let mut export = tensors(|name, shape| linear(name, shape).packed(true));
    export.remove("model.embed_tokens.weight");
    let put = |export: &mut Tensors, name: &str, layer: &Linear| {
        export.extend(layer.packed(true).into_iter().map(|(part, tensor)| (format!("{name}.{part}"), tensor)));
    };
    let tied = |export: &Tensors| folder(quantization.clone(), export).open().unwrap().tied_embeddings();

    // Under one name of the two, then under both, then different.
    let mut as_head = export.clone();
    put(&mut as_head, "lm_head", &table);
    put(&mut export, "model.embed_tokens", &table);
    for export in [&export, &as_head] {
        let weights = load(&folder(quantization.clone(), export)).unwrap();
        assert!(weights.len() == 1 + LINEAR.len() && values(&weights[0]) == table.dense());
    }
    put(&mut export, "lm_head", &table);
    assert!(tied(&export));
    load(&folder(quantization.clone(), &export)).unwrap();
    put(&mut export, "lm_head", &head);
    assert!(!tied(&export));
    let weights = load(&folder(quantization.clone(), &export)).unwrap();
    assert!(values(&weights[0]) == table.dense() && values(&weights[1]) == head.dense());

    // GPTQ quantizes the head alone; the embedding is dense.
    let head = Linear::new([16, 64], 4, 32, 79);
    let mut export = tensors(|name, shape| layer(name, shape, 4, 32).gptq(1));
    export.extend(head.gptq(1).into_iter().map(|(part, tensor)| (format!("lm_head.{part}"), tensor)));
    // 16 outputs of 4 bits fill two words.
    let weights = load(&folder(gptq(4, 32, json!({"lm_head": true})), &export)).unwrap();
    assert!(matches!(weights[0], Weight::Dense(_)) && values(&weights[1]) == head.dense());
    let refused = load(&folder(gptq(4, 32, json!({"lm_head": false})), &export));
    assert_says(refused, &["model.safetensors", "lm_head.weight", "no such tensor"]);
}

#[test]
fn tensors_that_change_nothing_may_be_left_over() {
    let layer = |name: &str, shape| layer(name, shape, 4, 32);
    let mut export = tensors(|name, shape| layer(name, shape).gptq(1));
    let zeros = |export: &mut Tensors, name: &str, value: u8| {
        export.insert(name.to_owned(), Tensor { dtype: Dtype::F16, shape: vec![64], data: vec![value; 128] });
    };
    zeros(&mut export, "model.layers.0.self_attn.q_proj.bias", 0);
    for scale in ["k_scale", "v_scale", "kv_scale", "k_proj.k_scale", "k_proj.output_scale"] {
        export.insert(format!("model.layers.0.self_attn.{scale}"), Tensor::f32(&[1], &[0.5]));
    }
    let folder_of = |export: &Tensors| folder(gptq(4, 32, json!({})), export);
    assert_loads(&folder_of(&export), |name, shape| layer(name, shape).dense());
    zeros(&mut export, "model.layers.0.self_attn.q_proj.bias", 1);
    assert_says(
        load(&folder_of(&export)),
        &["model.layers.0.self_attn.q_proj.bias", "no such tensor in a llama model"],
    );
}

#[test]
fn a_report_says_what_is_quantized_and_what_is_not() {
    let mut export = tensors(|name, shape| match name.ends_with("o_proj") {
        true => vec![("weight", Tensor::ones(&shape))],
        false => layer(name, shape, 3, 32).gptq(1),
    });
    export.insert("model.layers.0.self_attn.k_scale".to_owned(), Tensor::f32(&[1], &[0.5]));
    let checkpoint: Checkpoint = folder(gptq(3, 32, json!({})), &export).open().unwrap();
    let report = checkpoint.quantization().unwrap();
    assert_eq!((report.method.as_str(), report.kv_scales), ("gptq", 1));
    assert_eq!(report.formats, [("int3, groups of 32".to_owned(), 6)]);
    let dense = ["model.embed_tokens", "model.layers.*.self_attn.o_proj"].map(|name| (name.to_owned(), 1));
    assert_eq!(report.dense, dense);
    // Packed codes count as weights, scales do not.
    let all: u64 = checkpoint.tensors().map(|tensor| tensor.parameters).sum();
    let expected: usize = LINEAR.iter().map(|(_, [n, k])| n * k).sum();
    let dense: usize = DENSE.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(all, (expected + dense) as u64);
    assert!(Folder::whole().open().unwrap().quantization().is_none());
}
