//! Memory budgets: how many bytes the KV cache may use.

use crate::error::{Error, Result};

/// Requested limits of the KV cache.
#[derive(Clone, Copy, Debug, Default)]
pub struct KvBudget {
    /// Bytes of weights, activations and KV cache together.
    pub memory: Option<u64>,
    pub kv_memory: Option<u64>,
    pub kv_tokens: Option<usize>,
}

/// What decided the size of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvLimit {
    /// A requested size, in bytes or tokens.
    Asked,
    /// What the limit of all memory leaves.
    Memory,
    /// All sequences at full length.
    Sequences,
    /// Half of this many free bytes.
    Free(u64),
}

impl KvBudget {
    /// The size of the KV cache in tokens of `per_token` bytes, and what decided it. `free`: available bytes, if known.
    /// Without a requested limit the cache takes half of them, at most `most`, the tokens of all sequences at full length.
    ///
    /// # Errors
    /// The requested size is not available, or too small for one token.
    pub fn tokens(
        &self,
        per_token: u64,
        weights: u64,
        activations: u64,
        free: Option<u64>,
        most: usize,
    ) -> Result<(usize, KvLimit)> {
        let per_token = per_token.max(1);
        let of_bytes = |bytes: u64| usize::try_from(bytes / per_token).unwrap_or(usize::MAX);
        let left = self.memory.map(|memory| memory.saturating_sub(weights.saturating_add(activations)));
        let (tokens, limit) = match (self.kv_tokens.or(self.kv_memory.map(of_bytes)), left, free) {
            (Some(tokens), ..) => (tokens, KvLimit::Asked),
            (None, Some(left), _) if of_bytes(left) < most => (of_bytes(left), KvLimit::Memory),
            (None, None, Some(free)) if of_bytes(free / 2) < most => (of_bytes(free / 2), KvLimit::Free(free)),
            (None, ..) => (most, KvLimit::Sequences),
        };
        let bytes = (tokens.max(1) as u64).saturating_mul(per_token);
        if let (Some(memory), Some(left)) = (self.memory, left)
            && bytes > left
        {
            let expected = format!("{weights} bytes of weights, {activations} of activations and {bytes} of KV cache");
            return Err(Error::request("memory", expected, format!("{memory} bytes")));
        }
        let known = free.unwrap_or(u64::MAX);
        if tokens == 0 || bytes > known {
            let expected = format!("from {per_token} bytes, one token's, to {known}, all that are free");
            return Err(Error::request("KV cache", expected, format!("{tokens} tokens")));
        }
        Ok((tokens, limit))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::ArchSpec;

    const GIB: u64 = 1 << 30;
    const NOTHING: KvBudget = KvBudget { memory: None, kv_memory: None, kv_tokens: None };

    /// #33263, and the 71 GB of a 1B model of #20256: a machine with much memory does not lose it to a cache that no number of
    /// sequences could fill.
    #[test]
    fn issue_20256_the_cache_is_never_more_than_all_sequences_fill() {
        let most = 16 * 4096;
        let of = |budget: KvBudget, free| budget.tokens(32 << 10, 2 * GIB, GIB, free, most).unwrap();
        assert_eq!(of(NOTHING, Some(80 * GIB)), (most, KvLimit::Sequences));
        assert_eq!(of(NOTHING, Some(GIB)), (1 << 14, KvLimit::Free(GIB)));
        assert_eq!(of(NOTHING, None), (most, KvLimit::Sequences));
        let limited = KvBudget { memory: Some(4 * GIB), ..NOTHING };
        assert_eq!(of(limited, Some(80 * GIB)), (1 << 15, KvLimit::Memory));
        let ample = KvBudget { memory: Some(40 * GIB), ..NOTHING };
        assert_eq!(of(ample, Some(80 * GIB)), (most, KvLimit::Sequences));
    }

    /// #6623: a cache of the same bytes held a quarter of the tokens of another model, and nobody said why. The language model
    /// of Llava-1.5-7B has keys and values for each of its 32 heads, Llama-3-8B for 8.
    #[test]
    fn issue_6623_a_token_takes_what_its_heads_take() {
        let tokens = |vocab: usize, inner: usize, kv_heads: usize| {
            let config = format!(
                r#"{{"model_type": "llama", "vocab_size": {vocab}, "hidden_size": 4096, "intermediate_size": {inner},
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": {kv_heads},
                "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "torch_dtype": "float16"}}"#
            );
            let spec = ArchSpec::from_config(Path::new("config.json"), config.as_bytes(), None).unwrap();
            let per_token = spec.cache_shape(0, 32, spec.dtype).bytes_per_token() as u64;
            let budget = KvBudget { memory: Some(24 * GIB), ..NOTHING };
            (per_token, budget.tokens(per_token, 14 * GIB, GIB, Some(24 * GIB), usize::MAX).unwrap().0)
        };
        let ((llava, fewer), (llama, more)) = (tokens(32_064, 11_008, 32), tokens(128_256, 14_336, 8));
        assert_eq!((llava, llama), (512 << 10, 128 << 10));
        assert_eq!((fewer as u64 * llava, more as u64 * llama), (9 * GIB, 9 * GIB));
    }

    #[test]
    fn issue_20256_what_is_asked_for_is_given_or_refused_with_the_numbers() {
        let tokens = KvBudget { kv_tokens: Some(1000), ..NOTHING };
        assert_eq!(tokens.tokens(1024, GIB, GIB, Some(GIB), 10).unwrap(), (1000, KvLimit::Asked));
        let bytes = KvBudget { kv_memory: Some(GIB), ..NOTHING };
        assert_eq!(bytes.tokens(1024, GIB, GIB, Some(GIB), 10).unwrap(), (1 << 20, KvLimit::Asked));
        let cases = [
            (KvBudget { memory: Some(3 << 20), ..NOTHING }, "3145728 bytes"),
            (KvBudget { memory: Some(3 * GIB), kv_memory: Some(2 * GIB), ..NOTHING }, "and 2147483648 of KV"),
            (KvBudget { kv_tokens: Some(1 << 40), ..NOTHING }, "1073741824, all that are free"),
            (KvBudget { kv_memory: Some(100), ..NOTHING }, "from 1024 bytes"),
        ];
        for (budget, part) in cases {
            let error = budget.tokens(1024, GIB, GIB, Some(GIB), 1 << 20).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(part), "{error}");
        }
    }
}
