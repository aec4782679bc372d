//! Tiny checkpoints in temporary folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burrstone::Error;
use burrstone::model::Checkpoint;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A tensor to be written.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Tensor {
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), data }
    }

    /// bf16 ones.
    pub fn ones(shape: &[usize]) -> Self {
        let data = [0x80, 0x3f].repeat(shape.iter().product());
        Self { dtype: Dtype::BF16, shape: shape.to_vec(), data }
    }
}

pub type Tensors = BTreeMap<String, Tensor>;

pub fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// A Llama with one layer, 4 dimensions, 8 tokens.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 4,
        "intermediate_size": 6,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "eos_token_id": 2,
    })
}

/// All tensors of [`config`], with their names and shapes.
pub const SHAPES: [(&str, &[usize]); 11] = [
    ("model.embed_tokens.weight", &[8, 4]),
    ("model.norm.weight", &[4]),
    ("model.layers.0.input_layernorm.weight", &[4]),
    ("model.layers.0.post_attention_layernorm.weight", &[4]),
    ("model.layers.0.self_attn.q_proj.weight", &[4, 4]),
    ("model.layers.0.self_attn.k_proj.weight", &[2, 4]),
    ("model.layers.0.self_attn.v_proj.weight", &[2, 4]),
    ("model.layers.0.self_attn.o_proj.weight", &[4, 4]),
    ("model.layers.0.mlp.gate_proj.weight", &[6, 4]),
    ("model.layers.0.mlp.up_proj.weight", &[6, 4]),
    ("model.layers.0.mlp.down_proj.weight", &[4, 6]),
];

pub fn tensors() -> Tensors {
    SHAPES.iter().map(|(name, shape)| ((*name).to_owned(), Tensor::ones(shape))).collect()
}

/// A folder that holds a checkpoint, as a test changes it.
pub struct Folder(TempDir);

impl Folder {
    pub fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The whole tiny model in one file.
    pub fn whole() -> Self {
        Self::with(&config(), &tensors())
    }

    pub fn with(config: &Value, tensors: &Tensors) -> Self {
        let folder = Self::empty();
        folder.json("config.json", config);
        folder.write("model.safetensors", &safetensors(tensors));
        folder
    }

    /// The whole tiny model in two shards; `index` may change what the index says.
    pub fn sharded(change: impl FnOnce(&mut Value)) -> Self {
        let folder = Self::empty();
        folder.json("config.json", &config());
        let (mut first, mut second) = (tensors(), Tensors::new());
        let mut map = serde_json::Map::new();
        for (name, _) in SHAPES {
            let file = if name.contains(".mlp.") { "b.safetensors" } else { "a.safetensors" };
            map.insert(name.to_owned(), file.into());
            if file == "b.safetensors" {
                second.extend(first.remove_entry(name));
            }
        }
        folder.write("a.safetensors", &safetensors(&first));
        folder.write("b.safetensors", &safetensors(&second));
        let mut index = json!({"metadata": {"total_size": 0}, "weight_map": map});
        change(&mut index);
        folder.json("model.safetensors.index.json", &index);
        folder
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    pub fn json(&self, name: &str, value: &Value) {
        self.write(name, value.to_string().as_bytes());
    }

    pub fn open(&self) -> Result<Checkpoint, Error> {
        Checkpoint::open(self.path())
    }

    /// Opens and takes every tensor, as the decoder does.
    pub fn load(&self) -> Result<Checkpoint, Error> {
        let checkpoint = self.open()?;
        for (name, shape) in SHAPES {
            checkpoint.tensor(name, shape)?;
        }
        checkpoint.tied_embeddings();
        checkpoint.finish()?;
        Ok(checkpoint)
    }
}

/// Asserts that an error is the user's, is one line, and holds each of `parts`.
#[track_caller]
pub fn assert_says<T>(result: Result<T, Error>, parts: &[&str]) {
    let Err(error) = result else { panic!("no error; expected one that says {parts:?}") };
    let text = error.to_string();
    assert!(error.is_input(), "not an input error: {text}");
    assert!(!text.contains('\n'), "more than one line: {text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}
