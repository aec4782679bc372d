//! Quantized checkpoints: every format's weights are those that were exported.

use burrstone::model::Checkpoint;
use burrstone::ops::{ActivationBits, Code, CodedWeight, Weight};
use burrstone::{DType, Error};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::export::{DENSE, LINEAR, Linear, bytes, config, noise, stream, tensors};
use super::support::{Folder, Tensor, Tensors, assert_says};

/// The folder with this `quantization_config`.
pub fn folder(quantization: Value, tensors: &Tensors) -> Folder {
    let mut config = config();
    config["quantization_config"] = quantization;
    Folder::with(&config, tensors)
}

/// Opens and takes every tensor, as the decoder does.
pub fn load(folder: &Folder) -> Result<Vec<Weight>, Error> {
    let checkpoint = folder.open()?;
    for (name, shape) in &DENSE[1..] {
        checkpoint.tensor(name, shape)?;
    }
    let mut weights = vec![checkpoint.weight("model.embed_tokens", [16, 64])?];
    if !checkpoint.tied_embeddings() {
        weights.push(checkpoint.weight("lm_head", [16, 64])?);
    }
    for (name, shape) in LINEAR {
        weights.push(checkpoint.weight(name, shape)?);
    }
    checkpoint.finish()?;
    Ok(weights)
}

fn coded(weight: &Weight) -> &CodedWeight {
    let Weight::Coded(coded) = weight else { panic!("{} is dense", weight.name()) };
    coded.check().unwrap();
    coded
}

#[track_caller]
fn values(weight: &Weight) -> Vec<f32> {
    let dense = coded(weight).dense(DType::F32);
    dense.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Asserts that the linear layers have these values, and returns the last.
#[track_caller]
fn assert_loads(folder: &Folder, mut expected: impl FnMut(&str, [usize; 2]) -> Vec<f32>) -> CodedWeight {
    let weights = load(folder).unwrap();
    let linear = &weights[weights.len() - LINEAR.len()..];
    for ((name, shape), weight) in LINEAR.into_iter().zip(linear) {
        let (found, expected) = (values(weight), expected(name, shape));
        assert_eq!(found.len(), expected.len(), "{name}");
        if let Some(at) = (0..found.len()).find(|&i| found[i].to_bits() != expected[i].to_bits()) {
            panic!("{name}[{}, {}]: {}, expected {}", at / shape[1], at % shape[1], found[at], expected[at]);
        }
    }
    coded(linear.last().unwrap()).clone()
}

/// A layer's own seed.
fn seed(name: &str) -> u64 {
    name.bytes().fold(7, |seed, byte| seed * 31 + u64::from(byte))
}

fn layer(name: &str, shape: [usize; 2], bits: usize, group: i64) -> Linear {
    Linear::new(shape, bits, usize::try_from(group).unwrap_or(shape[1]), seed(name))
}

fn gptq(bits: usize, group: i64, more: Value) -> Value {
    let mut config =
        json!({"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": false, "sym": false});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

fn packed(bits: usize, group: i64, symmetric: bool) -> Value {
    let strategy = if group == -1 { "channel" } else { "group" };
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy,
                        "group_size": if group == -1 { Value::Null } else { group.into() }},
            "input_activations": null,
        }},
    })
}

#[test]
fn the_same_weights_are_the_same_in_every_format() {
    for group in [16, 32, 64, -1] {
        let layer = |name: &str, shape| layer(name, shape, 4, group);
        let dense = |name: &str, shape| layer(name, shape).dense();
        let awq = json!({"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": true, "version": "gemm"});
        let exports = [
            folder(awq, &tensors(|name, shape| layer(name, shape).awq())),
            folder(gptq(4, group, json!({})), &tensors(|name, shape| layer(name, shape).gptq(1))),
            folder(
                gptq(4, group, json!({"checkpoint_format": "gptq_v2"})),
                &tensors(|name, shape| layer(name, shape).gptq(0)),
            ),
            folder(packed(4, group, false), &tensors(|name, shape| layer(name, shape).packed(false))),
        ];
        for folder in exports {
            let down = assert_loads(&folder, dense);
            assert_eq!((down.code, down.order, down.activations), (Code::U4, None, ActivationBits::Full));
        }
    }
}

