//! DRY: penalties for tokens that would extend a repetition. The host computes them for each token, as biases.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::error::Result;
use crate::text::{Piece, Tokenizer};

use super::Dry;
use super::repetition::BAN;

/// The repetitions that the next token may extend. A token costs as much time as it has earlier occurrences in the
/// window, the last `last_n` tokens.
#[derive(Clone, Debug)]
pub struct DryPenalty {
    settings: Arc<DryTokens>,
    /// Tokens so far.
    len: usize,
    /// Tokens at the end that are not sequence breakers.
    unbroken: usize,
    /// Positions of each token, ascending; those before the window are dropped with the token's next occurrence.
    positions: HashMap<u32, Vec<usize>>,
    /// For each earlier occurrence of the last token, ascending: the position after it, and how many tokens before that
    /// position equal those at the end.
    matches: Vec<(usize, usize)>,
}

/// [`Dry`] with the token ids of its sequence breakers.
#[derive(Debug)]
struct DryTokens {
    multiplier: f32,
    base: f32,
    allowed_length: usize,
    last_n: usize,
    breakers: HashSet<u32>,
}

impl DryTokens {
    /// Without a tokenizer there are no breakers.
    fn new(dry: &Dry, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let Dry { multiplier, base, allowed_length, last_n, .. } = *dry;
        let vocabulary = tokenizer.map_or(Ok(&[][..]), Tokenizer::vocabulary)?;
        let breaks = |piece: &Piece| match piece {
            Piece::Special(_) => false,
            Piece::Bytes(bytes) => {
                dry.sequence_breakers.iter().any(|text| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
            }
        };
        let breakers = (0u32..).zip(vocabulary).filter(|(_, piece)| breaks(piece)).map(|(id, _)| id).collect();
        Ok(Self { multiplier, base, allowed_length, last_n, breakers })
    }
}

impl DryPenalty {
    /// After a prompt. Without a tokenizer there are no sequence breakers.
    ///
    /// # Errors
    /// The tokenizer refuses a token.
    pub fn new(dry: &Dry, tokenizer: Option<&Tokenizer>, prompt: &[u32]) -> Result<Self> {
        Ok(Self::after(DryTokens::new(dry, tokenizer)?, prompt))
    }

    fn after(settings: DryTokens, prompt: &[u32]) -> Self {
        let (len, start) = (prompt.len(), prompt.len().saturating_sub(settings.last_n));
        let window = &prompt[start..];
        let mut positions: HashMap<u32, Vec<usize>> = HashMap::new();
        (start..).zip(window).for_each(|(at, &token)| positions.entry(token).or_default().push(at));
        let common = common_with_end(window).into_iter().enumerate().rev();
        let matches = common.filter(|(_, common)| *common > 0).map(|(back, common)| (len - back, common)).collect();
        let unbroken = prompt.iter().rev().take_while(|token| !settings.breakers.contains(token)).count();
        Self { settings: Arc::new(settings), len, unbroken, positions, matches }
    }

    pub fn push(&mut self, token: u32) {
        let start = (self.len + 1).saturating_sub(self.settings.last_n);
        let positions = self.positions.entry(token).or_default();
        positions.drain(..positions.partition_point(|&at| at < start));
        let mut matches = self.matches.iter().peekable();
        let longer = |&at: &usize| {
            while matches.next_if(|(after, _)| *after < at).is_some() {}
            let common = matches.next_if(|(after, _)| *after == at).map_or(0, |(_, common)| *common);
            (at + 1, common + 1)
        };
        self.matches = positions.iter().map(longer).collect();
        positions.push(self.len);
        self.len += 1;
        self.unbroken = if self.settings.breakers.contains(&token) { 0 } else { self.unbroken + 1 };
    }

