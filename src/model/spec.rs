//! A decoder-only architecture as data.

use crate::dtype::DType;
use crate::ops::{Activation, CacheShape};

use super::rope::RopeSpec;

/// Longest context that a configuration may ask for, in tokens: beyond any model, so that products of sizes stay within
/// 64 bits.
pub(super) const MAX_CONTEXT: usize = 1 << 31;

/// A decoder-only transformer, as read from `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ArchSpec {
    /// `model_type` of the configuration, for people.
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    pub activation: Activation,
    /// Biases of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the attention output projection.
    pub output_bias: bool,
    /// Biases of the feed-forward projections.
    pub mlp_bias: bool,
    /// RMS norm over each head of queries and keys, before the rotation.
    pub qk_norm: bool,
    /// The output projection is the embedding table.
    pub tied_embeddings: bool,
    pub rope: RopeSpec,
    /// Sliding window of each layer; `None` attends to everything before.
    pub windows: Vec<Option<usize>>,
    /// Scores are multiplied by this before the softmax.
    pub attention_scale: f32,
    /// Tokens a sequence may hold.
    pub context: usize,
    /// Dtype the checkpoint says it is stored in.
    pub dtype: DType,
}

impl ArchSpec {
    /// Shapes `[n, k]` of a layer's matrix products: queries, keys and values; the output projection; gate and up; down.
    pub fn products(&self) -> [[usize; 2]; 4] {
        let (hidden, inner, heads) = (self.hidden_size, self.intermediate_size, self.heads * self.head_dim);
        let qkv = heads + 2 * self.kv_heads * self.head_dim;
        [[qkv, hidden], [hidden, heads], [2 * inner, hidden], [hidden, inner]]
    }

    /// A KV cache of so many pages.
    pub fn cache_shape(&self, pages: usize, page_size: usize, dtype: DType) -> CacheShape {
        let Self { layers, kv_heads, head_dim, .. } = *self;
        CacheShape { layers, pages, page_size, kv_heads, head_dim, dtype }
    }
}
