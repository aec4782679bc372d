//! Sampling: a request's sampling options, penalties, constraints, logits processors and end conditions.

mod constraint;
mod dry;
mod editor;
mod finish;
mod guarded;
mod processor;
mod repetition;
mod repetition_detection;
mod rules;
mod sequence_bias;

use std::collections::{BTreeMap, HashSet};

use crate::error::{Error, Result};
use crate::model::GenerationConfig;

pub use constraint::{Constraint, ConstraintState};
pub(super) use constraint::{Grammars, Guide, Masks};
pub(super) use dry::DryPenalty;
pub(super) use editor::{Edited, Editor};
pub use finish::FinishReason;
pub use processor::{LogitsContext, LogitsProcessor};
pub(super) use repetition::{BadWords, NgramBan};
pub(super) use repetition_detection::Detector;
pub use repetition_detection::RepetitionDetection;
pub(super) use rules::Rules;
pub(super) use sequence_bias::SequenceBias;

/// Sampling options. `None` takes the default of the checkpoint's `generation_config.json`, or else samples greedily
/// without filters. The filters `top_k`, `top_p`, `min_p` and `typical_p` are applied in this order, each to what those
/// before it leave; with a filter the default temperature is 1.
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
    /// Locally typical sampling: keeps the tokens whose surprise is nearest to the expected one, as many as reach this
    /// probability, in (0, 1]; 1 keeps all.
    pub typical_p: Option<f32>,
    /// Makes tokens that occurred before less likely; 1 does nothing.
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from the logit of every token that was generated, from -2 to 2; 0 does nothing.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time that it was generated, from -2 to 2; 0 does nothing.
    pub frequency_penalty: f32,
    /// No sequence of this many tokens, the prompt's included, is generated twice, unless nothing else is left; 0 does
    /// nothing. At most the context.
    pub no_repeat_ngram_size: Option<usize>,
    /// Penalizes tokens that would continue a repetition.
    pub dry: Option<Dry>,
    /// Texts that are not generated, with or without a leading space, as the tokenizer encodes them.
    pub bad_words: Vec<String>,
    /// Added to the logits of these tokens, after the penalties; -∞ bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Random draws depend on the seed and the position alone; `None` takes a random seed.
    pub seed: Option<u64>,
}

/// DRY (Don't Repeat Yourself): the longer the repeated sequence that a token would extend, the larger its penalty. A
/// token that would extend a repetition of `n` tokens loses `multiplier · base^(n − allowed_length)` from its logit, if
/// `n` is at least `allowed_length`. (By p-e-w, in pull request 5677 of text-generation-webui.)
#[derive(Clone, Debug, PartialEq)]
pub struct Dry {
    /// At least 0; 0 does nothing.
    pub multiplier: f32,
    /// At least 1.
    pub base: f32,
    /// Repetitions of fewer tokens are not penalized; at least 1.
    pub allowed_length: usize,
    /// How many of the last tokens are searched for repetitions, at most 32768; 4096 by default. This is
    /// `dry_penalty_last_n` of llama.cpp.
    pub last_n: usize,
    /// A repetition does not extend over a token that contains one of these texts.
    pub sequence_breakers: Vec<String>,
}

impl Default for Dry {
    fn default() -> Self {
        let sequence_breakers = ["\n", ":", "\"", "*"].map(str::to_owned).to_vec();
        Self { multiplier: 0.8, base: 1.75, allowed_length: 2, last_n: 4096, sequence_breakers }
    }
}

/// Bounds the work for each token, which is done on the step loop's thread.
pub(super) const MAX_LAST_N: usize = 32_768;

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
        if !(1..=MAX_LAST_N).contains(&self.last_n) {
            return Err(Error::request("dry_penalty_last_n", format!("from 1 to {MAX_LAST_N}"), self.last_n));
        }
        match self.sequence_breakers.iter().any(String::is_empty) {
            true => Err(Error::request("dry_sequence_breakers", "texts that are not empty", "an empty one")),
            false => Ok(()),
        }
    }
}

