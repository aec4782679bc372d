//! Repetition penalties that depend on the order of tokens: DRY, n-gram bans and bad words. The host computes them for
//! each token, as biases.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::error::{Error, Result};
use crate::text::{Piece, Tokenizer};

use super::{Dry, Sampling};

/// The bias of a banned token. It is finite: the token may come where nothing else is left.
pub const BAN: f32 = f32::MIN;

/// The DRY and bad-word settings of a request.
#[derive(Clone, Debug, Default)]
pub struct Repetition {
    pub dry: Option<DryTokens>,
    /// Token sequences that are not generated; none is empty.
    pub bad_words: Vec<Vec<u32>>,
}

/// [`Dry`] with the token ids of its sequence breakers.
#[derive(Clone, Debug)]
pub struct DryTokens {
    multiplier: f32,
    base: f32,
    allowed_length: usize,
    last_n: usize,
    breakers: HashSet<u32>,
}

impl DryTokens {
    /// Without a tokenizer there are no breakers.
    ///
    /// # Errors
    /// The tokenizer refuses a token.
    pub fn new(dry: &Dry, tokenizer: Option<&Tokenizer>) -> Result<Self> {
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

    /// Lowers the biases of tokens that would extend a repetition.
    fn apply(&self, tokens: &[u32], biases: &mut BTreeMap<u32, f32>) {
        let tokens = &tokens[tokens.len().saturating_sub(self.last_n)..];
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

impl Repetition {
    /// For a model with `vocab` tokens.
    ///
    /// # Errors
    /// Texts are given, and there is no tokenizer, or an empty one among them.
    pub fn new<'a>(sampling: &Sampling, vocab: usize, tokenizer: impl Fn() -> Result<&'a Tokenizer>) -> Result<Self> {
        let dry = sampling.dry.as_ref().filter(|dry| dry.multiplier > 0.0);
        // Without a tokenizer there are no texts that could break anything.
        let dry = dry.map(|dry| DryTokens::new(dry, tokenizer().ok())).transpose()?;
        let mut bad_words = Vec::new();
        for word in &sampling.bad_words {
            if word.trim().is_empty() {
                return Err(Error::request("bad_words", "texts", "an empty one"));
            }
            // At the start of a word most tokenizers have other tokens, with the space.
            for text in [word.clone(), format!(" {word}")] {
                bad_words.push(tokenizer()?.encode(&text, false)?);
            }
        }
        // A tokenizer may have more tokens than the model, which cannot generate such a word.
        bad_words.retain(|word| !word.is_empty() && word.iter().all(|&token| (token as usize) < vocab));
        Ok(Self { dry, bad_words })
    }

    pub fn is_none(&self) -> bool {
        self.dry.is_none() && self.bad_words.is_empty()
    }

    /// Adds the biases of the token after `tokens`, of which the first `prompt_len` are the prompt's.
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

/// Bans tokens that would repeat an n-gram. It keeps hashes of the n-grams so far, so memory grows by a constant for
/// each token, and a token costs the same whatever `n` is.
///
/// Two n-grams with the same hash would be taken for one. For a million tokens the chance is below one in a million.
#[derive(Clone, Debug)]
pub struct NgramBan {
    /// The last `n - 1` tokens, or fewer at the start.
    end: VecDeque<u32>,
    /// `n - 1`.
    len: usize,
    /// The hash of `end`.
    hash: u64,
    /// `BASE` to the power of `len - 1`: the weight of the first token of `end`.
    first_weight: u64,
    /// Hashes of all n-grams.
    ngrams: HashSet<u64>,
    /// The last tokens of the n-grams, by the hash of the tokens before.
    followers: HashMap<u64, Vec<u32>>,
}

/// A hash is a polynomial of the tokens, evaluated at `BASE` modulo this prime.
const PRIME: u64 = (1 << 61) - 1;
const BASE: u64 = 0x0d5a_61f1_3c7b_9e2d;

fn mul_add(a: u64, b: u64, c: u64) -> u64 {
    ((u128::from(a) * u128::from(b) + u128::from(c)) % u128::from(PRIME)) as u64
}

fn power(mut base: u64, mut exponent: usize) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent % 2 == 1 {
            result = mul_add(result, base, 0);
        }
        base = mul_add(base, base, 0);
        exponent /= 2;
    }
    result
}

impl NgramBan {
    /// For n-grams of `n` tokens, at least 1, after a prompt.
    pub fn new(n: usize, prompt: &[u32]) -> Self {
        let len = n.saturating_sub(1);
        let mut ngram_ban = Self {
            end: VecDeque::new(),
            len,
            hash: 0,
            first_weight: power(BASE, len.saturating_sub(1)),
            ngrams: HashSet::new(),
            followers: HashMap::new(),
        };
        prompt.iter().for_each(|&token| ngram_ban.push(token));
        ngram_ban
    }

