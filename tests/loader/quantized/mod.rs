//! Quantized checkpoints: every format's weights are those that were exported, and damage is named.

mod configuration;
mod export;
mod faults;
mod floats;
mod integers;

use burrstone::ops::{CodedWeight, Weight};
use burrstone::{DType, Error};
use serde_json::{Value, json};

use self::export::{DENSE, LINEAR, Linear, config};
use super::support::{Folder, Tensors};

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
