//! Penalties that look at how the text so far went on: the host computes them for each token, as biases.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::error::{Error, Result};
use crate::text::{Piece, Tokenizer};

use super::{Dry, Sampling};

/// The bias of a token that may not come, unless nothing else may.
pub const BAN: f32 = f32::MIN;

/// What one request asks for.
#[derive(Clone, Debug, Default)]
pub struct Repetition {
    pub dry: Option<DryTokens>,
    /// None of these sequences is generated; none is empty.
    pub bad_words: Vec<Vec<u32>>,
}

/// [`Dry`] for a vocabulary.
#[derive(Clone, Debug)]
pub struct DryTokens {
    multiplier: f32,
    base: f32,
    allowed_length: usize,
    breakers: HashSet<u32>,
}

impl DryTokens {
    /// Without a tokenizer there are no breakers.
    ///
    /// # Errors
    /// The tokenizer refuses a token.
    pub fn new(dry: &Dry, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let Dry { multiplier, base, allowed_length, .. } = *dry;
        let vocabulary = tokenizer.map_or(Ok(&[][..]), Tokenizer::vocabulary)?;
        let breaks = |piece: &Piece| match piece {
            Piece::Special(_) => false,
            Piece::Bytes(bytes) => {
                dry.sequence_breakers.iter().any(|text| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
            }
        };
        let breakers = (0u32..).zip(vocabulary).filter(|(_, piece)| breaks(piece)).map(|(id, _)| id).collect();
        Ok(Self { multiplier, base, allowed_length, breakers })
    }

    /// Subtracts from the biases of the tokens that go on with a repeated stretch.
    fn apply(&self, tokens: &[u32], biases: &mut BTreeMap<u32, f32>) {
        let is_open = |token: &&u32| !self.breakers.contains(token);
        let longest = tokens.iter().rev().take_while(is_open).count();
        if longest < self.allowed_length {
            return;
        }
        let mut repeated: BTreeMap<u32, usize> = BTreeMap::new();
        for (back, common) in common_with_end(tokens).into_iter().enumerate().skip(1) {
            let (common, next) = (common.min(longest), tokens[tokens.len() - back]);
            if common >= self.allowed_length && !self.breakers.contains(&next) {
                let most = repeated.entry(next).or_default();
                *most = common.max(*most);
            }
        }
        for (token, common) in repeated {
            let penalty = self.multiplier * self.base.powf((common - self.allowed_length) as f32);
            let bias = biases.entry(token).or_default();
            *bias = lowered(*bias, penalty);
        }
    }
}

/// For each `back`, how many tokens before `tokens[len - back]` are those at the end: the longest common suffix of
/// `tokens[..len - back]` and `tokens`. (The Z algorithm, from the end: linear.)
fn common_with_end(tokens: &[u32]) -> Vec<usize> {
    let len = tokens.len();
    let at = |i: usize| tokens[len - 1 - i];
    let mut common = vec![0; len];
    // The stretch that reaches furthest.
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

/// A bias less a penalty, no lower than a ban; a bias of −∞ stays.
fn lowered(bias: f32, penalty: f32) -> f32 {
    if bias == f32::NEG_INFINITY { bias } else { (bias - penalty).max(BAN) }
}

impl Repetition {
    /// # Errors
    /// Texts are given, and there is no tokenizer, or an empty one among them.
    pub fn new<'a>(sampling: &Sampling, tokenizer: impl Fn() -> Result<&'a Tokenizer>) -> Result<Self> {
        let dry = sampling.dry.as_ref().filter(|dry| dry.multiplier > 0.0);
        // Without a tokenizer there are no texts that could break anything.
        let dry = dry.map(|dry| DryTokens::new(dry, tokenizer().ok())).transpose()?;
        let mut bad_words = Vec::new();
        for word in &sampling.bad_words {
            if word.trim().is_empty() {
                return Err(Error::request("bad_words", "texts", "an empty one"));
            }
            // A word has other tokens where it begins than within a longer one.
            for text in [word.clone(), format!(" {word}")] {
                bad_words.push(tokenizer()?.encode(&text, false)?);
            }
        }
        bad_words.retain(|word| !word.is_empty());
        Ok(Self { dry, bad_words })
    }

    pub fn is_none(&self) -> bool {
        self.dry.is_none() && self.bad_words.is_empty()
    }

    /// Adds what the token after `tokens`, of which `prompt_len` are the prompt's, gets for what came before.
    pub fn apply(&self, tokens: &[u32], prompt_len: usize, biases: &mut BTreeMap<u32, f32>) {
        if let Some(dry) = &self.dry {
            dry.apply(tokens, biases);
        }
        for word in &self.bad_words {
            if let [known @ .., last] = word.as_slice()
                && tokens[prompt_len..].ends_with(known)
            {
                ban(biases, *last);
            }
        }
    }
}

/// No stretch of so many tokens comes twice: what followed each stretch of one less, so that a token costs the same however
/// many there were before.
#[derive(Clone, Debug)]
pub struct Stretches {
    /// Tokens of a stretch less the last.
    len: usize,
    followers: HashMap<Box<[u32]>, Vec<u32>>,
    /// The last tokens, `len` of them once there are as many.
    end: Vec<u32>,
}

impl Stretches {
    /// Of `ngram` tokens, at least 1, behind a prompt.
    pub fn new(ngram: usize, prompt: &[u32]) -> Self {
        let mut stretches = Self { len: ngram.saturating_sub(1), followers: HashMap::new(), end: Vec::new() };
        prompt.iter().for_each(|&token| stretches.push(token));
        stretches
    }

