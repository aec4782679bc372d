//! The shape of the paged KV cache.

use crate::dtype::DType;

/// The shape of the paged KV cache: `layers × 2 × [pages, kv_heads, page_size, head_dim]`.
///
/// Values in f32, bf16, f16, e4m3 and e5m2 are rounded to nearest; fp8 has a scale of 1 and saturates. i8 has an f32
/// scale for each head of each token, for keys and values separately: the largest magnitude has the code 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    pub layers: usize,
    pub pages: usize,
    /// Tokens per page, a power of two.
    pub page_size: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub dtype: DType,
}

impl CacheShape {
    /// Whether each head of each token has a scale of its own, an f32 for its key and one for its value.
    pub fn has_scales(&self) -> bool {
        self.dtype == DType::I8
    }

    /// Bytes that one token takes over all layers.
    pub fn bytes_per_token(&self) -> usize {
        let scale = if self.has_scales() { DType::F32.size() } else { 0 };
        2 * self.layers * self.kv_heads * (self.head_dim * self.dtype.size() + scale)
    }

    /// Bytes that a page takes over all layers.
    pub fn page_bytes(&self) -> usize {
        self.page_size * self.bytes_per_token()
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> usize {
        self.pages * self.page_bytes()
    }
}
