//! Integers of 2 to 8 bits: the same values from every format.

use burrstone::ops::{ActivationBits, Code};
use safetensors::Dtype;
use serde_json::json;

use super::export::{Linear, bytes, config, noise, stream, tensors};
use super::floats::{f32s, numbers};
use super::{assert_loads, folder, gptq, layer, packed, seed, values};
use crate::support::{Folder, Tensor};

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

/// For a year, compressed-tensors packed ten values of 3 bits to a word, zero points too.
#[test]
fn three_bits_that_do_not_cross_words() {
    let words = |values: &[u8]| -> Vec<u8> {
        let word = |values: &[u8]| values.iter().rev().fold(0u32, |word, &value| word << 3 | u32::from(value));
        values.chunks(10).flat_map(|values| word(values).to_le_bytes()).collect()
    };
    let layer = |name: &str, shape| layer(name, shape, 3, -1);
    let export = tensors(|name, shape| {
        let layer = layer(name, shape);
        let [n, k] = shape;
        let mut parts = layer.packed(false);
        for (part, tensor) in &mut parts {
            (tensor.shape, tensor.data) = match *part {
                "weight_packed" => (vec![n, k.div_ceil(10)], layer.codes.chunks(k).flat_map(words).collect()),
                "weight_zero_point" => (vec![n.div_ceil(10), 1], words(&layer.zeros)),
                _ => continue,
            };
        }
        parts
    });
    assert_loads(&folder(packed(3, -1, false), &export), |name, shape| layer(name, shape).dense());
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
    let weight = Tensor { dtype: Dtype::I32, shape: vec![1, 3], data: golden };
    let parts = [("x.weight_packed".to_owned(), weight), ("x.weight_scale".to_owned(), scale)];
    let checkpoint = Folder::with(&config, &parts.into()).open().unwrap();
    let expected: Vec<f32> = codes.map(|code| f32::from(code) - 4.0).collect();
    assert_eq!(values(&checkpoint.weight("x", [1, 32]).unwrap()), expected);
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
