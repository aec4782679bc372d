//! Which tokens a sequence contains and how often: what penalties look up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The distinct tokens of a sequence, each with how often it was generated. The owner of a sequence adds its tokens one
/// by one, so a step neither copies nor sorts the text so far. Clones share the counts; [`fork`](Self::fork) copies
/// them.
#[derive(Clone, Debug)]
pub struct TokenHistory(Arc<Mutex<Counts>>);

#[derive(Clone, Debug, Default)]
struct Counts {
    /// Each distinct token, in order of its first occurrence, with how often it was generated.
    tokens: Vec<(u32, u32)>,
    /// Indices into `tokens`.
    at: HashMap<u32, usize>,
    highest: Option<u32>,
}

impl Counts {
    fn add(&mut self, token: u32, generated: u32) {
        let at = *self.at.entry(token).or_insert_with(|| {
            self.tokens.push((token, 0));
            self.tokens.len() - 1
        });
        self.tokens[at].1 += generated;
        self.highest = self.highest.max(Some(token));
    }
}

impl TokenHistory {
    /// A prompt's tokens, and those that were generated after it.
    pub fn new(prompt: &[u32], generated: &[u32]) -> Self {
        let mut counts = Counts::default();
        prompt.iter().for_each(|&token| counts.add(token, 0));
        generated.iter().for_each(|&token| counts.add(token, 1));
        Self(Arc::new(Mutex::new(counts)))
    }

    /// Adds a generated token.
    pub fn push(&self, token: u32) {
        self.counts().add(token, 1);
    }

    /// The same tokens so far, for another continuation.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.counts().clone())))
    }

    /// Each distinct token, with how often it was generated.
    pub fn tokens(&self) -> Vec<(u32, u32)> {
        self.counts().tokens.clone()
    }

    /// Calls `visit` with what [`tokens`](Self::tokens) returns, without a copy.
    pub(crate) fn visit(&self, mut visit: impl FnMut(u32, u32)) {
        self.counts().tokens.iter().for_each(|&(token, generated)| visit(token, generated));
    }

    /// The highest token id.
    pub(crate) fn highest(&self) -> Option<u32> {
        self.counts().highest
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn counts_are_those_of_the_text(
            prompt in proptest::collection::vec(0u32..9, 0..30),
            generated in proptest::collection::vec(0u32..9, 0..30),
        ) {
            let (early, late) = generated.split_at(generated.len() / 2);
            let history = TokenHistory::new(&prompt, early);
            let fork = history.fork();
            late.iter().for_each(|&token| history.push(token));
            for (history, generated) in [(&history, &generated[..]), (&fork, early)] {
                let count = |of: &[u32], token| of.iter().filter(|&&t| t == token).count() as u32;
                let mut expected: Vec<(u32, u32)> = (0..9)
                    .filter(|&token| count(&prompt, token) + count(generated, token) > 0)
                    .map(|token| (token, count(generated, token)))
                    .collect();
                let mut found = history.tokens();
                found.sort_unstable();
                proptest::prop_assert_eq!(history.highest(), expected.iter().map(|&(token, _)| token).max());
                expected.sort_unstable();
                proptest::prop_assert_eq!(found, expected);
            }
        }
    }
}