    pub fn push(&mut self, token: u32) {
        // From 1, so that leading zeros count.
        let term = u64::from(token) + 1;
        if self.end.len() == self.len {
            if self.ngrams.insert(mul_add(self.hash, BASE, term)) {
                self.followers.entry(self.hash).or_default().push(token);
            }
            if self.len == 0 {
                return;
            }
            if let Some(first) = self.end.pop_front() {
                let gone = mul_add(u64::from(first) + 1, self.first_weight, 0);
                self.hash = (self.hash + PRIME - gone) % PRIME;
            }
        }
        self.hash = mul_add(self.hash, BASE, term);
        self.end.push_back(token);
    }

    /// Tokens that would repeat an n-gram.
    pub fn banned(&self) -> &[u32] {
        let is_whole = self.end.len() == self.len;
        self.followers.get(&self.hash).filter(|_| is_whole).map_or(&[], Vec::as_slice)
    }
}

/// Bans a token unless nothing else is left; −∞ stays.
pub fn ban(biases: &mut BTreeMap<u32, f32>, token: u32) {
    let bias = biases.entry(token).or_default();
    *bias = bias.min(BAN);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MAX_LAST_N;
    use super::*;

    fn dry(allowed_length: usize, breakers: &[u32]) -> DryTokens {
        let breakers = breakers.iter().copied().collect();
        DryTokens { multiplier: 0.5, base: 2.0, allowed_length, last_n: MAX_LAST_N, breakers }
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
            let mut ngram_ban = NgramBan::new(ngram, prompt);
            generated.iter().for_each(|&token| ngram_ban.push(token));
            let banned = ngram_ban.banned();
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
    fn only_the_last_tokens_are_searched() {
        let tokens = [1, 2, 9, 7, 8, 1, 2];
        let of = |last_n| {
            let dry = DryTokens { last_n, ..dry(2, &[]) };
            biases(&Repetition { dry: Some(dry), ..Repetition::default() }, &tokens, 0)
        };
        assert_eq!(of(7), [(9, -0.5)]);
        assert_eq!(of(6), []);
        assert_eq!(of(1), []);
    }

    /// A long n-gram takes no more room than a short one, and leading zeros are tokens like others.
    #[test]
    fn ngrams_of_any_length_cost_the_same() {
        let prompt: Vec<u32> = (0..5000).collect();
        for n in [2, 3000] {
            let ngram_ban = NgramBan::new(n, &prompt);
            assert_eq!((ngram_ban.ngrams.len(), ngram_ban.followers.len()), (5001 - n, 5001 - n));
            assert!(ngram_ban.end.len() < n);
        }
        assert_eq!(NgramBan::new(3, &[0, 1, 5, 1, 1]).banned(), [0; 0]);
        assert_eq!(NgramBan::new(3, &[0, 1, 5, 0, 1]).banned(), [5]);
        // A token that comes often is banned once.
        assert_eq!(NgramBan::new(1, &[4; 1000]).banned(), [4]);
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
