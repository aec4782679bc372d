//! What a forward pass must do at the least: bytes to read and operations to perform. Floors follow from it.

use burrstone::DType;
use burrstone::model::ArchSpec;
use burrstone::ops::CacheShape;

/// The work of one model. Norms, rotary embeddings and embedding rows are left out: they are thousandths.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Parameters of the layers' matrix products.
    layers: u64,
    /// Those after the last attention: a prompt needs them only for its last token.
    tail: u64,
    /// Parameters of the output projection.
    head: u64,
    /// Bytes of weights that a token reads.
    weight_bytes: u64,
    kv_bytes_per_position_and_layer: u64,
    /// Multiply-adds of one query with one position, over the heads of a layer: scores and weighted sum.
    attention_each: u64,
    windows: Vec<Option<usize>>,
}

impl Cost {
    /// With so many bytes of weights that a token reads, and a KV cache of this dtype.
    pub fn of(spec: &ArchSpec, weight_bytes: u64, dtype: DType) -> Self {
        let position = CacheShape { layers: 1, ..spec.cache_shape(1, 1, dtype) };
        let [qkv, output, gate_up, down] = spec.products().map(|[n, k]| (n * k) as u64);
        let tail = output + gate_up + down;
        Self {
            layers: spec.layers as u64 * (qkv + tail),
            tail,
            head: (spec.vocab_size * spec.hidden_size) as u64,
            weight_bytes,
            kv_bytes_per_position_and_layer: position.bytes_per_token() as u64,
            attention_each: (2 * spec.heads * spec.head_dim) as u64,
            windows: spec.windows.clone(),
        }
    }

    /// Bytes that one decode step reads when `depth` positions are in the cache.
    pub fn decode_bytes(&self, depth: usize) -> u64 {
        let seen: u64 = self.windows.iter().map(|window| depth.min(window.unwrap_or(depth)) as u64).sum();
        self.weight_bytes + seen * self.kv_bytes_per_position_and_layer
    }

    /// Floating-point operations (a multiply-add is two) of a prompt of `tokens`, up to the logits of its last token.
    pub fn prefill_flops(&self, tokens: usize) -> u64 {
        let n = tokens as u64;
        let pairs: u64 = self
            .windows
            .iter()
            .map(|window| {
                // Query p sees min(p + 1, window) positions.
                let w = window.map_or(n, |w| n.min(w as u64));
                w * (w + 1) / 2 + (n - w) * w
            })
            .sum();
        2 * (self.layers * n - self.tail * (n - 1) + self.head + pairs * self.attention_each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(windows: Vec<Option<usize>>) -> Cost {
        Cost {
            layers: 1000,
            tail: 50,
            head: 100,
            weight_bytes: 2200,
            kv_bytes_per_position_and_layer: 8,
            attention_each: 10,
            windows,
        }
    }

    /// By counting query-position pairs one by one.
    #[test]
    fn prefill_counts_every_pair() {
        for window in [None, Some(1), Some(3), Some(100)] {
            for tokens in 1..12 {
                let pairs: usize = (0..tokens).map(|p| (p + 1).min(window.unwrap_or(usize::MAX))).sum();
                let expected = 2 * (950 * tokens + 50 + 100 + pairs * 10);
                assert_eq!(cost(vec![window]).prefill_flops(tokens), expected as u64, "{window:?} {tokens}");
            }
        }
    }

    #[test]
    fn decode_reads_weights_and_visible_positions() {
        assert_eq!(cost(vec![None, Some(4)]).decode_bytes(10), 2200 + (10 + 4) * 8);
        assert_eq!(cost(vec![None, Some(4)]).decode_bytes(0), 2200);
    }
}
