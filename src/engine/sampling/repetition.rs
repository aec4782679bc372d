//! Bans that depend on the order of tokens: of repeated n-grams and bad words. The host computes them for each token,
//! as biases.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::error::{Error, Result};
use crate::text::Tokenizer;

use super::Sampling;

/// The bias of a banned token. It is finite: the token may come where nothing else is left.
pub const BAN: f32 = f32::MIN;

/// Token sequences that are not generated; none is empty.
#[derive(Clone, Debug, Default)]
pub struct BadWords(Vec<Vec<u32>>);

impl BadWords {
    /// For a model with `vocab` tokens.
    ///
    /// # Errors
    /// Texts are given, and there is no tokenizer, or an empty one among them.
    pub fn new<'a>(sampling: &Sampling, vocab: usize, tokenizer: impl Fn() -> Result<&'a Tokenizer>) -> Result<Self> {
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
        Ok(Self(bad_words))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bans tokens that would complete a word after `tokens`, of which the first `prompt_len` are the prompt's.
    pub fn apply(&self, tokens: &[u32], prompt_len: usize, biases: &mut BTreeMap<u32, f32>) {
        for word in &self.0 {
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

    use super::*;

    fn biases(bad_words: &BadWords, tokens: &[u32], prompt_len: usize) -> Vec<(u32, f32)> {
        let mut biases = BTreeMap::new();
        bad_words.apply(tokens, prompt_len, &mut biases);
        biases.into_iter().collect()
    }

    proptest! {
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
        let bad_words = BadWords(vec![vec![5], vec![1, 2, 3]]);
        assert_eq!(biases(&bad_words, &[1, 2], 0), [(3, BAN), (5, BAN)]);
        // What the prompt says is no part of a word.
        assert_eq!(biases(&bad_words, &[1, 2], 1), [(5, BAN)]);
        assert_eq!(biases(&bad_words, &[1], 0), [(5, BAN)]);
    }

    #[test]
    fn minus_infinity_stays() {
        let mut biases = BTreeMap::from([(3, f32::NEG_INFINITY)]);
        ban(&mut biases, 3);
        assert_eq!(biases, BTreeMap::from([(3, f32::NEG_INFINITY)]));
    }
}