#[test]
fn every_width_of_gptq_and_packed_integers() {
    for bits in [2, 3, 4, 8] {
        for group in [32, -1] {
            let layer = |name: &str, shape| layer(name, shape, bits, group);
            let dense = |name: &str, shape| layer(name, shape).dense();
            let v1 = folder(gptq(bits, group, json!({})), &tensors(|name, shape| layer(name, shape).gptq(1)));
            assert_loads(&v1, dense);
            let asymmetric = &tensors(|name, shape| layer(name, shape).packed(false));
            assert_loads(&folder(packed(bits, group, false), asymmetric), dense);
            let symmetric = &tensors(|name, shape| layer(name, shape).symmetric().packed(true));
            let symmetric = folder(packed(bits, group, true), symmetric);
            assert_loads(&symmetric, |name, shape| layer(name, shape).symmetric().dense());
        }
    }
}

#[test]
fn inputs_in_activation_order_are_sorted_by_group() {
    for (bits, group) in [(4, 32), (4, 16), (3, 32), (8, 64)] {
        let layer = |name: &str, shape| layer(name, shape, bits, group).shuffled(seed(name) + 9);
        let dense = |name: &str, shape| layer(name, shape).dense();
        let act_order =
            folder(gptq(bits, group, json!({"desc_act": true})), &tensors(|name, shape| layer(name, shape).gptq(1)));
        let down = assert_loads(&act_order, dense);
        assert!(down.order.is_some_and(|order| !order.is_sorted()));
        assert_loads(
            &folder(packed(bits, group, false), &tensors(|name, shape| layer(name, shape).packed(false))),
            dense,
        );
    }
}

#[test]
fn a_group_that_is_cut_short_by_the_last_input() {
    // 96 inputs of the last layer are one group of 64 and one of 32.
    let layer = |name: &str, shape| layer(name, shape, 4, 64);
    let export = folder(gptq(4, 64, json!({})), &tensors(|name, shape| layer(name, shape).gptq(1)));
    assert_loads(&export, |name, shape| layer(name, shape).dense());
    let shuffled = |name: &str, shape| layer(name, shape).shuffled(3);
    let export = folder(gptq(4, 64, json!({"desc_act": true})), &tensors(|name, shape| shuffled(name, shape).gptq(1)));
    assert_loads(&export, |name, shape| shuffled(name, shape).dense());
}

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

#[test]
fn zero_points_of_the_first_version_wrap() {
    // Zero is stored as 15 and 15 as 14: without a carry into the next field.
    let mut layer = Linear::new([8, 32], 4, 32, 1);
    layer.zeros.copy_from_slice(&[0, 15, 0, 0, 15, 8, 0, 1]);
    let stored = &layer.gptq(1)[1].1.data;
    assert_eq!(stored[..], [0xef, 0xff, 0x7e, 0x0f]);
    let mut config = config();
    config["quantization_config"] = gptq(4, 32, json!({}));
    let parts = layer.gptq(1).into_iter().map(|(part, tensor)| (format!("x.{part}"), tensor));
    let checkpoint = Folder::with(&config, &parts.collect()).open().unwrap();
    assert!(values(&checkpoint.weight("x", [8, 32]).unwrap()) == layer.dense());
}

/// 32 codes of 3 bits are 96 bits without gaps: 0 to 7 four times are the bytes 88 c6 fa four times.
#[test]
fn three_bits_are_a_stream_of_96() {
    let codes = (0..32).map(|i| i % 8);
    let golden = [0x88, 0xc6, 0xfa].repeat(4);
    assert_eq!(stream(3, codes.clone()), golden);
    let mut config = config();
    config["quantization_config"] = packed(3, -1, true);
    let scale = Tensor { dtype: Dtype::F16, shape: vec![1, 1], data: vec![0, 0x3c] };
    let check = |words: usize, data: Vec<u8>| {
        let weight = Tensor { dtype: Dtype::I32, shape: vec![1, words], data };
        let parts = [("x.weight_packed".to_owned(), weight), ("x.weight_scale".to_owned(), scale.clone())];
        let checkpoint = Folder::with(&config, &parts.into()).open().unwrap();
        let expected: Vec<f32> = codes.clone().map(|code| f32::from(code) - 4.0).collect();
        assert_eq!(values(&checkpoint.weight("x", [1, 32]).unwrap()), expected);
    };
    check(3, golden);
    // compressed-tensors of a year before 0.20: ten to a word.
    let word = |start: u32| (0..10).filter(|i| start + i < 32).fold(0, |word, i| word | ((start + i) % 8) << (3 * i));
    check(4, [0, 10, 20, 30].into_iter().flat_map(|start| word(start).to_le_bytes()).collect());
}

