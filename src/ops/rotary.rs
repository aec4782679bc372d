//! Arguments of the rotary embedding, which also writes keys and values to the cache.

use super::Ops;

/// Arguments of [`Ops::rotary_kv_write`].
pub struct RotaryKvWrite<'a, O: Ops> {
    /// `[tokens, (heads + 2 · kv_heads) · head_dim]`: queries, keys, values.
    pub qkv: &'a O::Buffer,
    /// Rotated queries, `[tokens, heads, head_dim]`.
    pub query: &'a mut O::Buffer,
    pub cache: &'a mut O::Cache,
    pub layer: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Leading dimensions of a head that rotate; element `i` pairs with `i + rotary_dim / 2`.
    pub rotary_dim: usize,
    pub rope: RopeTable<'a, O>,
    /// Per-head RMS norm of queries and keys before the rotation: gains of `[head_dim]` and epsilon.
    pub qk_norm: Option<QkNorm<'a, O>>,
}

/// Rotary factors by position; others come with [the batch](super::Batch::rope).
pub struct RopeTable<'a, O: Ops> {
    /// f32 `[rows, 2, rotary_dim / 2]`: cosines, then sines, already scaled.
    pub factors: &'a O::Buffer,
    pub rows: usize,
}

/// Gains of the per-head norm of queries and keys.
pub struct QkNorm<'a, O: Ops> {
    pub query: &'a O::Vector,
    pub key: &'a O::Vector,
    pub eps: f32,
}
