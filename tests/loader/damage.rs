//! Damaged files, at random: each opens, or is refused in one clear line.

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::support::{Folder, config, safetensors, tensors};

/// A file with some bytes changed and perhaps its end cut off.
pub fn damaged(file: &[u8], changes: &[(prop::sample::Index, u8)], keep: Option<prop::sample::Index>) -> Vec<u8> {
    let mut file = file.to_vec();
    for (place, byte) in changes {
        let place = place.index(file.len());
        file[place] = *byte;
    }
    file.truncate(keep.map_or(file.len(), |keep| keep.index(file.len() + 1)));
    file
}

/// Bytes that JSON gives a meaning, and any.
pub fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![prop::sample::select(b"{}[]\":,-+.0123456789eE \\utfn".to_vec()), any::<u8>()]
}

fn loads_or_says_why(folder: &Folder) -> Result<(), TestCaseError> {
    // A weight of the tiny model may well be damaged to infinity.
    if let Err(error) = folder.load().and_then(|checkpoint| checkpoint.check_finite()) {
        let text = error.to_string();
        prop_assert!(error.is_input(), "{}", text);
        prop_assert!(!text.contains('\n') && text.contains("expected") && text.contains("found"), "{}", text);
    }
    Ok(())
}

static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(|| safetensors(&tensors()));

/// Values that a careless or hostile writer may put anywhere.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..9u32).prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        vec(0..5u32, 0..4).prop_map(Value::from),
        Just(json!({"rope_type": "dynamic", "factor": 1e300})),
        Just(json!({"rope_type": "yarn", "factor": 2.0, "beta_fast": 1e-300, "beta_slow": 1e-301})),
    ]
}

const FIELDS: [&str; 26] = [
    "architectures",
    "attention_bias",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "use_sliding_window",
    "vocab_size",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn weights_with_damaged_headers(
        length in prop::option::weighted(0.2, any::<u64>()),
        changes in vec((any::<prop::sample::Index>(), byte()), 0..4),
        keep in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        // Of the whole file most is header.
        let mut file = damaged(&WEIGHTS, &changes, keep);
        if let (Some(length), Some(start)) = (length, file.get_mut(..8)) {
            start.copy_from_slice(&length.to_le_bytes());
        }
        let folder = Folder::whole();
        folder.write("model.safetensors", &file);
        loads_or_says_why(&folder)?;
    }

    #[test]
    fn configurations_with_damaged_bytes(
        changes in vec((any::<prop::sample::Index>(), byte()), 1..4),
        keep in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let folder = Folder::whole();
        folder.write("config.json", &damaged(config().to_string().as_bytes(), &changes, keep));
        loads_or_says_why(&folder)?;
    }

    #[test]
    fn configurations_with_strange_values(
        family in prop::sample::select(vec!["llama", "mistral", "qwen2", "qwen3"]),
        changes in vec((prop::sample::select(FIELDS.to_vec()), value()), 1..4),
    ) {
        let mut config = config();
        config["model_type"] = family.into();
        config["architectures"] = json!(null);
        for (key, value) in changes {
            config[key] = value;
        }
        let folder = Folder::whole();
        folder.json("config.json", &config);
        folder.json("generation_config.json", &config);
        loads_or_says_why(&folder)?;
        // Whatever is accepted can be computed with.
        if let Ok(checkpoint) = folder.open() {
            let spec = checkpoint.spec();
            let (mut rows, mut factors) = (Vec::new(), Vec::new());
            spec.rope.table(0).append(100_000, 100_001, 100_001, &mut rows, &mut factors);
            prop_assert_eq!(factors.len(), spec.rope.rotary_dim);
            prop_assert!(factors.iter().all(|x| x.is_finite()), "{:?}: {:?}", spec.rope, factors);
        }
    }

    #[test]
    fn indices_with_damaged_bytes(changes in vec((any::<prop::sample::Index>(), byte()), 1..4)) {
        let folder = Folder::sharded(|_| ());
        let index = std::fs::read(folder.file("model.safetensors.index.json")).unwrap();
        folder.write("model.safetensors.index.json", &damaged(&index, &changes, None));
        loads_or_says_why(&folder)?;
    }
}
