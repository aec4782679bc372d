//! Floats of four and eight bits, and tables.

use burrstone::ops::{ActivationBits, Code};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::export::{bytes, noise, tensors};
use super::{assert_loads, folder, seed};
use crate::support::Tensor;

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

pub fn f32s(shape: &[usize], seed: u64) -> Tensor {
    let value = |i| (noise(seed, i) % 1000 + 1) as f32 / 4096.0;
    Tensor::f32(shape, &(0..shape.iter().product()).map(value).collect::<Vec<_>>())
}

pub fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A layer of e4m3 with scales of blocks, and its values.
pub fn float_layer(
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
