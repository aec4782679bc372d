//! What `inspect` says, for people and as JSON.

use std::fmt;

use burrstone::DType;
use burrstone::model::{ArchSpec, Checkpoint, TensorInfo};
use serde::{Serialize, Serializer};

use super::census::{Amount, Census, Owner};
use crate::cli::output::size;

#[derive(Serialize)]
pub struct Report {
    model: String,
    architecture: Architecture,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<Quantization>,
    weights: Weights,
    kv_cache: KvCache,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Tensor>>,
}

#[derive(Serialize)]
struct Architecture {
    model_type: String,
    layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    context: usize,
    activation: String,
    rope: Rope,
    tied_embeddings: bool,
    qk_norm: bool,
    qkv_bias: bool,
    /// The sliding window of each layer that has one.
    windows: Vec<Option<usize>>,
}

#[derive(Serialize)]
struct Quantization {
    method: String,
    /// Layers of each kind of weight.
    #[serde(serialize_with = "as_map")]
    formats: Vec<(String, usize)>,
    /// What is not quantized, `*` standing for a layer's number.
    #[serde(serialize_with = "as_map")]
    dense: Vec<(String, usize)>,
    /// Scales of an 8-bit KV cache other than 1, which are not used.
    kv_scales: usize,
}

#[derive(Serialize)]
struct Rope {
    kind: &'static str,
    theta: f64,
    rotary_dim: usize,
}

#[derive(Serialize)]
struct Weights {
    #[serde(flatten)]
    total: Amount,
    #[serde(serialize_with = "as_map")]
    by_owner: Vec<(Owner, Amount)>,
    #[serde(serialize_with = "as_map")]
    by_dtype: Vec<(String, Amount)>,
}

#[derive(Serialize)]
struct KvCache {
    /// The default dtype of the KV cache.
    default_dtype: &'static str,
    #[serde(serialize_with = "as_map")]
    bytes_per_token: Vec<(&'static str, usize)>,
}

#[derive(Serialize)]
struct Memory {
    budget_bytes: u64,
    weight_bytes: u64,
    /// Tokens of KV cache beside the weights, over all sequences.
    #[serde(serialize_with = "as_map")]
    tokens: Vec<(&'static str, u64)>,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    parameters: u64,
    bytes: u64,
    file: String,
}

fn as_map<K: Serialize, V: Serialize, S: Serializer>(pairs: &[(K, V)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(k, v)| (k, v)))
}

/// What a cache may be stored in, as `--kv-dtype` spells it.
const KV_DTYPES: [(&str, DType); 6] = [
    ("f32", DType::F32),
    ("bf16", DType::BF16),
    ("f16", DType::F16),
    ("fp8_e4m3", DType::E4M3),
    ("fp8_e5m2", DType::E5M2),
    ("int8", DType::I8),
];

impl Report {
    pub fn new(model: &str, checkpoint: &Checkpoint, memory: Option<u64>, list: bool) -> Self {
        let spec = checkpoint.spec();
        let tensors: Vec<TensorInfo> = checkpoint.tensors().collect();
        let census = Census::of(&tensors);
        let weight_bytes = census.total.bytes;
        let per_token = KV_DTYPES.map(|(name, dtype)| (name, kv_bytes(spec, dtype)));
        Self {
            model: model.to_owned(),
            architecture: Architecture::of(spec),
            quantization: checkpoint.quantization().map(|report| Quantization {
                method: report.method,
                formats: report.formats,
                dense: report.dense,
                kv_scales: report.kv_scales,
            }),
            weights: Weights { total: census.total, by_owner: census.owners, by_dtype: census.dtypes },
            kv_cache: KvCache { default_dtype: spec.dtype.name(), bytes_per_token: per_token.to_vec() },
            memory: memory.map(|budget_bytes| {
                let room = budget_bytes.saturating_sub(weight_bytes);
                let tokens = per_token.map(|(dtype, bytes)| (dtype, room / (bytes as u64).max(1)));
                Memory { budget_bytes, weight_bytes, tokens: tokens.to_vec() }
            }),
            tensors: list.then(|| tensors.iter().map(Tensor::of).collect()),
        }
    }
}

/// Bytes of keys and values that a token takes over all layers.
fn kv_bytes(spec: &ArchSpec, dtype: DType) -> usize {
    spec.cache_shape(1, 1, dtype).bytes_per_token()
}

impl Architecture {
    fn of(spec: &ArchSpec) -> Self {
        let windowed = spec.windows.iter().any(Option::is_some);
        Self {
            model_type: spec.model_type.clone(),
            layers: spec.layers,
            hidden_size: spec.hidden_size,
            intermediate_size: spec.intermediate_size,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            vocab_size: spec.vocab_size,
            context: spec.context,
            activation: format!("{:?}", spec.activation),
            rope: Rope { kind: spec.rope.kind.name(), theta: spec.rope.theta, rotary_dim: spec.rope.rotary_dim },
            tied_embeddings: spec.tied_embeddings,
            qk_norm: spec.qk_norm,
            qkv_bias: spec.qkv_bias,
            windows: if windowed { spec.windows.clone() } else { Vec::new() },
        }
    }

