//! Quantized checkpoints that are damaged, or of a kind that is not read: one line says which tensor or field.

use burrstone::Error;
use burrstone::ops::Weight;
use proptest::collection::vec;
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::export::{Linear, bytes, config, tensors};
use super::floats::four_bits;
use super::{folder, load};
use crate::damage::{byte, damaged as with_changes};
use crate::support::{Folder, Tensor, Tensors, assert_says, safetensors};

const LAYER: &str = "model.layers.0.mlp.up_proj";

fn gptq() -> (Value, Tensors) {
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true});
    (config, tensors(|_, shape| Linear::new(shape, 4, 32, 1).shuffled(2).gptq(1)))
}

fn awq() -> (Value, Tensors) {
    let config = json!({"quant_method": "awq", "bits": 4, "group_size": 32});
    (config, tensors(|_, shape| Linear::new(shape, 4, 32, 1).awq()))
}

fn packed() -> (Value, Tensors) {
    let weights = json!({"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 32});
    let group = json!({"targets": ["Linear"], "weights": weights});
    let config =
        json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}});
    (config, tensors(|_, shape| Linear::new(shape, 4, 32, 1).packed(false)))
}

fn fp8() -> (Value, Tensors) {
    let config = json!({"quant_method": "fp8", "weight_block_size": [32, 32]});
    let scales = |[n, k]: [usize; 2]| {
        let shape = [n.div_ceil(32), k.div_ceil(32)];
        Tensor::f32(&shape, &vec![0.5; shape[0] * shape[1]])
    };
    let weight = |shape: [usize; 2]| bytes(Dtype::F8_E4M3, &shape, |_| 0x38);
    (config, tensors(|_, shape| vec![("weight", weight(shape)), ("weight_scale_inv", scales(shape))]))
}

fn nf4() -> (Value, Tensors) {
    let config = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
    (config, tensors(|name, shape| four_bits(name, shape, 64, true).0))
}

type Export = fn() -> (Value, Tensors);

/// Loads an export of which `change` damages a tensor of one layer.
fn damaged(export: Export, part: &str, change: impl FnOnce(&mut Tensor)) -> Result<Vec<Weight>, Error> {
    let (config, mut tensors) = export();
    change(tensors.get_mut(&format!("{LAYER}.{part}")).unwrap());
    load(&folder(config, &tensors))
}

#[test]
fn undamaged_exports_load() {
    for export in [gptq as Export, awq, packed, fp8, nf4] {
        let (config, tensors) = export();
        load(&folder(config, &tensors)).unwrap();
    }
}

#[test]
fn a_missing_tensor_is_named() {
    for (export, parts) in [
        (gptq as Export, &["qweight", "qzeros", "scales"][..]),
        (awq, &["qweight", "scales"]),
        (packed, &["weight_packed", "weight_scale"]),
        (fp8, &["weight", "weight_scale_inv"]),
        (
            nf4,
            &[
                "weight",
                "weight.absmax",
                "weight.quant_map",
                "weight.nested_absmax",
                "weight.quant_state.bitsandbytes__nf4",
            ],
        ),
    ] {
        for part in parts {
            let (config, mut tensors) = export();
            tensors.remove(&format!("{LAYER}.{part}")).unwrap();
            // Of scales by two names the usual one is named.
            let part = part.trim_end_matches("_inv");
            let says = ["model.safetensors", &format!("{LAYER}.{part}"), "no such tensor"];
            assert_says(load(&folder(config, &tensors)), &says);
        }
    }
}

#[test]
fn a_tensor_too_many_is_named() {
    for export in [gptq as Export, awq, packed, fp8] {
        for part in ["weight_scale_2", "svd_l", "pre_quant_scale", "rotation"] {
            let (config, mut tensors) = export();
            tensors.insert(format!("{LAYER}.{part}"), Tensor::ones(&[3]));
            assert_says(
                load(&folder(config, &tensors)),
                &["model.safetensors", &format!("{LAYER}.{part}"), "BF16 [3]"],
            );
        }
    }
    // A dense weight beside the packed one is used, so that the packed one is named.
    let (config, mut tensors) = packed();
    tensors.insert(format!("{LAYER}.weight"), Tensor::ones(&[96, 64]));
    assert_says(
        load(&folder(config, &tensors)),
        &["model.safetensors", &format!("{LAYER}.weight_packed"), "I32 [96, 8]"],
    );
}

