//! The load report: what was loaded, on which device, and how memory is used.

use crate::dtype::DType;
use crate::engine::capacity::KvLimit;
use crate::model::{ArchSpec, RopeKind};
use crate::ops::CacheShape;

/// What was loaded, and the memory that it takes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadReport {
    /// The model's name as it was given.
    pub model: String,
    /// The device.
    pub device: String,
    /// The dtype of the activations.
    pub dtype: DType,
    /// The dtype of the KV cache.
    pub kv_dtype: DType,
    pub kv_shape: CacheShape,
    /// Seconds from the start of [`EngineBuilder::build`](super::EngineBuilder::build) to its end.
    pub load_s: f64,
    /// Bytes of the weights, as stored.
    pub weight_bytes: u64,
    /// Bytes of weights that every decoded token reads: smaller where weights are quantized as they are loaded, and
    /// without a table of embeddings.
    pub read_bytes: u64,
    /// Bytes of the KV cache; the system provides the memory as it is first used.
    pub kv_bytes: u64,
    /// Tokens that fit into the KV cache.
    pub kv_tokens: usize,
    /// What decided its size.
    pub kv_limit: KvLimit,
    /// Bytes of host memory for blocks evicted from the KV cache, used as they are needed.
    pub host_kv_bytes: u64,
    /// Bytes of the activations of the largest step, and of the workspace on a GPU.
    pub activation_bytes: u64,
    /// Token budget of a step.
    pub step_tokens: usize,
    /// Sequences that run at a time.
    pub max_sequences: usize,
    /// Tokens of one sequence, at most.
    pub context: usize,
    /// Prompt and output tokens of a typical request, for the estimates below.
    pub typical: [usize; 2],
    /// Throughput with such requests, as the kernels' cost model predicts it for this GPU or the simulated one; `None`
    /// on the CPU.
    pub tokens_per_s: Option<f64>,
    /// Warnings for the operator, one sentence each.
    pub warnings: Vec<String>,
}

impl LoadReport {
    /// How many sequences of `tokens` tokens, prompt and output, can run at a time without shared prefixes. Blocks that
    /// a sliding window releases do not count.
    pub fn sequences_of(&self, tokens: usize) -> usize {
        let pages = tokens.div_ceil(self.kv_shape.page_size).max(1);
        self.max_sequences.min(self.kv_shape.pages / pages)
    }
}

/// Warnings about a model that serves sequences of up to `context` tokens with a KV cache of dtype `kv`, names end
/// tokens that it does not have, and has so many scales of a KV cache.
pub fn warnings(spec: &ArchSpec, context: usize, unknown_eos: &[u32], kv: DType, kv_scales: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    if kv == DType::E4M3 && kv_scales > 0 {
        warnings.push(format!(
            "the checkpoint has {kv_scales} scales for an fp8 KV cache, which are not used: keys and values are stored \
             unscaled"
        ));
    }
    if !unknown_eos.is_empty() {
        warnings.push(format!(
            "eos_token_id: {unknown_eos:?} never come: the vocabulary has {} tokens, from 0",
            spec.vocab_size
        ));
    }
    if let RopeKind::Yarn { factor, original_context, when_needed: false, .. } = spec.rope.kind
        && factor > 1.0
        && context <= original_context
    {
        warnings.push(format!(
            "rope_type yarn stretches positions by {factor} at any length, and sequences here are of up to {context} \
             tokens: up to {original_context} the model is better unstretched (--rope-scaling when-needed, \
             EngineBuilder::rope_scaling)"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn scales_of_a_cache_matter_only_to_an_fp8_cache() {
        let config = br#"{"model_type": "llama"}"#;
        let spec = ArchSpec::from_config(Path::new("config.json"), config, None).unwrap();
        let of = |kv, scales| warnings(&spec, 128, &[], kv, scales);
        assert!(of(DType::E4M3, 4)[0].contains("4 scales for an fp8 KV cache"));
        assert!(of(DType::E4M3, 0).is_empty() && of(DType::BF16, 4).is_empty());
    }
}
