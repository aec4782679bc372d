//! How tokens are chosen: a request's sampling options, penalties, constraints, logits processors and end conditions.

mod constraint;
mod editor;
mod finish;
mod guarded;
mod processor;
mod repetition;
mod repetition_detection;
mod rules;

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::model::GenerationConfig;

pub use constraint::{Constraint, ConstraintState};
pub(super) use constraint::{Grammars, Guide, Masks};
pub(super) use editor::{Edited, Editor};
pub use finish::FinishReason;
pub use processor::{LogitsContext, LogitsProcessor};
pub(super) use repetition::{Repetition, Stretches};
pub(super) use repetition_detection::Detector;
pub use repetition_detection::RepetitionDetection;
pub(super) use rules::Rules;

/// How tokens are chosen. `None` takes what the checkpoint's `generation_config.json` says, and where that is silent
/// too, greedy choice without filters. A filter (`top_k`, `top_p`, `min_p`, `typical_p`, applied in this order, each to
/// what those before it leave) without a temperature samples at 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token.
    pub temperature: Option<f32>,
    /// Keeps the smallest set of most likely tokens that reaches this probability, in (0, 1].
    pub top_p: Option<f32>,
    /// Keeps this many most likely tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Drops tokens less likely than this fraction of the most likely one, in [0, 1].
    pub min_p: Option<f32>,
    /// Keeps the smallest set of tokens that reaches this probability, in (0, 1], of those whose surprise is nearest to
    /// what is to be expected; 1 keeps all.
    pub typical_p: Option<f32>,
    /// Makes tokens that occurred before less likely; 1 does nothing.
    pub repetition_penalty: Option<f32>,
    /// Is subtracted once from the logit of every token that was generated, from -2 to 2; 0 does nothing.
    pub presence_penalty: f32,
    /// Is subtracted from the logit of a token as often as it was generated, from -2 to 2; 0 does nothing.
    pub frequency_penalty: f32,
    /// No stretch of so many tokens, the prompt's included, comes twice, unless nothing else may come; 0 lets all.
    pub no_repeat_ngram_size: Option<usize>,
    /// Makes it less likely to go on with what is being repeated.
    pub dry: Option<Dry>,
    /// Texts that are not generated, at the start of a word or within one, as the tokenizer cuts them.
    pub bad_words: Vec<String>,
    /// Token ids and what is added to their logits, after the penalties; -∞ bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Draws are a function of the seed and the position; `None` takes one at random.
    pub seed: Option<u64>,
}

/// Don't Repeat Yourself: the longer a stretch of the text so far that is being repeated, the less likely the token
/// that would go on with it. A token that would extend a repeated stretch of `n` tokens loses
/// `multiplier · base^(n − allowed_length)` from its logit, where `n` is at least `allowed_length`. (The sampler of
/// text-generation-webui's pull request 5677, by p-e-w.)
#[derive(Clone, Debug, PartialEq)]
pub struct Dry {
    /// A number from 0 up; 0 does nothing.
    pub multiplier: f32,
    /// A number from 1 up.
    pub base: f32,
    /// Stretches of fewer tokens may be repeated freely; at least 1.
    pub allowed_length: usize,
    /// No stretch reaches over a token that has one of these texts in it.
    pub sequence_breakers: Vec<String>,
}

impl Default for Dry {
    fn default() -> Self {
        let sequence_breakers = ["\n", ":", "\"", "*"].map(str::to_owned).to_vec();
        Self { multiplier: 0.8, base: 1.75, allowed_length: 2, sequence_breakers }
    }
}