#[test]
fn scales_that_are_no_numbers_or_zero_are_named_with_their_place() {
    for (bits, found) in [(0x7e00u16, "NaN"), (0x7c00, "inf"), (0xfc00, "-inf"), (0, "0")] {
        let put = |tensor: &mut Tensor, at: usize| tensor.data[2 * at..2 * at + 2].copy_from_slice(&bits.to_le_bytes());
        for export in [gptq as Export, awq] {
            let result = damaged(export, "scales", |tensor| put(tensor, 96 + 5));
            assert_says(
                result,
                &["model.safetensors", &format!("{LAYER}.scales[1, 5]"), "finite", &format!("found {found}")],
            );
        }
        let result = damaged(packed, "weight_scale", |tensor| put(tensor, 2 * 7 + 1));
        assert_says(result, &[&format!("{LAYER}.weight_scale[7, 1]"), "a finite scale that is not 0"]);
    }
    let result = damaged(fp8, "weight_scale_inv", |tensor| tensor.data[4 * 3..4 * 4].fill(0xff));
    assert_says(result, &[&format!("{LAYER}.weight_scale_inv[1, 1]"), "found NaN"]);
    let result = damaged(nf4, "weight.nested_absmax", |tensor| tensor.data[..4].fill(0));
    assert_says(result, &[&format!("{LAYER}.weight.nested_absmax[0]"), "found 0"]);
    let result = damaged(nf4, "weight.quant_map", |tensor| tensor.data[8..12].fill(0xff));
    assert_says(result, &[&format!("{LAYER}.weight.quant_map[2]"), "found NaN"]);
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let rows = |tensor: &mut Tensor| {
        let row = tensor.data.len() / tensor.shape[0];
        tensor.data.truncate(tensor.data.len() - row);
        tensor.shape[0] -= 1;
    };
    for (export, part, expected) in [
        (gptq as Export, "qweight", "shape [8, 96]"),
        (gptq, "qzeros", "shape [2, 12]"),
        (gptq, "scales", "shape [2, 96]"),
        (gptq, "g_idx", "shape [64]"),
        (awq, "qweight", "shape [64, 12]"),
        (awq, "qzeros", "shape [2, 12]"),
        (awq, "scales", "shape [2, 96]"),
        (packed, "weight_packed", "shape [96, 8]"),
        (packed, "weight_scale", "shape [96, 2]"),
        (packed, "weight_zero_point", "shape [12, 2]"),
        (fp8, "weight", "shape [96, 64]"),
        (fp8, "weight_scale_inv", "shape [3, 2]"),
        (nf4, "weight", "shape [3072, 1]"),
        (nf4, "weight.absmax", "shape [96]"),
    ] {
        assert_says(
            damaged(export, part, rows),
            &["model.safetensors", &format!("{LAYER}.{part}"), expected, "found ["],
        );
    }
    // Another group size than the tensors'.
    let (mut config, tensors) = gptq();
    config["group_size"] = 64.into();
    assert_says(load(&folder(config, &tensors)), &["q_proj.qzeros", "shape [1, 8]", "found [2, 8]"]);
    let result = damaged(packed, "weight_shape", |tensor| tensor.data[0] = 97);
    assert_says(result, &[&format!("{LAYER}.weight_shape"), "[96, 64]", "found [97, 64]"]);
}

#[test]
fn dtypes_that_cannot_be_are_named() {
    let as_dtype = |dtype| move |tensor: &mut Tensor| tensor.dtype = dtype;
    for (export, part, dtype, expected) in [
        (gptq as Export, "qweight", Dtype::F32, "dtype I32"),
        (gptq, "scales", Dtype::I16, "dtype F16 or BF16 or F32"),
        (awq, "qzeros", Dtype::U32, "dtype I32"),
        (packed, "weight_packed", Dtype::F32, "dtype I32"),
        (fp8, "weight", Dtype::F8_E5M2, "dtype F8_E4M3"),
        (fp8, "weight_scale_inv", Dtype::I32, "dtype F32"),
        (nf4, "weight", Dtype::I8, "dtype U8"),
    ] {
        assert_says(
            damaged(export, part, as_dtype(dtype)),
            &[&format!("{LAYER}.{part}"), expected, &format!("found {dtype}")],
        );
    }
}

#[test]
fn groups_of_inputs_must_be_groups() {
    let put = |at: usize, group: i32| {
        move |tensor: &mut Tensor| tensor.data[4 * at..][..4].copy_from_slice(&group.to_le_bytes())
    };
    for group in [2, -1, i32::MAX, i32::MIN] {
        let says = [&format!("{LAYER}.g_idx[3]"), "a group from 0 to 1", &format!("found {group}")];
        assert_says(damaged(gptq, "g_idx", put(3, group)), &says);
    }
    // 33 inputs in a group of 32.
    let all = |group: i32| move |tensor: &mut Tensor| tensor.data = group.to_le_bytes().repeat(64);
    assert_says(damaged(gptq, "g_idx", all(1)), &[&format!("{LAYER}.g_idx[32]"), "groups of 32 inputs", "more of 1"]);
}

