//! A golden case, and the checkpoint that it describes as a folder on disk. `generate.py` says what the fields mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub config: serde_json::Map<String, serde_json::Value>,
    shards: usize,
    tensors: Vec<Tensor>,
    tolerance: Option<f64>,
    checksum: String,
    pub prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    #[serde(default)]
    seed: u64,
    #[serde(flatten)]
    content: Content,
}

/// What a tensor holds, where `z` are the numbers of its seed.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Real {
        scale: i64,
        offset: i64,
    },
    /// `(z & mask) + base`
    Whole {
        mask: u64,
        base: u64,
    },
    /// The group of each input, so many in each.
    InOrder {
        each: usize,
    },
    /// The same, where inputs come in the order of `z`.
    Shuffled {
        groups: usize,
    },
    Values {
        values: Vec<f64>,
    },
    Text {
        text: String,
    },
}

#[derive(Deserialize)]
pub struct Prompt {
    pub tokens: Vec<u32>,
    /// Of `tokens[1..]`.
    pub logprobs: Vec<f64>,
    pub native_error: Vec<f64>,
    pub greedy: Vec<u32>,
    pub greedy_logprobs: Vec<f64>,
    pub margins: Vec<f64>,
}

/// Every case of `tests/golden/cases`, or of the folder that `BURRSTONE_GOLDEN_CASES` names, in the order of names.
pub fn cases() -> Vec<Case> {
    let folder = std::env::var_os("BURRSTONE_GOLDEN_CASES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases"), PathBuf::from);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|x| x == "json"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{}: no cases", folder.display());
    files.iter().map(|file| read(file)).collect()
}

/// The case of that name in the folder that `BURRSTONE_GOLDEN_CASES` names, or else among the committed ones.
#[allow(dead_code, reason = "each test crate that includes this file uses its own part of it")]
pub fn case(name: &str) -> Case {
    let file = format!("{name}.json");
    let asked = std::env::var_os("BURRSTONE_GOLDEN_CASES").map(|folder| Path::new(&folder).join(&file));
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases").join(&file);
    read(&asked.filter(|file| file.exists()).unwrap_or(committed))
}

fn read(file: &Path) -> Case {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

impl Case {
    #[allow(dead_code, reason = "each test crate that includes this file uses its own part of it")]
    pub fn is_quantized(&self) -> bool {
        self.config.contains_key("quantization_config")
    }

    /// What log-probabilities may be off by, computed in float32 by kernels that differ by `float32` for dense weights.
    #[allow(dead_code, reason = "each test crate that includes this file uses its own part of it")]
    pub fn tolerance(&self, float32: f64) -> f64 {
        match self.tolerance {
            None if self.is_quantized() => {
                let errors = self.prompts.iter().flat_map(|prompt| &prompt.native_error);
                1.25 * errors.fold(0.0, |largest: f64, error| largest.max(error.abs())) + float32
            }
            tolerance => tolerance.unwrap_or(float32),
        }
    }

    /// Writes `config.json` and the shards to `folder`.
    ///
    /// # Panics
    /// Where the weights are not those that the reference was computed with.
    pub fn write(&self, folder: &Path) {
        std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&self.config).unwrap()).unwrap();
        let bytes: Vec<Vec<u8>> = self.tensors.iter().map(Tensor::bytes).collect();
        assert_eq!(fnv1a(&bytes), self.checksum, "{}: the weights differ from generate.py's", self.name);

        let mut places = BTreeMap::new();
        for shard in 0..self.shards {
            let file = match self.shards {
                1 => "model.safetensors".to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
            };
            let mut views = Vec::new();
            for (tensor, data) in self.tensors.iter().zip(&bytes).skip(shard).step_by(self.shards) {
                let view = TensorView::new(tensor.stored(), tensor.shape.clone(), data).unwrap();
                views.push((tensor.name.as_str(), view));
                places.insert(&tensor.name, file.clone());
            }
            safetensors::serialize_to_file(views, None, &folder.join(&file)).unwrap();
        }
        if self.shards > 1 {
            let total: usize = bytes.iter().map(Vec::len).sum();
            let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": places });
            std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
    }
}

impl Tensor {
    fn stored(&self) -> Dtype {
        match self.dtype.as_str() {
            "BF16" => Dtype::BF16,
            "F16" => Dtype::F16,
            "F32" => Dtype::F32,
            "F8_E4M3" => Dtype::F8_E4M3,
            "I8" => Dtype::I8,
            "U8" => Dtype::U8,
            "I32" => Dtype::I32,
            "I64" => Dtype::I64,
            other => panic!("{}: dtype {other}", self.name),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let count: usize = self.shape.iter().product();
        let size = self.stored().bitsize() / 8;
        let numbers = (1..=count as u64).map(|i| splitmix64(self.seed.wrapping_add(i.wrapping_mul(GAMMA))));
        match &self.content {
            Content::Real { scale, offset } => {
                self.real(numbers.map(|z| ((centered(z) * scale + offset) as f64 / f64::from(1u32 << 31) / 2.0) as f32))
            }
            Content::Whole { mask, base } => {
                numbers.flat_map(|z| ((z & mask) + base).to_le_bytes().into_iter().take(size)).collect()
            }
            Content::InOrder { each } => (0..count).flat_map(|i| ((i / each) as i32).to_le_bytes()).collect(),
            Content::Shuffled { groups } => {
                let keys: Vec<u64> = numbers.collect();
                let mut order: Vec<usize> = (0..count).collect();
                order.sort_by_key(|&input| keys[input]);
                let mut group_of = vec![0; count];
                order.into_iter().enumerate().for_each(|(place, input)| group_of[input] = (place / groups) as i32);
                group_of.into_iter().flat_map(i32::to_le_bytes).collect()
            }
            Content::Values { values } if self.stored() == Dtype::F32 => {
                self.real(values.iter().map(|&value| value as f32))
            }
            Content::Values { values } => {
                values.iter().flat_map(|&value| (value as i64).to_le_bytes().into_iter().take(size)).collect()
            }
            Content::Text { text } => text.clone().into_bytes(),
        }
    }

    fn real(&self, values: impl Iterator<Item = f32>) -> Vec<u8> {
        match self.stored() {
            Dtype::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            Dtype::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        }
    }
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn splitmix64(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sum of the four 16-bit fields, about zero.
fn centered(z: u64) -> i64 {
    (0..4).map(|k| (z >> (16 * k) & 0xffff) as i64).sum::<i64>() - 131_070
}

/// FNV-1a over 16-bit words.
fn fnv1a(tensors: &[Vec<u8>]) -> String {
    let words = tensors.iter().flatten().copied().collect::<Vec<u8>>();
    let state = words.chunks_exact(2).fold(0xcbf2_9ce4_8422_2325_u64, |state, word| {
        (state ^ u64::from(u16::from_le_bytes([word[0], word[1]]))).wrapping_mul(0x100_0000_01b3)
    });
    format!("{state:016x}")
}