    /// `4096 in 3 of 32 layers`.
    fn windows(&self) -> String {
        let sizes: Vec<usize> = self.windows.iter().copied().flatten().collect();
        match sizes.first() {
            None => "none".to_owned(),
            Some(size) => format!("{size} in {} of {} layers", sizes.len(), self.layers),
        }
    }
}

impl Tensor {
    fn of(info: &TensorInfo) -> Self {
        Self {
            name: info.name.clone(),
            dtype: info.stored.clone(),
            shape: info.shape.clone(),
            parameters: info.parameters,
            bytes: info.bytes,
            file: info.file.file_name().unwrap_or(info.file.as_os_str()).to_string_lossy().into_owned(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a = &self.architecture;
        let yes = |is| if is { "yes" } else { "no" };
        writeln!(f, "model            {}", self.model)?;
        writeln!(f, "architecture     {}, {}", a.model_type, count(self.weights.total.parameters, "parameters"))?;
        writeln!(f, "layers           {}", a.layers)?;
        writeln!(f, "hidden size      {}, feed-forward {} ({})", a.hidden_size, a.intermediate_size, a.activation)?;
        writeln!(f, "attention        {} heads, {} for keys and values, of {}", a.heads, a.kv_heads, a.head_dim)?;
        writeln!(
            f,
            "                 QK norm {}, QKV bias {}, window {}",
            yes(a.qk_norm),
            yes(a.qkv_bias),
            a.windows()
        )?;
        writeln!(f, "vocabulary       {}, tied embeddings {}", a.vocab_size, yes(a.tied_embeddings))?;
        writeln!(f, "context          {} tokens", a.context)?;
        let Rope { kind, theta, rotary_dim } = &a.rope;
        writeln!(f, "rope             {kind}, theta {theta}, over {rotary_dim} of {} dimensions", a.head_dim)?;
        if let Some(Quantization { method, formats, dense, kv_scales }) = &self.quantization {
            let list = |all: &[(String, usize)]| {
                let text = |(what, count): &(String, usize)| format!("{what} ({count})");
                all.iter().map(text).collect::<Vec<_>>().join("; ")
            };
            writeln!(f, "quantization     {method}: {}", list(formats))?;
            writeln!(
                f,
                "                 not quantized: {}",
                if dense.is_empty() { "none".to_owned() } else { list(dense) }
            )?;
            if *kv_scales > 0 {
                writeln!(f, "                 {kv_scales} scales of an 8-bit KV cache, which are not used")?;
            }
        }

        writeln!(f, "\nweights          tensors   parameters        bytes")?;
        let row = |f: &mut fmt::Formatter<'_>, name: &str, amount: &Amount| {
            let Amount { tensors, parameters, bytes } = amount;
            let share = 100.0 * *bytes as f64 / self.weights.total.bytes.max(1) as f64;
            writeln!(f, "  {name:<14} {tensors:>7} {parameters:>12} {:>12}  {share:5.1} %", size(*bytes))
        };
        for (owner, amount) in &self.weights.by_owner {
            row(f, owner.name(), amount)?;
        }
        row(f, "all", &self.weights.total)?;
        for (dtype, amount) in &self.weights.by_dtype {
            row(f, &format!("of them {dtype}"), amount)?;
        }

        writeln!(f, "\nKV cache         bytes per token   full context")?;
        for (dtype, bytes) in &self.kv_cache.bytes_per_token {
            let full = size(*bytes as u64 * a.context as u64);
            let default = if *dtype == self.kv_cache.default_dtype { "  (default)" } else { "" };
            writeln!(f, "  {dtype:<14} {bytes:>15} {full:>14}{default}")?;
        }
        if let Some(memory) = &self.memory {
            let (budget, weights) = (size(memory.budget_bytes), size(memory.weight_bytes));
            writeln!(f, "\nin {budget}, beside {weights} of weights")?;
            for (dtype, tokens) in &memory.tokens {
                writeln!(f, "  {dtype:<14} {tokens:>15} tokens")?;
            }
        }
        if let Some(tensors) = &self.tensors {
            let width = tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
            writeln!(f, "\n{:<width$}  dtype  shape", "tensors")?;
            for t in tensors {
                writeln!(f, "{:<width$}  {:<5}  {:?}  {}", t.name, t.dtype, t.shape, t.file)?;
            }
        }
        Ok(())
    }
}

/// `1.24 G parameters`.
fn count(n: u64, what: &str) -> String {
    let (scaled, unit) = match n {
        0..1_000_000 => (n as f64 / 1e3, "k"),
        1_000_000..1_000_000_000 => (n as f64 / 1e6, "M"),
        _ => (n as f64 / 1e9, "G"),
    };
    format!("{scaled:.2} {unit} {what}")
}
