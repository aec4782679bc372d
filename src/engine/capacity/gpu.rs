//! Predicts the time of a step on a GPU with the kernels' cost model.

use std::collections::HashMap;

use crate::device::{DeviceInfo, GpuSpec};
use crate::dtype::DType;
use crate::engine::capacity::{KvBudget, PAGE_SIZE, cache_size};
use crate::engine::scheduler::{CacheSize, Plan, Policy};
use crate::error::{Error, Result};
use crate::kernels::{CostModel, Gpu, MatMul, MatMulPlan, MatMulShape, WeightKind, recorded_rows};
use crate::model::{ArchSpec, Limits};
use crate::ops::CacheShape;

/// Predicts the time of a step of a model on a GPU that need not be present. Its assumptions, beside those of [`CostModel`]:
/// - a step is one recording: its kernels follow each other, and the host is never late;
/// - attention reads the keys and values that a sequence's queries see once, or multiplies at the tensor cores' rate,
///   whichever takes longer; other kernels read and write their operands once, in two bytes an element;
/// - the last layer's tail is computed for all tokens.
pub struct GpuModel {
    spec: ArchSpec,
    cost_model: CostModel,
    memory_bytes: u64,
    dtype: DType,
    kv_dtype: DType,
    /// Seconds of a layer's products and of the output projection, by rows.
    products: HashMap<usize, f64>,
    heads: HashMap<usize, f64>,
}

/// A sequence's part of a step: its first position and its number of tokens.
pub type Span = (usize, usize);

/// Launches of a layer beside its products and attention (two norms and a rotation), and of a step beside its layers.
const LAYER_LAUNCHES: f64 = 3.0;
const STEP_LAUNCHES: f64 = 4.0;

/// A layer's matrix products with `m` rows: QKV projection, output projection, gate and up, down.
pub fn layer_products(spec: &ArchSpec, dtype: DType, m: usize) -> [MatMulShape; 4] {
    let [qkv, output, [_, hidden], down] = spec.products();
    let weight = WeightKind::Dense;
    let of =
        |[n, k]: [usize; 2], gated, accumulate| MatMulShape { dtype, out: dtype, m, n, k, gated, accumulate, weight };
    let gated = of([spec.intermediate_size, hidden], true, false);
    [of(qkv, false, false), of(output, false, true), gated, of(down, false, true)]
}

/// The output projection of the model: hidden states to logits.
pub fn head_product(spec: &ArchSpec, dtype: DType, m: usize) -> MatMulShape {
    let [n, k] = [spec.vocab_size, spec.hidden_size];
    MatMulShape { dtype, out: DType::F32, m, n, k, gated: false, accumulate: false, weight: WeightKind::Dense }
}

impl GpuModel {
    /// `kv_dtype` is by default that of the activations.
    ///
    /// # Errors
    /// This build has no matrix product for the card's architecture.
    pub fn new(spec: &ArchSpec, card: &GpuSpec, kv_dtype: Option<DType>) -> Result<Self> {
        let dtype = Gpu::default_dtype(card.arch, spec.dtype);
        Self::on(spec, CostModel::from(card), u64::from(card.memory_gib) << 30, [dtype, kv_dtype.unwrap_or(dtype)])
    }

    /// For a GPU of this cost_model or a simulated one, with the dtypes of activations and KV cache.
    pub(in crate::engine) fn of_device(spec: &ArchSpec, info: &DeviceInfo, dtypes: [DType; 2]) -> Result<Self> {
        Self::on(spec, CostModel::of(info), info.memory_bytes, dtypes)
    }

    fn on(spec: &ArchSpec, cost_model: CostModel, memory_bytes: u64, [dtype, kv_dtype]: [DType; 2]) -> Result<Self> {
        let (products, heads) = (HashMap::new(), HashMap::new());
        let model = Self { spec: spec.clone(), cost_model, memory_bytes, dtype, kv_dtype, products, heads };
        model.product(layer_products(spec, dtype, 1)[0])?;
        Ok(model)
    }

