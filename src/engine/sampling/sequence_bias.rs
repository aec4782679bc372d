//! Biases of tokens that would complete a sequence: the checkpoint's `sequence_bias` and its bad words of several tokens.

use std::collections::BTreeMap;

use crate::model::GenerationConfig;

use super::repetition::ban;

/// Token sequences, none of them empty, and the biases of their last tokens.
#[derive(Clone, Debug, Default)]
pub struct SequenceBias(Vec<(Vec<u32>, f32)>);

impl SequenceBias {
    /// For a model with `vocab` tokens, which cannot generate sequences with others.
    pub fn new(defaults: &GenerationConfig, vocab: usize) -> Self {
        let biases = defaults.sequence_bias.iter();
        Self(biases.filter(|(tokens, _)| tokens.iter().all(|&token| (token as usize) < vocab)).cloned().collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the biases of the token after `tokens`, prompt included. As in `transformers`, a text that is shorter than
    /// a sequence does not count as its beginning.
    pub fn apply(&self, tokens: &[u32], biases: &mut BTreeMap<u32, f32>) {
        for (sequence, bias) in &self.0 {
            if let [known @ .., last] = sequence.as_slice()
                && sequence.len() <= tokens.len()
                && tokens.ends_with(known)
            {
                match *bias {
                    f32::NEG_INFINITY => ban(biases, *last),
                    bias => *biases.entry(*last).or_default() += bias,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::repetition::BAN;
    use super::*;

    #[test]
    fn the_last_token_of_a_sequence_is_biased_after_the_others() {
        let sequence_bias = vec![
            (vec![5], 0.5),
            (vec![1, 5], 2.0),
            (vec![7, 1, 6], -1.0),
            (vec![1, 8], f32::NEG_INFINITY),
            (vec![1, 100], 3.0),
        ];
        let defaults = GenerationConfig { sequence_bias, ..GenerationConfig::default() };
        let of = |tokens: &[u32]| {
            let mut biases = BTreeMap::new();
            SequenceBias::new(&defaults, 100).apply(tokens, &mut biases);
            biases.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(of(&[9, 7, 1]), [(5, 2.5), (6, -1.0), (8, BAN)]);
        assert_eq!(of(&[9, 1]), [(5, 2.5), (8, BAN)]);
        assert_eq!(of(&[7, 1]), [(5, 2.5), (8, BAN)]);
        assert_eq!(of(&[1, 9]), [(5, 0.5)]);
    }
}