impl Dry {
    pub(in crate::engine) fn check(&self) -> Result<()> {
        let check = |field: &str, value: f32, good: bool, expected: &str| {
            if good { Ok(()) } else { Err(Error::request(field, expected, value)) }
        };
        let (multiplier, base) = (self.multiplier, self.base);
        check("dry_multiplier", multiplier, multiplier.is_finite() && multiplier >= 0.0, "a number from 0 up")?;
        check("dry_base", base, base.is_finite() && base >= 1.0, "a number from 1 up")?;
        if self.allowed_length == 0 {
            return Err(Error::request("dry_allowed_length", "at least 1", 0));
        }
        match self.sequence_breakers.iter().any(String::is_empty) {
            true => Err(Error::request("dry_sequence_breakers", "texts that are not empty", "an empty one")),
            false => Ok(()),
        }
    }
}

/// [`Sampling`] with every question answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: usize,
    pub min_p: f32,
    pub typical_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub no_repeat_ngram_size: usize,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
}

impl Sampling {
    /// For a vocabulary of so many tokens.
    ///
    /// # Errors
    /// A value outside its range.
    pub(in crate::engine) fn resolve(&self, defaults: &GenerationConfig, vocab: usize) -> Result<Resolved> {
        let sampled_by_default = defaults.do_sample == Some(true);
        let shares = [self.top_p, self.min_p, self.typical_p];
        let filtered = self.top_k.is_some() || shares.iter().any(Option::is_some);
        let temperature = match self.temperature {
            Some(temperature) => temperature,
            None if sampled_by_default => defaults.temperature.unwrap_or(1.0),
            None if filtered => 1.0,
            None => 0.0,
        };
        // A checkpoint that says not to sample has no opinion on how to.
        let default = |value: Option<f32>| value.filter(|_| sampled_by_default);
        let resolved = Resolved {
            temperature,
            top_p: self.top_p.or(default(defaults.top_p)).unwrap_or(1.0),
            top_k: self.top_k.or(defaults.top_k.filter(|_| sampled_by_default)).unwrap_or(0),
            min_p: self.min_p.or(default(defaults.min_p)).unwrap_or(0.0),
            typical_p: self.typical_p.or(default(defaults.typical_p)).unwrap_or(1.0),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size.or(defaults.no_repeat_ngram_size).unwrap_or(0),
            logit_bias: self.logit_bias.clone(),
            seed: match self.seed {
                Some(seed) => seed,
                None => getrandom::u64()
                    .map_err(|cause| Error::request("seed", "a number, as the system has none at random", cause))?,
            },
        };
        let check = |field: &str, value: f32, good: bool, expected: &str| {
            if good { Ok(()) } else { Err(Error::request(field, expected, value)) }
        };
        let r = &resolved;
        check("temperature", r.temperature, r.temperature.is_finite() && r.temperature >= 0.0, "a number from 0 up")?;
        check("top_p", r.top_p, r.top_p > 0.0 && r.top_p <= 1.0, "a number above 0, at most 1")?;
        check("min_p", r.min_p, (0.0..=1.0).contains(&r.min_p), "a number from 0 to 1")?;
        let share = r.typical_p;
        check("typical_p", share, share > 0.0 && share <= 1.0, "a number above 0, at most 1")?;
        let penalty = r.repetition_penalty;
        check("repetition_penalty", penalty, penalty.is_finite() && penalty > 0.0, "a number above 0")?;
        for (field, penalty) in [("presence_penalty", r.presence_penalty), ("frequency_penalty", r.frequency_penalty)] {
            check(field, penalty, (-2.0..=2.0).contains(&penalty), "a number from -2 to 2")?;
        }
        for &(token, bias) in &r.logit_bias {
            check("logit_bias", bias, bias < f32::INFINITY, "finite numbers or -infinity")?;
            if token as usize >= vocab {
                return Err(Error::request("logit_bias", format!("token ids below {vocab}"), token));
            }
        }
        if let Some(dry) = &self.dry {
            dry.check()?;
        }
        let banned: HashSet<u32> = resolved.banned().collect();
        if banned.len() >= vocab {
            return Err(Error::request("logit_bias", "a token that is left", "a ban of all"));
        }
        Ok(resolved)
    }
}