#[test]
fn a_quant_state_that_is_not_one_is_named() {
    let replace = |text: &'static str| {
        move |tensor: &mut Tensor| {
            tensor.data = text.as_bytes().to_vec();
            tensor.shape = vec![text.len()];
        }
    };
    let part = "weight.quant_state.bitsandbytes__nf4";
    for (text, expected) in [
        ("{", "a JSON object"),
        ("[]", "a JSON object"),
        ("{}", "a shape of [96, 64]"),
        (r#"{"shape": [64, 96]}"#, "a shape of [96, 64]"),
        (r#"{"shape": [96, 64]}"#, "blocksize"),
        (r#"{"shape": [96, 64], "blocksize": 0}"#, "blocksize"),
        (r#"{"shape": [96, 64], "blocksize": 64, "nested_offset": 1}"#, "nested_blocksize and nested_offset"),
    ] {
        assert_says(damaged(nf4, part, replace(text)), &[&format!("{LAYER}.{part}"), expected]);
    }
}

#[test]
fn sizes_that_words_cannot_hold_are_named() {
    let mut tiny = config();
    tiny["quantization_config"] = json!({"quant_method": "gptq", "bits": 4, "group_size": 32});
    let open = |config: &Value, part: &str| {
        let tensor = bytes(Dtype::U8, &[1], |_| 0);
        Folder::with(config, &[(format!("x.{part}"), tensor)].into()).open().unwrap()
    };
    let result = open(&tiny, "qweight").weight("x", [32, 12]);
    assert_says(result, &["x.qweight", "fill 32-bit words", "found 32 outputs of 12 inputs"]);
    tiny["quantization_config"] = json!({"quant_method": "awq", "bits": 4, "group_size": 32});
    assert_says(open(&tiny, "qweight").weight("x", [12, 32]), &["x.qweight", "a multiple of 8 outputs"]);
    tiny["quantization_config"] = json!({"quant_method": "modelopt", "quant_algo": "NVFP4"});
    assert_says(open(&tiny, "weight").weight("x", [8, 24]), &["x.weight", "a multiple of 16 inputs"]);
}

/// What is not read is refused by its name, before any tensor is looked at.
#[test]
fn methods_and_formats_that_are_not_read_are_refused_by_name() {
    let group = |weights: Value| json!({"group_0": {"targets": ["Linear"], "weights": weights}});
    let int4 = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32});
    let compressed = |format: &str, weights: &Value| json!({"quant_method": "compressed-tensors", "format": format, "config_groups": group(weights.clone())});
    let with = |mut config: Value, key: &str, value: Value| {
        config[key] = value;
        config
    };
    let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 128});
    let transforms = json!({"config_groups": {"R1": {"type": "hadamard"}}});
    for (config, says) in [
        (json!({"quant_method": "quark"}), &["quant_method", "found quark"][..]),
        (json!({"quant_method": "hqq"}), &["quant_method", "found hqq"]),
        (json!({"quant_method": "gguf"}), &["quant_method", "found gguf"]),
        (json!({"quant_method": "torchao"}), &["quant_method", "found torchao"]),
        (json!({"quant_method": "mxfp4"}), &["quant_method", "mxfp4", "experts"]),
        (json!({"bits": 4}), &["a quantized checkpoint that does not name its method"]),
        (json!({"quant_method": 7}), &["quantization_config.quant_method", "a string", "found 7"]),
        (with(gptq.clone(), "bits", 5.into()), &["quantization_config.bits", "2, 3, 4 or 8", "found 5"]),
        (with(gptq.clone(), "bits", "four".into()), &["quantization_config.bits", "four"]),
        (with(gptq.clone(), "group_size", 0.into()), &["quantization_config.group_size", "found 0"]),
        (with(gptq.clone(), "group_size", (-2).into()), &["quantization_config.group_size", "found -2"]),
        (with(gptq.clone(), "checkpoint_format", "gptq_p".into()), &["checkpoint_format", "found gptq_p"]),
        (with(gptq.clone(), "checkpoint_format", "marlin".into()), &["checkpoint_format", "found marlin"]),
        (with(gptq.clone(), "is_marlin_format", true.into()), &["is_marlin_format"]),
        (
            with(gptq.clone(), "dynamic", json!({"+:(": {}})),
            &["quantization_config.dynamic.+:(", "a regular expression"],
        ),
        (with(gptq.clone(), "dynamic", json!({"+:x": {"bits": 6}})), &["dynamic.+:x.bits", "found 6"]),
        (with(gptq, "modules_in_block_to_quantize", json!([[1]])), &["modules_in_block_to_quantize", "[[1]]"]),
        (with(awq.clone(), "version", "gemv".into()), &["quantization_config.version", "gemm", "found gemv"]),
        (with(awq.clone(), "version", "GEMV_FAST".into()), &["version", "found gemv_fast"]),
        (with(awq.clone(), "backend", "llm-awq".into()), &["backend", "found llm-awq"]),
        (with(awq, "bits", 8.into()), &["quantization_config.bits", "found 8"]),
        (
            json!({"quant_method": "auto-round", "packing_format": "auto_round:auto_marlin"}),
            &["packing_format", "auto_marlin"],
        ),
        (json!({"quant_method": "auto-round", "data_type": "mx_fp"}), &["data_type", "found mx_fp"]),
        (json!({"quant_method": "auto-round", "bits": 5}), &["bits", "found 5"]),
        (compressed("marlin-24", &int4), &["config_groups.group_0.format", "found marlin-24"]),
        (compressed("mixed-precision", &int4), &["config_groups.group_0.format", "found mixed-precision"]),
        (compressed("sparse-24-bitmask", &int4), &["format", "found sparse-24-bitmask"]),
        (
            with(compressed("pack-quantized", &int4), "sparsity_config", json!({"format": "sparse-bitmask"})),
            &["sparsity_config.format", "found sparse-bitmask"],
        ),
        (with(compressed("pack-quantized", &int4), "transform_config", transforms), &["transform_config", "Hadamard"]),
        (
            compressed("pack-quantized", &with(int4.clone(), "num_bits", 6.into())),
            &["weights.num_bits", "6 bits of type int"],
        ),
        (
            compressed("pack-quantized", &with(int4.clone(), "strategy", "attn_head".into())),
            &["weights.strategy", "found attn_head"],
        ),
        (compressed("float-quantized", &int4), &["weights.num_bits", "4 bits of type int"]),
        (json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}), &["config_groups"]),
        (json!({"quant_method": "fp8", "fmt": "e5m2"}), &["fmt", "e4m3", "found e5m2"]),
        (json!({"quant_method": "fp8", "weight_block_size": [128]}), &["weight_block_size", "two sizes", "[128]"]),
        (json!({"quant_method": "fp8", "activation_scheme": "sometimes"}), &["activation_scheme", "sometimes"]),
        (json!({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}), &["quant_algo", "found W4A8_AWQ"]),
        (json!({"quant_method": "bitsandbytes"}), &["load_in_4bit"]),
        (
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "int4"}),
            &["bnb_4bit_quant_type"],
        ),
    ] {
        assert_says(folder(config, &Tensors::new()).open(), &[&["config.json"], says].concat());
    }
    let mut mlx = config();
    mlx["quantization"] = json!({"group_size": 64, "bits": 4, "mode": "affine"});
    assert_says(Folder::with(&mlx, &Tensors::new()).open(), &["config.json", "quantization.quant_method", "found mlx"]);
    let mut nested = config();
    nested["text_config"] = json!({"quantization_config": {"quant_method": "quark"}});
    assert_says(Folder::with(&nested, &Tensors::new()).open(), &["config.json", "text_config"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Configurations, headers and data with some bytes changed load, or say why not.
    #[test]
    fn damaged_exports_load_or_say_why(
        export in prop::sample::select(vec![gptq as Export, awq, packed, fp8, nf4]),
        of_configuration in vec((any::<prop::sample::Index>(), byte()), 0..2),
        of_weights in vec((any::<prop::sample::Index>(), byte()), 0..3),
        in_header in any::<bool>(),
    ) {
        let (quantization, tensors) = export();
        let folder = folder(quantization.clone(), &tensors);
        let text = with_changes(quantization.to_string().as_bytes(), &of_configuration, None);
        let config = config().to_string();
        let whole = [&config.as_bytes()[..config.len() - 1], b",\"quantization_config\":", &text, b"}"].concat();
        folder.write("config.json", &whole);
        let weights = safetensors(&tensors);
        let end = if in_header { 8 + u64::from_le_bytes(*weights.first_chunk().unwrap()) as usize } else { weights.len() };
        folder.write("model.safetensors", &[&with_changes(&weights[..end], &of_weights, None), &weights[end..]].concat());
        if let Err(error) = load(&folder) {
            let text = error.to_string();
            prop_assert!(error.is_input(), "{}", text);
            prop_assert!(!text.contains('\n') && text.contains("expected") && text.contains("found"), "{}", text);
        }
    }
}
