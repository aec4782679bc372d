//! Requests to measure with: the same ones every time.

use burrstone::Request;
use clap::ValueEnum;

/// A mix of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// 128 prompt tokens, 64 generated
    Fixed,
    /// Lengths as in conversations: many short, some long
    Conversations,
    /// One prompt in ten is long
    LongPrompts,
    /// Prompts of 192 tokens in 4 groups, which share their first 160
    SharedPrefix,
}

impl Workload {
    /// The name as it is given.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// `count` requests, none longer than `context`. Requests of different `round`s have no common prefix.
    pub fn requests(self, count: usize, vocab: usize, context: usize, round: u64) -> Vec<Request> {
        let mut random = Random::new(round);
        let request = |i: usize| {
            let (prompt, output) = match self {
                Self::Fixed => (128, 64),
                // Medians of 48 and 96 tokens, spread by a factor of e either way.
                Self::Conversations => (random.spread(48.0), random.spread(96.0)),
                Self::LongPrompts if i % 10 == 9 => (768, 32),
                Self::LongPrompts => (48, 64),
                Self::SharedPrefix => (192, 32),
            };
            let output = output.min(context / 4).max(1);
            let prompt = prompt.min(context - output).max(1);
            let shared = if self == Self::SharedPrefix { 160.min(prompt) } else { 0 };
            let mut tokens = tokens(shared, vocab, i as u64 % 4);
            tokens.extend(self::tokens(prompt - shared, vocab, 1000 + i as u64));
            Request::tokens(tokens).max_tokens(output).temperature(0.0).ignore_eos(true).cache_salt(round)
        };
        (0..count).map(request).collect()
    }
}

/// Pseudorandom numbers from a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0, below 1.
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(1);
        (mix(self.0) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A length whose logarithm is normal: sums of uniform numbers nearly are.
    fn spread(&mut self, median: f64) -> usize {
        let normal = (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0;
        (median * normal.exp()).round().clamp(4.0, 2048.0) as usize
    }
}

/// Pseudorandom token ids, different for each salt, so that no run finds a prefix of another in the cache.
pub fn tokens(len: usize, vocab: usize, salt: u64) -> Vec<u32> {
    (0..len as u64).map(|i| (mix(salt << 32 | i) % vocab as u64) as u32).collect()
}

/// Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (2014).
fn mix(of: u64) -> u64 {
    let z = of.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burrstone::Prompt;

    #[test]
    fn workloads_are_the_same_every_time_and_fit_the_context() {
        for workload in Workload::value_variants() {
            for context in [64, 1024] {
                let requests = workload.requests(40, 2048, context, 1);
                assert_eq!(requests, workload.requests(40, 2048, context, 1));
                for request in &requests {
                    let Prompt::Tokens(prompt) = &request.prompt else { panic!("no tokens") };
                    assert!(!prompt.is_empty() && prompt.len() + request.max_tokens.unwrap() <= context);
                }
            }
        }
    }
}
