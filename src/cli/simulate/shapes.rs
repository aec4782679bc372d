//! Models by their sizes alone: well-known ones by name, others by their configuration.

use std::path::{Path, PathBuf};

use anyhow::Result;
use burrstone::model::ArchSpec;
use burrstone::model::resolve;

use crate::cli::{exit, output};

pub const NAMES: [&str; 5] = ["llama-3-8b", "llama-3-70b", "qwen3-0.6b", "qwen3-8b", "qwen3-32b"];

/// Of each: hidden and intermediate size, layers, heads, key heads.
const SIZES: [[usize; 5]; 5] = [
    [4096, 14_336, 32, 32, 8],
    [8192, 28_672, 80, 64, 8],
    [1024, 3072, 28, 16, 8],
    [4096, 12_288, 36, 32, 8],
    [5120, 25_600, 64, 64, 8],
];

/// Looks up one of [`NAMES`], or reads a configuration.
pub fn spec(model: &str) -> Result<ArchSpec> {
    let Some(i) = NAMES.iter().position(|name| *name == model) else {
        return configured(model);
    };
    let [hidden, intermediate, layers, heads, kv_heads] = SIZES[i];
    let (model_type, vocab) = if model.starts_with("llama") { ("llama", 128_256) } else { ("qwen3", 151_936) };
    let config = serde_json::json!({
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 32_768,
        "torch_dtype": "bfloat16",
    });
    Ok(ArchSpec::from_config(Path::new(model), config.to_string().as_bytes(), None)?)
}

/// A folder in Hugging Face format, its config.json alone, or a hub id in the cache.
pub fn configured(model: &str) -> Result<ArchSpec> {
    let file = match Path::new(model) {
        path if path.is_file() => PathBuf::from(model),
        path if path.is_dir() => path.join("config.json"),
        _ => resolve(model, true, &mut output::Downloads::new(true))?.join("config.json"),
    };
    let text = std::fs::read(&file)
        .map_err(|cause| exit::bad_input("MODEL", "a readable config.json", format!("{}: {cause}", file.display())))?;
    Ok(ArchSpec::from_config(&file, &text, None)?)
}