    /// Lowers the biases of tokens that would extend a repetition. `tokens` are those of the prompt and those that were
    /// pushed.
    pub fn apply(&self, tokens: &[u32], biases: &mut BTreeMap<u32, f32>) {
        let DryTokens { multiplier, base, allowed_length, last_n, breakers } = &*self.settings;
        let start = tokens.len().saturating_sub(*last_n);
        let mut repeated: BTreeMap<u32, usize> = BTreeMap::new();
        for &(after, common) in &self.matches {
            let common = common.min(self.unbroken).min(after.saturating_sub(start));
            let Some(next) = tokens.get(after).filter(|next| !breakers.contains(next)) else { continue };
            if common >= *allowed_length {
                let most = repeated.entry(*next).or_default();
                *most = common.max(*most);
            }
        }
        for (token, common) in repeated {
            let penalty = multiplier * base.powf((common - allowed_length) as f32);
            let bias = biases.entry(token).or_default();
            *bias = lowered(*bias, penalty);
        }
    }
}

/// For each `back`, the length of the longest common suffix of `tokens[..len - back]` and `tokens`: the Z algorithm,
/// from the end, in linear time.
fn common_with_end(tokens: &[u32]) -> Vec<usize> {
    let len = tokens.len();
    let at = |i: usize| tokens[len - 1 - i];
    let mut common = vec![0; len];
    // The match that reaches furthest.
    let (mut start, mut end) = (0, 0);
    for i in 1..len {
        let mut known = if i < end { common[i - start].min(end - i) } else { 0 };
        while i + known < len && at(known) == at(i + known) {
            known += 1;
        }
        if i + known > end {
            (start, end) = (i, i + known);
        }
        common[i] = known;
    }
    common
}

/// A bias less a penalty, but not below [`BAN`]; −∞ stays.
fn lowered(bias: f32, penalty: f32) -> f32 {
    if bias == f32::NEG_INFINITY { bias } else { (bias - penalty).max(BAN) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MAX_LAST_N;
    use super::*;

    fn dry(allowed_length: usize, last_n: usize, breakers: &[u32]) -> DryTokens {
        let breakers = breakers.iter().copied().collect();
        DryTokens { multiplier: 0.5, base: 2.0, allowed_length, last_n, breakers }
    }

    fn biases(dry: DryTokens, tokens: &[u32]) -> Vec<(u32, f32)> {
        let mut biases = BTreeMap::new();
        DryPenalty::after(dry, tokens).apply(tokens, &mut biases);
        biases.into_iter().collect()
    }

    /// As the sampler was first written down: each earlier occurrence of the last token, compared token by token.
    fn dry_by_hand(dry: &DryTokens, tokens: &[u32]) -> Vec<(u32, f32)> {
        let tokens = &tokens[tokens.len().saturating_sub(dry.last_n)..];
        let Some((&last, _)) = tokens.split_last() else { return Vec::new() };
        if dry.breakers.contains(&last) {
            return Vec::new();
        }
        let mut lengths = BTreeMap::new();
        for i in (0..tokens.len() - 1).filter(|&i| tokens[i] == last && !dry.breakers.contains(&tokens[i + 1])) {
            let mut length = 1;
            while length <= i {
                let before = tokens[tokens.len() - 1 - length];
                if tokens[i - length] != before || dry.breakers.contains(&before) {
                    break;
                }
                length += 1;
            }
            let most = lengths.entry(tokens[i + 1]).or_insert(0);
            *most = length.max(*most);
        }
        let long = lengths.into_iter().filter(|(_, length)| *length >= dry.allowed_length);
        long.map(|(token, length)| {
            (token, -(dry.multiplier * dry.base.powf((length - dry.allowed_length) as f32)).min(f32::MAX))
        })
        .collect()
    }

    proptest! {
        #[test]
        fn issue_7842_dry_is_what_was_written_down(
            tokens in prop::collection::vec(0u32..4, 0..60),
            allowed in 1usize..4,
            last_n in 1usize..70,
            breakers in prop::collection::vec(0u32..6, 0..2),
            prompt_len in 0usize..60,
        ) {
            let expected = dry_by_hand(&dry(allowed, last_n, &breakers), &tokens);
            let (prompt, generated) = tokens.split_at(prompt_len.min(tokens.len()));
            let mut penalty = DryPenalty::after(dry(allowed, last_n, &breakers), prompt);
            generated.iter().for_each(|&token| penalty.push(token));
            let mut biases = BTreeMap::new();
            penalty.apply(&tokens, &mut biases);
            prop_assert_eq!(biases.into_iter().collect::<Vec<_>>(), expected);
        }
    }

    /// A token costs what its earlier occurrences in the window cost, and memory grows by a constant for each.
    #[test]
    fn only_earlier_occurrences_of_the_last_token_are_searched() {
        let tokens: Vec<u32> = (0..10_000).map(|at| if at % 100 == 0 { 7 } else { 1000 + at }).collect();
        let mut penalty = DryPenalty::after(dry(2, 1000, &[]), &tokens[..5000]);
        tokens[5000..].iter().for_each(|&token| penalty.push(token));
        assert_eq!((penalty.matches.len(), penalty.positions[&7].len()), (0, 10));
        penalty.push(7);
        assert_eq!(penalty.matches.len(), 9);
    }

    #[test]
    fn penalties_grow_with_what_is_repeated() {
        let of = |tokens: &[u32]| biases(dry(2, MAX_LAST_N, &[]), tokens);
        assert_eq!(of(&[1, 2, 9, 2]), []);
        assert_eq!(of(&[1, 2, 9, 1, 2]), [(9, -0.5)]);
        assert_eq!(of(&[7, 1, 2, 9, 7, 1, 2]), [(9, -1.0)]);
        assert_eq!(biases(dry(2, MAX_LAST_N, &[1]), &[7, 1, 2, 9, 7, 1, 2]), []);
        // However long, it stays a number.
        assert_eq!(of(&[3; 2000]), [(3, BAN)]);
    }

    #[test]
    fn only_the_last_tokens_are_searched() {
        let tokens = [1, 2, 9, 7, 8, 1, 2];
        let of = |last_n| biases(dry(2, last_n, &[]), &tokens);
        assert_eq!(of(7), [(9, -0.5)]);
        assert_eq!(of(6), []);
        assert_eq!(of(1), []);
    }

    #[test]
    fn minus_infinity_stays() {
        let mut biases = BTreeMap::from([(9, f32::NEG_INFINITY)]);
        DryPenalty::after(dry(1, MAX_LAST_N, &[]), &[1, 9, 1]).apply(&[1, 9, 1], &mut biases);
        assert_eq!(biases, BTreeMap::from([(9, f32::NEG_INFINITY)]));
    }
}
