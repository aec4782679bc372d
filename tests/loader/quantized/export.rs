//! Writes linear layers as the exporters of each format do, one field at a time.

use half::f16;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::support::{Tensor, Tensors};

/// `(code - zero) · scale`, in groups of inputs.
#[derive(Clone)]
pub struct Linear {
    pub n: usize,
    pub k: usize,
    pub bits: usize,
    pub group: usize,
    /// `[n, k]`.
    pub codes: Vec<u8>,
    /// `[n, groups]`.
    pub zeros: Vec<u8>,
    /// `[n, groups]`.
    pub scales: Vec<f16>,
    /// The group of each input.
    pub groups: Vec<usize>,
}

/// Numbers without a pattern: splitmix64.
pub fn noise(seed: u64, i: usize) -> u64 {
    let z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Linear {
    pub fn new([n, k]: [usize; 2], bits: usize, group: usize, seed: u64) -> Self {
        let (groups, mask) = (k.div_ceil(group), (1u64 << bits) - 1);
        Self {
            n,
            k,
            bits,
            group,
            codes: (0..n * k).map(|i| (noise(seed, i) & mask) as u8).collect(),
            zeros: (0..n * groups).map(|i| (noise(seed + 1, i) & mask) as u8).collect(),
            scales: (0..n * groups).map(|i| f16::from_f32((noise(seed + 2, i) % 1000 + 1) as f32 / 1e4)).collect(),
            groups: (0..k).map(|i| i / group).collect(),
        }
    }

    /// Zero points in the middle.
    pub fn symmetric(mut self) -> Self {
        self.zeros.fill(1 << (self.bits - 1));
        self
    }

    /// Inputs in groups at random, as activation order leaves them.
    pub fn shuffled(mut self, seed: u64) -> Self {
        let mut inputs: Vec<usize> = (0..self.k).collect();
        inputs.sort_by_key(|&i| noise(seed, i));
        for (place, input) in inputs.into_iter().enumerate() {
            self.groups[input] = place / self.group;
        }
        self
    }

    fn count(&self) -> usize {
        self.k.div_ceil(self.group)
    }

    /// `[n, k]`.
    pub fn dense(&self) -> Vec<f32> {
        let value = |i: usize| {
            let at = i / self.k * self.count() + self.groups[i % self.k];
            (f32::from(self.codes[i]) - f32::from(self.zeros[at])) * self.scales[at].to_f32()
        };
        (0..self.n * self.k).map(value).collect()
    }

    /// Group by output.
    fn scales_by_group(&self) -> Tensor {
        let (n, groups) = (self.n, self.count());
        let data = (0..groups * n).flat_map(|i| self.scales[i % n * groups + i / n].to_le_bytes()).collect();
        Tensor { dtype: Dtype::F16, shape: vec![groups, n], data }
    }

    fn zero(&self, n: usize, group: usize) -> u8 {
        self.zeros[n * self.count() + group]
    }

    pub fn awq(&self) -> Vec<(&'static str, Tensor)> {
        // Output 8c + ORDER[i] is field i of word c.
        const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
        let words = |rows: usize, value: &dyn Fn(usize, usize) -> u8| {
            let word = |row: usize, c: usize| {
                (0..8).fold(0u32, |word, i| word | u32::from(value(row, 8 * c + ORDER[i])) << (4 * i))
            };
            let data =
                (0..rows).flat_map(|row| (0..self.n / 8).flat_map(move |c| word(row, c).to_le_bytes())).collect();
            Tensor { dtype: Dtype::I32, shape: vec![rows, self.n / 8], data }
        };
        vec![
            ("qweight", words(self.k, &|k, n| self.codes[n * self.k + k])),
            ("qzeros", words(self.count(), &|group, n| self.zero(n, group))),
            ("scales", self.scales_by_group()),
        ]
    }

    /// `less`: 1 in the first version's zero points, 0 in the second's.
    pub fn gptq(&self, less: u8) -> Vec<(&'static str, Tensor)> {
        let (n, k, bits) = (self.n, self.k, self.bits);
        let mask = ((1u32 << bits) - 1) as u8;
        let mut qweight = vec![0u8; n * k * bits / 8];
        for output in 0..n {
            for (word, bytes) in stream(bits, (0..k).map(|k| self.codes[output * self.k + k])).chunks(4).enumerate() {
                qweight[4 * (word * n + output)..][..4].copy_from_slice(bytes);
            }
        }
        let zeros = |group| stream(bits, (0..n).map(move |n| self.zero(n, group).wrapping_sub(less) & mask));
        let groups = self.groups.iter().flat_map(|&group| (group as i32).to_le_bytes()).collect();
        vec![
            ("qweight", Tensor { dtype: Dtype::I32, shape: vec![k * bits / 32, n], data: qweight }),
            (
                "qzeros",
                Tensor {
                    dtype: Dtype::I32,
                    shape: vec![self.count(), n * bits / 32],
                    data: (0..self.count()).flat_map(zeros).collect(),
                },
            ),
            ("scales", self.scales_by_group()),
            ("g_idx", Tensor { dtype: Dtype::I32, shape: vec![k], data: groups }),
        ]
    }

    /// pack-quantized; without zero points if `symmetric`.
    pub fn packed(&self, symmetric: bool) -> Vec<(&'static str, Tensor)> {
        let (n, k, bits, groups) = (self.n, self.k, self.bits, self.count());
        let rows: Vec<u8> = (0..n).flat_map(|row| stream(bits, self.codes[row * k..][..k].iter().copied())).collect();
        let words = rows.len() / n / 4;
        let shape = [n as i64, k as i64].into_iter().flat_map(i64::to_le_bytes).collect();
        let scales = self.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let groups_of_inputs = self.groups.iter().flat_map(|&group| (group as i32).to_le_bytes()).collect();
        let mut tensors = vec![
            ("weight_packed", Tensor { dtype: Dtype::I32, shape: vec![n, words], data: rows }),
            ("weight_scale", Tensor { dtype: Dtype::F16, shape: vec![n, groups], data: scales }),
            ("weight_shape", Tensor { dtype: Dtype::I64, shape: vec![2], data: shape }),
        ];
        if !self.groups.is_sorted() {
            tensors.push(("weight_g_idx", Tensor { dtype: Dtype::I32, shape: vec![k], data: groups_of_inputs }));
        }
        if !symmetric {
            let words = (n * bits).div_ceil(32);
            let mut data = vec![0u8; 4 * words * groups];
            for group in 0..groups {
                let column = stream(bits, (0..n).map(|n| self.zero(n, group)));
                for (word, bytes) in column.chunks(4).enumerate() {
                    data[4 * (word * groups + group)..][..4].copy_from_slice(bytes);
                }
            }
            tensors.push(("weight_zero_point", Tensor { dtype: Dtype::I32, shape: vec![words, groups], data }));
        }
        tensors
    }
}

/// Fields from the lowest bit up, filled up to 32-bit words.
pub fn stream(bits: usize, values: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = 0;
    for value in values {
        for bit in 0..bits {
            if at % 32 == 0 {
                bytes.extend([0; 4]);
            }
            bytes[at / 8] |= (value >> bit & 1) << (at % 8);
            at += 1;
        }
    }
    bytes
}

/// A Llama with one layer whose linear layers have room for words and groups.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 16,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "tie_word_embeddings": true,
        "torch_dtype": "float16",
    })
}