    pub fn push(&mut self, token: u32) {
        if self.end.len() == self.len {
            match self.followers.get_mut(&self.end[..]) {
                Some(followers) => followers.push(token),
                None => {
                    self.followers.insert(self.end.as_slice().into(), vec![token]);
                }
            }
            if self.len == 0 {
                return;
            }
            self.end.remove(0);
        }
        self.end.push(token);
    }

    /// Tokens that would make a stretch that was there.
    pub fn followers(&self) -> &[u32] {
        let is_whole = self.end.len() == self.len;
        self.followers.get(&self.end[..]).filter(|_| is_whole).map_or(&[], Vec::as_slice)
    }
}

/// Bans a token; a bias of −∞ stays.
pub fn ban(biases: &mut BTreeMap<u32, f32>, token: u32) {
    let bias = biases.entry(token).or_default();
    *bias = bias.min(BAN);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dry(allowed_length: usize, breakers: &[u32]) -> DryTokens {
        DryTokens { multiplier: 0.5, base: 2.0, allowed_length, breakers: breakers.iter().copied().collect() }
    }

    fn biases(repetition: &Repetition, tokens: &[u32], prompt_len: usize) -> Vec<(u32, f32)> {
        let mut biases = BTreeMap::new();
        repetition.apply(tokens, prompt_len, &mut biases);
        biases.into_iter().collect()
    }

    /// As the sampler was first written down: each earlier occurrence of the last token, compared token by token.
    fn dry_by_hand(dry: &DryTokens, tokens: &[u32]) -> Vec<(u32, f32)> {
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
            breakers in prop::collection::vec(0u32..6, 0..2),
        ) {
            let dry = dry(allowed, &breakers);
            let repetition = Repetition { dry: Some(dry.clone()), ..Repetition::default() };
            prop_assert_eq!(biases(&repetition, &tokens, 0), dry_by_hand(&dry, &tokens));
        }

        /// Of what is not banned, nothing makes a stretch that was there; of what is, everything does.
        #[test]
        fn issue_7842_no_stretch_comes_twice(tokens in prop::collection::vec(0u32..4, 0..40), ngram in 1usize..5) {
            // Some are the prompt's, others generated.
            let (prompt, generated) = tokens.split_at(tokens.len() / 2);
            let mut stretches = Stretches::new(ngram, prompt);
            generated.iter().for_each(|&token| stretches.push(token));
            let banned = stretches.followers();
            for next in 0..4 {
                let longer: Vec<u32> = tokens.iter().copied().chain([next]).collect();
                let last = &longer[longer.len().saturating_sub(ngram)..];
                let twice = longer.len() >= ngram && tokens.windows(ngram).any(|stretch| stretch == last);
                prop_assert_eq!(banned.contains(&next), twice, "{} after {:?}", next, tokens);
            }
        }
    }

    #[test]
    fn penalties_grow_with_what_is_repeated() {
        let repetition = Repetition { dry: Some(dry(2, &[])), ..Repetition::default() };
        assert_eq!(biases(&repetition, &[1, 2, 9, 2], 0), []);
        assert_eq!(biases(&repetition, &[1, 2, 9, 1, 2], 0), [(9, -0.5)]);
        assert_eq!(biases(&repetition, &[7, 1, 2, 9, 7, 1, 2], 0), [(9, -1.0)]);
        let broken = Repetition { dry: Some(dry(2, &[1])), ..Repetition::default() };
        assert_eq!(biases(&broken, &[7, 1, 2, 9, 7, 1, 2], 0), []);
        // However long, it stays a number.
        assert_eq!(biases(&repetition, &[3; 2000], 0), [(3, BAN)]);
    }

    #[test]
    fn bad_words_are_not_completed() {
        let repetition = Repetition { bad_words: vec![vec![5], vec![1, 2, 3]], ..Repetition::default() };
        assert_eq!(biases(&repetition, &[1, 2], 0), [(3, BAN), (5, BAN)]);
        // What the prompt says is no part of a word.
        assert_eq!(biases(&repetition, &[1, 2], 1), [(5, BAN)]);
        assert_eq!(biases(&repetition, &[1], 0), [(5, BAN)]);
    }

    #[test]
    fn minus_infinity_stays() {
        let mut biases = BTreeMap::from([(3, f32::NEG_INFINITY), (9, f32::NEG_INFINITY)]);
        ban(&mut biases, 3);
        dry(1, &[]).apply(&[1, 9, 1], &mut biases);
        assert_eq!(biases, BTreeMap::from([(3, f32::NEG_INFINITY), (9, f32::NEG_INFINITY)]));
    }
}