impl Resolved {
    /// Tokens with a bias of −∞.
    pub fn banned(&self) -> impl Iterator<Item = u32> {
        self.logit_bias.iter().filter(|(_, bias)| *bias == f32::NEG_INFINITY).map(|(token, _)| *token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: usize = 100;

    fn sampled() -> GenerationConfig {
        GenerationConfig {
            do_sample: Some(true),
            temperature: Some(0.6),
            top_p: Some(0.9),
            top_k: Some(20),
            ..GenerationConfig::default()
        }
    }

    #[test]
    fn the_checkpoint_decides_where_the_caller_does_not() {
        let r = Sampling::default().resolve(&sampled(), VOCAB).unwrap();
        assert_eq!((r.temperature, r.top_p, r.top_k), (0.6, 0.9, 20));
        let r = Sampling { top_k: Some(0), temperature: Some(0.0), ..Sampling::default() }
            .resolve(&sampled(), VOCAB)
            .unwrap();
        assert_eq!((r.temperature, r.top_p, r.top_k), (0.0, 0.9, 0));
    }

    #[test]
    fn greedy_unless_someone_asks_to_sample() {
        let silent = GenerationConfig { do_sample: Some(false), ..sampled() };
        let r = Sampling::default().resolve(&silent, VOCAB).unwrap();
        assert_eq!((r.temperature, r.top_p, r.top_k), (0.0, 1.0, 0));
        let r = Sampling { top_p: Some(0.5), ..Sampling::default() }.resolve(&silent, VOCAB).unwrap();
        assert_eq!((r.temperature, r.top_p), (1.0, 0.5));
    }

    #[test]
    fn seeds_are_taken_or_drawn() {
        let given = Sampling { seed: Some(7), ..Sampling::default() };
        assert_eq!(given.resolve(&sampled(), VOCAB).unwrap().seed, 7);
        let draw = || Sampling::default().resolve(&sampled(), VOCAB).unwrap().seed;
        assert_ne!(draw(), draw());
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let cases = [
            (Sampling { temperature: Some(-1.0), ..Sampling::default() }, "temperature"),
            (Sampling { temperature: Some(f32::NAN), ..Sampling::default() }, "temperature"),
            (Sampling { top_p: Some(0.0), ..Sampling::default() }, "top_p"),
            (Sampling { top_p: Some(1.1), ..Sampling::default() }, "top_p"),
            (Sampling { min_p: Some(2.0), ..Sampling::default() }, "min_p"),
            (Sampling { typical_p: Some(0.0), ..Sampling::default() }, "typical_p"),
            (
                Sampling { dry: Some(Dry { multiplier: -1.0, ..Dry::default() }), ..Sampling::default() },
                "dry_multiplier",
            ),
            (Sampling { dry: Some(Dry { base: 0.5, ..Dry::default() }), ..Sampling::default() }, "dry_base"),
            (Sampling { dry: Some(Dry { allowed_length: 0, ..Dry::default() }), ..Sampling::default() }, "dry_allowed"),
            (Sampling { repetition_penalty: Some(0.0), ..Sampling::default() }, "repetition_penalty"),
            (Sampling { presence_penalty: 2.5, ..Sampling::default() }, "presence_penalty"),
            (Sampling { frequency_penalty: f32::NAN, ..Sampling::default() }, "frequency_penalty"),
            (Sampling { logit_bias: vec![(3, f32::NAN)], ..Sampling::default() }, "logit_bias"),
            (Sampling { logit_bias: vec![(VOCAB as u32, 1.0)], ..Sampling::default() }, "logit_bias"),
            (
                Sampling {
                    logit_bias: (0..VOCAB as u32).map(|token| (token, f32::NEG_INFINITY)).collect(),
                    ..Sampling::default()
                },
                "logit_bias",
            ),
        ];
        for (sampling, field) in cases {
            let error = sampling.resolve(&sampled(), VOCAB).unwrap_err();
            assert!(error.is_input() && error.to_string().starts_with(field), "{error}");
        }
    }
}