/// Floats of eight bits by their definition.
fn e4m3(code: u8) -> f32 {
    let magnitude = match (code >> 3 & 15, code & 7) {
        (0, mantissa) => f32::from(mantissa) / 512.0,
        (exponent, mantissa) => (1.0 + f32::from(mantissa) / 8.0) * 2f32.powi(i32::from(exponent) - 7),
    };
    if code < 128 { magnitude } else { -magnitude }
}

/// A code that is a number.
fn float_code(seed: u64, i: usize) -> u8 {
    let code = noise(seed, i) as u8;
    if code & 0x7f == 0x7f { code ^ 1 } else { code }
}

fn f32s(shape: &[usize], seed: u64) -> Tensor {
    let value = |i| (noise(seed, i) % 1000 + 1) as f32 / 4096.0;
    Tensor::f32(shape, &(0..shape.iter().product()).map(value).collect::<Vec<_>>())
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A layer of e4m3 with scales of blocks, and its values.
fn float_layer(
    [n, k]: [usize; 2],
    [rows, columns]: [usize; 2],
    scales: Tensor,
    seed: u64,
) -> (Tensor, Tensor, Vec<f32>) {
    let weight = bytes(Dtype::F8_E4M3, &[n, k], |i| float_code(seed, i));
    let (scale, across) = (numbers(&scales), k.div_ceil(columns));
    let value = |i: usize| e4m3(weight.data[i]) * scale[i / k / rows * across + i % k / columns];
    let values = (0..n * k).map(value).collect();
    (weight, scales, values)
}

#[test]
fn fp8_with_scales_of_tensors_rows_and_blocks() {
    let one = |shape: &'static [usize]| (move |_: [usize; 2]| shape.to_vec(), |[n, k]: [usize; 2]| [n, k]);
    let fp8 = json!({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]});
    let blocks =
        json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [40, 48]});
    let fbgemm =
        json!({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]});
    let float = |strategy: &str, more: Value| {
        let mut weights = json!({"num_bits": 8, "type": "float", "symmetric": true, "strategy": strategy});
        weights.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8, "type": "float", "dynamic": true}});
        json!({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}})
    };
    let modelopt = json!({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]});
    type Shape = Box<dyn Fn([usize; 2]) -> Vec<usize>>;
    type Blocks = Box<dyn Fn([usize; 2]) -> [usize; 2]>;
    let rows = || -> (Shape, Blocks) { (Box::new(|[n, _]| vec![n, 1]), Box::new(|[_, k]| [1, k])) };
    let cases: Vec<(Value, &str, (Shape, Blocks))> = vec![
        (fp8.clone(), "weight_scale", (Box::new(one(&[]).0), Box::new(one(&[]).1))),
        (fp8.clone(), "weight_scale_inv", (Box::new(one(&[1]).0), Box::new(one(&[1]).1))),
        (fp8, "weight_scale", rows()),
        (blocks, "weight_scale_inv", (Box::new(|[n, k]| vec![n.div_ceil(40), k.div_ceil(48)]), Box::new(|_| [40, 48]))),
        (fbgemm, "weight_scale", rows()),
        (float("channel", json!({})), "weight_scale", rows()),
        (float("tensor", json!({})), "weight_scale", (Box::new(one(&[1]).0), Box::new(one(&[1]).1))),
        (
            float("block", json!({"block_structure": [32, 64]})),
            "weight_scale",
            (Box::new(|[n, k]| vec![n.div_ceil(32), k.div_ceil(64)]), Box::new(|_| [32, 64])),
        ),
        (
            float("group", json!({"group_size": 32})),
            "weight_scale",
            (Box::new(|[n, k]| vec![n, k.div_ceil(32)]), Box::new(|_| [1, 32])),
        ),
        (modelopt, "weight_scale", (Box::new(one(&[]).0), Box::new(one(&[]).1))),
    ];
    for (config, scale, (shape, blocks)) in cases {
        let layer = |name: &str, size| float_layer(size, blocks(size), f32s(&shape(size), seed(name)), seed(name) + 1);
        let export = tensors(|name, size| {
            let (weight, scales, _) = layer(name, size);
            // Static activations have a scale too, which is not needed.
            vec![("weight", weight), (scale, scales), ("input_scale", Tensor::f32(&[1], &[0.5]))]
        });
        let down = assert_loads(&folder(config.clone(), &export), |name, size| layer(name, size).2);
        assert_eq!((down.code, down.activations), (Code::E4m3, ActivationBits::Eight), "{config}");
    }
}

