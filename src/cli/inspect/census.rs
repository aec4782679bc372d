//! Whose bytes they are: tensors counted by owner and by dtype.

use burrstone::model::TensorInfo;
use serde::Serialize;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    Embedding,
    Attention,
    FeedForward,
    Norms,
    Head,
    Other,
}

impl Owner {
    pub const ALL: [Self; 6] =
        [Self::Embedding, Self::Attention, Self::FeedForward, Self::Norms, Self::Head, Self::Other];

    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::FeedForward => "feed-forward",
            Self::Norms => "norms",
            Self::Head => "head",
            Self::Other => "other",
        }
    }

    /// By the names that Hugging Face models give their tensors. Norms within attention count as norms.
    fn of(tensor: &str) -> Self {
        let has = |part: &str| tensor.split('.').any(|p| p == part);
        let norm = |part: &str| part.ends_with("norm") || part.ends_with("layernorm");
        match () {
            () if tensor.split('.').any(norm) => Self::Norms,
            () if has("embed_tokens") => Self::Embedding,
            () if has("lm_head") => Self::Head,
            () if has("self_attn") => Self::Attention,
            () if has("mlp") => Self::FeedForward,
            () => Self::Other,
        }
    }
}

/// How much there is of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    pub tensors: usize,
    pub parameters: u64,
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, tensor: &TensorInfo) {
        self.tensors += 1;
        self.parameters += tensor.parameters;
        self.bytes += tensor.bytes;
    }
}

pub struct Census {
    pub total: Amount,
    /// In the order of [`Owner::ALL`], those that own something.
    pub owners: Vec<(Owner, Amount)>,
    /// By the name of the stored dtype, the largest first.
    pub dtypes: Vec<(String, Amount)>,
}

impl Census {
    pub fn of(tensors: &[TensorInfo]) -> Self {
        let mut total = Amount::default();
        let mut owners = Owner::ALL.map(|owner| (owner, Amount::default()));
        let mut dtypes: Vec<(String, Amount)> = Vec::new();
        for tensor in tensors {
            total.add(tensor);
            let owner = Owner::of(&tensor.name);
            for (_, amount) in owners.iter_mut().filter(|(o, _)| *o == owner) {
                amount.add(tensor);
            }
            match dtypes.iter_mut().find(|(name, _)| *name == tensor.stored) {
                Some((_, amount)) => amount.add(tensor),
                None => {
                    let mut amount = Amount::default();
                    amount.add(tensor);
                    dtypes.push((tensor.stored.clone(), amount));
                }
            }
        }
        dtypes.sort_by_key(|(_, amount)| std::cmp::Reverse(amount.bytes));
        let owners = owners.into_iter().filter(|(_, amount)| amount.tensors > 0).collect();
        Self { total, owners, dtypes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_follow_from_names() {
        let cases = [
            ("model.embed_tokens.weight", Owner::Embedding),
            ("model.layers.0.self_attn.q_proj.bias", Owner::Attention),
            ("model.layers.0.self_attn.q_norm.weight", Owner::Norms),
            ("model.layers.11.post_attention_layernorm.weight", Owner::Norms),
            ("layers.3.mlp.down_proj.weight", Owner::FeedForward),
            ("model.norm.weight", Owner::Norms),
            ("lm_head.weight", Owner::Head),
            ("model.layers.0.self_attn.rotary_emb.inv_freq", Owner::Attention),
            ("vision.patch.weight", Owner::Other),
        ];
        for (name, owner) in cases {
            assert_eq!(Owner::of(name), owner, "{name}");
        }
    }
}