    /// Precision of weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn weight_bytes(&self) -> u64 {
        let layer: usize = self.spec.products().iter().map(|[n, k]| n * k).sum();
        let tables = if self.spec.tied_embeddings { 1 } else { 2 };
        let elements = layer * self.spec.layers + tables * self.spec.vocab_size * self.spec.hidden_size;
        (elements * self.dtype.size()) as u64
    }

    /// The KV cache that an engine would make: for `most` tokens, or half of what weights and activations leave.
    ///
    /// # Errors
    /// They leave nothing.
    pub fn cache(&self, policy: &Policy, most: usize) -> Result<CacheSize> {
        let shape = self.cache_shape();
        let limits = Limits { batch_tokens: policy.step_tokens, cache: shape };
        let activations = limits.activation_bytes(&self.spec) + Gpu::workspace_bytes(&shape);
        let weights = self.weight_bytes();
        let free = self.memory_bytes.checked_sub(weights.saturating_add(activations)).ok_or_else(|| {
            let expected = format!("{weights} bytes of weights and {activations} of activations");
            Error::request("memory", expected, format!("{} bytes", self.memory_bytes))
        })?;
        let per_token = shape.bytes_per_token() as u64;
        let (tokens, _) = KvBudget::default().tokens(per_token, weights, activations, Some(free), most)?;
        Ok(cache_size(&self.spec, (tokens / PAGE_SIZE).max(1)))
    }

    /// The time of a step, in seconds.
    pub fn seconds(&mut self, plan: &Plan) -> f64 {
        let wanted = plan.chunks.iter().filter(|chunk| chunk.sample).count();
        let spans: Vec<Span> = plan.chunks.iter().map(|chunk| (chunk.start, chunk.len)).collect();
        self.seconds_of(&spans, wanted)
    }

    /// The time of a step of these spans that samples `wanted` tokens, in seconds.
    pub(in crate::engine) fn seconds_of(&mut self, spans: &[Span], wanted: usize) -> f64 {
        // A step of single tokens is a recorded one, of a size that there is.
        let rows: usize = spans.iter().map(|(_, len)| len).sum();
        let is_recorded = wanted > 0 && wanted == rows;
        let (rows, wanted) = if is_recorded { (recorded_rows(rows), recorded_rows(rows)) } else { (rows, wanted) };
        let layers = self.spec.layers as f64;
        layers * (self.layer_products(rows) + self.small_kernels(rows))
            + self.attention(spans)
            + self.head(wanted)
            + STEP_LAUNCHES * CostModel::LAUNCH
    }

    fn cache_shape(&self) -> CacheShape {
        self.spec.cache_shape(0, PAGE_SIZE, self.kv_dtype)
    }

    fn product(&self, shape: MatMulShape) -> Result<f64> {
        Ok(MatMulPlan::choose(&self.cost_model, &shape, MatMul::WORKSPACE)?.seconds)
    }

    fn layer_products(&mut self, rows: usize) -> f64 {
        if let Some(&seconds) = self.products.get(&rows) {
            return seconds;
        }
        let shapes = layer_products(&self.spec, self.dtype, rows);
        // `new` has seen that there is a variant.
        let seconds = shapes.map(|shape| self.product(shape).unwrap_or(f64::INFINITY)).iter().sum();
        self.products.insert(rows, seconds);
        seconds
    }

    fn head(&mut self, rows: usize) -> f64 {
        if rows == 0 {
            return 0.0;
        }
        if let Some(&seconds) = self.heads.get(&rows) {
            return seconds;
        }
        let seconds = self.product(head_product(&self.spec, self.dtype, rows)).unwrap_or(f64::INFINITY);
        self.heads.insert(rows, seconds);
        seconds
    }

    /// Norms and rotation of a layer.
    fn small_kernels(&self, rows: usize) -> f64 {
        let hidden = self.spec.hidden_size;
        let heads = (self.spec.heads + 2 * self.spec.kv_heads) * self.spec.head_dim;
        // Two norms read the residual stream, and write what they make of it.
        let elements = rows * (2 * 2 * hidden + 2 * heads);
        LAYER_LAUNCHES * CostModel::LAUNCH + (elements * self.dtype.size()) as f64 / self.cost_model.memory_bandwidth
    }

    /// Of all layers.
    fn attention(&self, spans: &[Span]) -> f64 {
        let cost_model = &self.cost_model;
        let rate = cost_model.tensor_rate * f64::from(cost_model.sms) * cost_model.clock;
        let position = CacheShape { layers: 1, ..self.cache_shape() }.bytes_per_token() as f64;
        let pair = (2 * self.spec.heads * self.spec.head_dim) as f64;
        let of_layer = |window: &Option<usize>| {
            let (mut positions, mut pairs) = (0, 0);
            for &(start, len) in spans {
                let end = start + len;
                let seen = window.unwrap_or(end);
                positions += end.min(seen + len - 1);
                // The last query sees the most, the first the least.
                pairs += len * ((start + 1).min(seen) + end.min(seen)) / 2;
            }
            let reading = positions as f64 * position / cost_model.memory_bandwidth;
            let computing = pairs as f64 * pair / rate;
            CostModel::LAUNCH + CostModel::LATENCY + reading.max(computing)
        };
        self.spec.windows.iter().map(of_layer).sum()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::scheduler::{Scheduler, Submission};
    use std::path::Path;
    use std::time::Duration;

    pub fn llama_8b() -> ArchSpec {
        let config = r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "rope_theta": 500000.0, "tie_word_embeddings": false,
            "torch_dtype": "bfloat16"}"#;
        ArchSpec::from_config(Path::new("config.json"), config.as_bytes(), None).unwrap()
    }

    fn gpu(name: &str) -> GpuModel {
        GpuModel::new(&llama_8b(), GpuSpec::named(name).unwrap(), None).unwrap()
    }

    /// The plan of a step for sequences with so many tokens in the cache, each with so many more.
    fn plan(sequences: usize, depth: usize, len: usize) -> Plan {
        let policy = Policy { step_tokens: 8192, max_running: 256, ..Policy::default() };
        let mut scheduler = Scheduler::new(policy, cache_size(&llama_8b(), 1 << 16));
        for i in 0..sequences {
            let prompt = (0..depth + len).map(|at| (i * 100_003 + at) as u32).collect();
            let submission = Submission::new(prompt, 9);
            scheduler.submit(Duration::ZERO, submission).unwrap();
        }
        scheduler.schedule(Duration::ZERO);
        let mut plan = scheduler.plan().clone();
        for chunk in &mut plan.chunks {
            (chunk.start, chunk.len) = (depth, len);
        }
        plan
    }

    /// 8.03 billion parameters; the embedding is not read.
    #[test]
    fn one_sequence_is_bound_by_the_weights() {
        let mut h100 = gpu("h100");
        assert!((h100.weight_bytes() as f64 / 2.0 / 8.03e9 - 1.0).abs() < 0.001);
        let floor = (h100.weight_bytes() as f64 - 2.0 * 128_256.0 * 4096.0) / 3.35e12;
        let seconds = h100.seconds(&plan(1, 100, 1));
        assert!((1.0..1.4).contains(&(seconds / floor)), "{seconds} {floor}");
        assert!(gpu("h200").seconds(&plan(1, 100, 1)) < seconds * 0.85);
    }

    #[test]
    fn a_prompt_is_bound_by_the_tensor_cores() {
        let tokens = 8192;
        let floor = 2.0 * 7.0e9 * tokens as f64 / 989e12;
        let seconds = gpu("h100").seconds(&plan(1, 0, tokens));
        assert!((1.0..4.0).contains(&(seconds / floor)), "{seconds} {floor}");
    }

    #[test]
    fn more_work_takes_longer_and_company_costs_less() {
        let mut a100 = gpu("a100");
        let mut of = |sequences, depth, len| a100.seconds(&plan(sequences, depth, len));
        assert!(of(1, 8000, 1) > of(1, 100, 1));
        assert!(of(32, 1000, 1) > of(1, 1000, 1));
        assert!(of(32, 1000, 1) < 8.0 * of(1, 1000, 1));
        assert!(of(2, 0, 2048) > of(1, 0, 2048));
        // Keys and values of half the size.
        let card = GpuSpec::named("a100").unwrap();
        let mut fp8 = GpuModel::new(&llama_8b(), card, Some(DType::E4M3)).unwrap();
        let positions = 8000.0 * 32.0 * 8.0 * 128.0 * 2.0;
        let saved = of(1, 8000, 1) - fp8.seconds(&plan(1, 8000, 1));
        assert!((saved / (positions / 2039e9) - 1.0).abs() < 0.05, "{saved}");
    }

    #[test]
    fn the_cache_is_what_the_card_has_left() {
        let policy = Policy::default();
        let cache = gpu("h100").cache(&policy, usize::MAX).unwrap();
        let bytes = cache.blocks * cache.block_size * gpu("h100").cache_shape().bytes_per_token();
        let gib = bytes as f64 / f64::from(1 << 30);
        assert!((30.0..33.0).contains(&gib), "{gib}");
        assert_eq!(gpu("h100").cache(&policy, 3200).unwrap().blocks, 100);
        let small = GpuSpec { memory_gib: 12, ..*GpuSpec::named("t4").unwrap() };
        let error = GpuModel::new(&llama_8b(), &small, None).unwrap().cache(&policy, usize::MAX).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("12884901888 bytes"), "{error}");
    }
}