#[test]
fn exponents_as_scales() {
    let config = json!({"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"});
    let scales = |[n, k]: [usize; 2], seed| {
        let shape = [n.div_ceil(32), k.div_ceil(32)];
        let exponents = bytes(Dtype::F8_E8M0, &shape, |i| 110 + (noise(seed, i) % 20) as u8);
        let values: Vec<f32> = exponents.data.iter().map(|&code| 2f32.powi(i32::from(code) - 127)).collect();
        (exponents, Tensor::f32(&shape, &values))
    };
    let export = tensors(|name, size| {
        let (exponents, values) = scales(size, seed(name));
        vec![("weight", float_layer(size, [32, 32], values, seed(name)).0), ("weight_scale_inv", exponents)]
    });
    assert_loads(&folder(config, &export), |name, size| {
        float_layer(size, [32, 32], scales(size, seed(name)).1, seed(name)).2
    });
}

#[test]
fn eight_bit_integers_are_unsigned_with_a_zero_point() {
    let config = |symmetric: bool, format: &str| {
        let weights = json!({"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": "channel"});
        let group = json!({"targets": ["re:.*proj$"], "weights": weights, "input_activations": {"num_bits": 8}});
        json!({"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}})
    };
    for (symmetric, format) in [(true, "int-quantized"), (false, "int-quantized"), (true, "naive-quantized")] {
        let parts = |name: &str, [n, k]: [usize; 2]| {
            let weight = bytes(Dtype::I8, &[n, k], |i| noise(seed(name), i) as u8);
            let zeros = bytes(Dtype::I8, &[n, 1], |i| if symmetric { 0 } else { noise(seed(name) + 1, i) as u8 });
            (weight, f32s(&[n, 1], seed(name) + 2), zeros)
        };
        let export = tensors(|name, shape| {
            let (weight, scales, zeros) = parts(name, shape);
            let mut all = vec![("weight", weight), ("weight_scale", scales)];
            if !symmetric {
                all.push(("weight_zero_point", zeros));
            }
            all
        });
        let down = assert_loads(&folder(config(symmetric, format), &export), |name, [n, k]| {
            let (weight, scales, zeros) = parts(name, [n, k]);
            let signed = |byte: u8| f32::from(byte.cast_signed());
            let scales = numbers(&scales);
            (0..n * k).map(|i| (signed(weight.data[i]) - signed(zeros.data[i / k])) * scales[i / k]).collect()
        });
        assert_eq!((down.code, down.activations), (Code::U8, ActivationBits::Eight));
    }

    // bitsandbytes: the scale is a maximum, of 127.
    let config = json!({"quant_method": "bitsandbytes", "load_in_8bit": true, "llm_int8_skip_modules": ["lm_head"]});
    let parts = |name: &str, [n, k]: [usize; 2]| {
        (bytes(Dtype::I8, &[n, k], |i| noise(seed(name), i) as u8), f32s(&[n], seed(name) + 2))
    };
    let export = tensors(|name, shape| {
        let (weight, maxima) = parts(name, shape);
        vec![("weight", weight), ("SCB", maxima), ("weight_format", bytes(Dtype::U8, &[], |_| 0))]
    });
    assert_loads(&folder(config, &export), |name, [n, k]| {
        let (weight, maxima) = parts(name, [n, k]);
        let maxima = numbers(&maxima);
        (0..n * k).map(|i| f32::from(weight.data[i].cast_signed()) * (maxima[i / k] / 127.0)).collect()
    });
}

const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn e2m1(packed: &[u8], i: usize) -> f32 {
    let code = packed[i / 2] >> (i % 2 * 4) & 15;
    let magnitude = E2M1[usize::from(code & 7)];
    if code < 8 { magnitude } else { -magnitude }
}

#[test]
fn four_bit_floats() {
    let group = |format: &str| {
        let group = json!({"targets": ["Linear"], "format": format, "weights": {"num_bits": 4, "type": "float"}});
        json!({"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {"group_0": group}})
    };
    let packed = |name: &str, [n, k]: [usize; 2]| bytes(Dtype::U8, &[n, k / 2], |i| noise(seed(name), i) as u8);
    let exponents = |name: &str, [n, k]: [usize; 2]| {
        bytes(Dtype::U8, &[n, k / 32], |i| 110 + (noise(seed(name) + 1, i) % 20) as u8)
    };
    let export =
        tensors(|name, shape| vec![("weight_packed", packed(name, shape)), ("weight_scale", exponents(name, shape))]);
    let down = assert_loads(&folder(group("mxfp4-pack-quantized"), &export), |name, [n, k]| {
        let (packed, scales) = (packed(name, [n, k]).data, exponents(name, [n, k]).data);
        (0..n * k).map(|i| e2m1(&packed, i) * 2f32.powi(i32::from(scales[i / 32]) - 127)).collect()
    });
    assert_eq!(down.scales.columns, 32);

    // Scales of 16 are e4m3 and belong to a scale of the tensor: one exporter divides by it, the other multiplies.
    let scales = |name: &str, [n, k]: [usize; 2]| {
        bytes(Dtype::F8_E4M3, &[n, k / 16], |i| 0x20 + (noise(seed(name) + 1, i) & 0x3f) as u8)
    };
    let global = |name: &str| f32s(&[1], seed(name) + 3);
    let modelopt = json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head"]});
    for (config, weight, second) in [
        (group("nvfp4-pack-quantized"), "weight_packed", "weight_global_scale"),
        (modelopt, "weight", "weight_scale_2"),
    ] {
        let export = tensors(|name, shape| {
            vec![(weight, packed(name, shape)), ("weight_scale", scales(name, shape)), (second, global(name))]
        });
        assert_loads(&folder(config, &export), |name, [n, k]| {
            let (packed, scales) = (packed(name, [n, k]).data, scales(name, [n, k]).data);
            let global = numbers(&global(name))[0];
            let scale = |i: usize| {
                let scale = e4m3(scales[i / 16]);
                if weight == "weight" { scale * global } else { scale / global }
            };
            (0..n * k).map(|i| scale(i) * e2m1(&packed, i)).collect()
        });
    }
}

/// What bitsandbytes stores of a layer: a table, the high half of a byte first, scales of blocks that are codes too.
pub fn four_bits(
    name: &str,
    [n, k]: [usize; 2],
    block: usize,
    nested: bool,
) -> (Vec<(&'static str, Tensor)>, Vec<f32>) {
    let weight = bytes(Dtype::U8, &[n * k / 2, 1], |i| noise(seed(name), i) as u8);
    let (table, blocks) = (f32s(&[16], 5), (n * k).div_ceil(block));
    let codes = bytes(Dtype::U8, &[blocks], |i| noise(seed(name) + 1, i) as u8);
    let (map, maxima) = (f32s(&[256], 6), f32s(&[blocks.div_ceil(8)], seed(name) + 2));
    let plain = f32s(&[blocks], seed(name) + 3);
    let scales: Vec<f32> = match nested {
        true => {
            (0..blocks).map(|i| numbers(&map)[usize::from(codes.data[i])] * numbers(&maxima)[i / 8] + 0.25).collect()
        }
        false => numbers(&plain),
    };
    let mut state = json!({"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": [n, k]});
    let values = numbers(&table);
    let dense = (0..n * k)
        .map(|i| scales[i / block] * values[usize::from(weight.data[i / 2] >> (4 - i % 2 * 4) & 15)])
        .collect();
    let mut parts = vec![("weight", weight), ("weight.quant_map", table)];
    if nested {
        state["nested_blocksize"] = 8.into();
        state["nested_offset"] = 0.25.into();
        state["nested_dtype"] = "float32".into();
        parts.extend([("weight.absmax", codes), ("weight.nested_quant_map", map), ("weight.nested_absmax", maxima)]);
    } else {
        parts.push(("weight.absmax", plain));
    }
    let text = state.to_string().into_bytes();
    parts.push((
        "weight.quant_state.bitsandbytes__nf4",
        Tensor { dtype: Dtype::U8, shape: vec![text.len()], data: text },
    ));
    (parts, dense)
}

#[test]
fn bitsandbytes_of_four_bits() {
    let config = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
    // Blocks of 64 do not end with rows of 96.
    for (block, nested) in [(64, false), (64, true), (32, true), (128, false)] {
        let export = tensors(|name, shape| four_bits(name, shape, block, nested).0);
        let down =
            assert_loads(&folder(config.clone(), &export), |name, shape| four_bits(name, shape, block, nested).1);
        assert_eq!(down.scales.columns, 32);
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
