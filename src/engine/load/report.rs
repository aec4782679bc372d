//! What an engine says of itself once it is built.

use crate::dtype::DType;
use crate::engine::capacity::KvLimit;
use crate::model::{ArchSpec, RopeKind};
use crate::ops::CacheShape;

/// What was loaded, and what it takes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadReport {
    /// The model as it was asked for.
    pub model: String,
    /// What runs it.
    pub device: String,
    /// Precision of the activations.
    pub dtype: DType,
    /// Precision of the KV cache.
    pub kv_dtype: DType,
    pub kv_shape: CacheShape,
    /// Seconds from the start of [`EngineBuilder::build`](super::EngineBuilder::build) to its end.
    pub load_s: f64,
    /// Bytes of the weights, as stored.
    pub weight_bytes: u64,
    /// Bytes set aside for keys and values; the system hands them out as they are first used.
    pub kv_bytes: u64,
    /// Tokens that fit there, over all open generations.
    pub kv_tokens: usize,
    /// What decided that.
    pub kv_limit: KvLimit,
    /// Bytes that what the KV cache gives up may take of the host's memory, as they are needed.
    pub host_kv_bytes: u64,
    /// Bytes of the activations of one step, at the most, and of what a GPU's kernels work in.
    pub activation_bytes: u64,
    /// Tokens of a step.
    pub step_tokens: usize,
    /// Sequences that run at a time.
    pub max_sequences: usize,
    /// Tokens that one sequence may hold.
    pub context: usize,
    /// Tokens of the prompt and of the output of a request by which a capacity is judged while there is none.
    pub typical: [usize; 2],
    /// What the kernels' cost model expects to be generated of such requests while they do not run out, on this GPU or the one
    /// that the simulator stands in for; nobody knows of the CPU.
    pub tokens_per_s: Option<f64>,
    /// What whoever runs it should know, a sentence each.
    pub warnings: Vec<String>,
}

impl LoadReport {
    /// Sequences of so many tokens, prompt and output, that run at a time where they have nothing in common. What a window
    /// lets go of is not counted as free.
    pub fn sequences_of(&self, tokens: usize) -> usize {
        let pages = tokens.div_ceil(self.kv_shape.page_size).max(1);
        self.max_sequences.min(self.kv_shape.pages / pages)
    }
}

/// What is to be said of a model that serves sequences of up to `context` tokens.
pub fn warnings(spec: &ArchSpec, context: usize) -> Vec<String> {
    match spec.rope.kind {
        RopeKind::Yarn { factor, original_context, when_needed: false, .. }
            if factor > 1.0 && context <= original_context =>
        {
            vec![format!(
                "rope_type yarn stretches positions by {factor} at any length, and sequences here are of up to {context} \
                 tokens: up to {original_context} the model is better unstretched (--rope-scaling when-needed, \
                 EngineBuilder::rope_scaling)"
            )]
        }
        _ => Vec::new(),
    }
}