/// Its linear layers.
pub const LINEAR: [(&str, [usize; 2]); 7] = [
    ("model.layers.0.self_attn.q_proj", [64, 64]),
    ("model.layers.0.self_attn.k_proj", [32, 64]),
    ("model.layers.0.self_attn.v_proj", [32, 64]),
    ("model.layers.0.self_attn.o_proj", [64, 64]),
    ("model.layers.0.mlp.gate_proj", [96, 64]),
    ("model.layers.0.mlp.up_proj", [96, 64]),
    ("model.layers.0.mlp.down_proj", [64, 96]),
];

/// Its other tensors.
pub const DENSE: [(&str, &[usize]); 4] = [
    ("model.embed_tokens.weight", &[16, 64]),
    ("model.norm.weight", &[64]),
    ("model.layers.0.input_layernorm.weight", &[64]),
    ("model.layers.0.post_attention_layernorm.weight", &[64]),
];

/// The checkpoint's tensors, where `linear` gives those of each linear layer.
pub fn tensors(mut linear: impl FnMut(&str, [usize; 2]) -> Vec<(&'static str, Tensor)>) -> Tensors {
    let dense = DENSE.iter().map(|(name, shape)| ((*name).to_owned(), Tensor::ones(shape)));
    let mut tensors: Tensors = dense.collect();
    for (name, shape) in LINEAR {
        tensors.extend(linear(name, shape).into_iter().map(|(part, tensor)| (format!("{name}.{part}"), tensor)));
    }
    tensors
}

/// A tensor of bytes that `byte` gives.
pub fn bytes(dtype: Dtype, shape: &[usize], byte: impl FnMut(usize) -> u8) -> Tensor {
    let data = (0..shape.iter().product()).map(byte).collect();
    Tensor { dtype, shape: shape.to_vec(), data }
}