/// [`Sampling`] with all defaults filled in.
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
    /// Fills in defaults and checks all values, for a model with `vocab` tokens and an engine with this context.
    ///
    /// # Errors
    /// A value outside its range.
    pub(in crate::engine) fn resolve(
        &self,
        defaults: &GenerationConfig,
        vocab: usize,
        context: usize,
    ) -> Result<Resolved> {
        let sampled_by_default = defaults.do_sample == Some(true);
        let shares = [self.top_p, self.min_p, self.typical_p];
        let filtered = self.top_k.is_some() || shares.iter().any(Option::is_some);
        let temperature = match self.temperature {
            Some(temperature) => temperature,
            None if sampled_by_default => defaults.temperature.unwrap_or(1.0),
            None if filtered => 1.0,
            None => 0.0,
        };
        // Without `do_sample` the other defaults do not apply.
        let default = |value: Option<f32>| value.filter(|_| sampled_by_default);
        // A default that is longer than the context of this engine has no effect.
        let default_ngram = defaults.no_repeat_ngram_size.filter(|&n| n <= context);
        let resolved = Resolved {
            temperature,
            top_p: self.top_p.or(default(defaults.top_p)).unwrap_or(1.0),
            top_k: self.top_k.or(defaults.top_k.filter(|_| sampled_by_default)).unwrap_or(0),
            min_p: self.min_p.or(default(defaults.min_p)).unwrap_or(0.0),
            typical_p: self.typical_p.or(default(defaults.typical_p)).unwrap_or(1.0),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size.or(default_ngram).unwrap_or(0),
            logit_bias: merged(&self.logit_bias),
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
        for &(token, bias) in &self.logit_bias {
            check("logit_bias", bias, bias < f32::INFINITY, "finite numbers or -infinity")?;
            if token as usize >= vocab {
                return Err(Error::request("logit_bias", format!("token ids below {vocab}"), token));
            }
        }
        if r.no_repeat_ngram_size > context {
            let expected = format!("at most {context} tokens, the context");
            return Err(Error::request("no_repeat_ngram_size", expected, r.no_repeat_ngram_size));
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

/// One bias for each token: the sum of those that are given for it. Sums beyond the range of f32 are its ends, so that
/// only a bias of -∞ bans a token.
fn merged(biases: &[(u32, f32)]) -> Vec<(u32, f32)> {
    let mut sums: BTreeMap<u32, f32> = BTreeMap::new();
    for &(token, bias) in biases {
        let sum = sums.entry(token).or_default();
        *sum = if bias.is_finite() && sum.is_finite() { (*sum + bias).clamp(f32::MIN, f32::MAX) } else { *sum + bias };
    }
    sums.into_iter().collect()
}

impl Resolved {
    /// Whether a penalty depends on which tokens came before.
    pub fn is_penalized(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Tokens with a bias of −∞.
    pub fn banned(&self) -> impl Iterator<Item = u32> {
        self.logit_bias.iter().filter(|(_, bias)| *bias == f32::NEG_INFINITY).map(|(token, _)| *token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: usize = 100;
    const CONTEXT: usize = 1000;

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
        let r = Sampling::default().resolve(&sampled(), VOCAB, CONTEXT).unwrap();
        assert_eq!((r.temperature, r.top_p, r.top_k), (0.6, 0.9, 20));
        let r = Sampling { top_k: Some(0), temperature: Some(0.0), ..Sampling::default() }
            .resolve(&sampled(), VOCAB, CONTEXT)
            .unwrap();
        assert_eq!((r.temperature, r.top_p, r.top_k), (0.0, 0.9, 0));
    }

    #[test]
    fn greedy_unless_someone_asks_to_sample() {
        let silent = GenerationConfig { do_sample: Some(false), ..sampled() };
        let r = Sampling::default().resolve(&silent, VOCAB, CONTEXT).unwrap();
        assert_eq!((r.temperature, r.top_p, r.top_k), (0.0, 1.0, 0));
        let r = Sampling { top_p: Some(0.5), ..Sampling::default() }.resolve(&silent, VOCAB, CONTEXT).unwrap();
        assert_eq!((r.temperature, r.top_p), (1.0, 0.5));
    }

    #[test]
    fn seeds_are_taken_or_drawn() {
        let given = Sampling { seed: Some(7), ..Sampling::default() };
        assert_eq!(given.resolve(&sampled(), VOCAB, CONTEXT).unwrap().seed, 7);
        let draw = || Sampling::default().resolve(&sampled(), VOCAB, CONTEXT).unwrap().seed;
        assert_ne!(draw(), draw());
    }

    #[test]
    fn biases_of_one_token_are_added_and_stay_numbers() {
        let logit_bias = vec![(3, f32::MAX), (2, -1.0), (3, f32::MAX), (4, f32::MIN), (4, f32::MIN), (2, -1.5)];
        let banned = vec![(5, 1.0), (5, f32::NEG_INFINITY), (5, 1.0)];
        let sampling = Sampling { logit_bias: [logit_bias, banned].concat(), ..Sampling::default() };
        let resolved = sampling.resolve(&sampled(), VOCAB, CONTEXT).unwrap();
        assert_eq!(resolved.logit_bias, [(2, -2.5), (3, f32::MAX), (4, f32::MIN), (5, f32::NEG_INFINITY)]);
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
            (Sampling { dry: Some(Dry { last_n: 0, ..Dry::default() }), ..Sampling::default() }, "dry_penalty_last_n"),
            (
                Sampling { dry: Some(Dry { last_n: 1 << 20, ..Dry::default() }), ..Sampling::default() },
                "dry_penalty_last",
            ),
            (
                Sampling { no_repeat_ngram_size: Some(CONTEXT + 1), ..Sampling::default() },
                "no_repeat_ngram_size: expected at most 1000 tokens, the context, found 1001",
            ),
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
            let error = sampling.resolve(&sampled(), VOCAB, CONTEXT).unwrap_err();
            assert!(error.is_input() && error.to_string().starts_with(field), "{error}");
        }
    }
}
