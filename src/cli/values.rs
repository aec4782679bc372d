//! Strict readings of values. Each says what it expects; the caller adds what it found.

use std::str::FromStr;

use burrstone::DType;
use burrstone::cpu::MAX_THREADS;
use burrstone::model::{Quantize, RopeScaling};
use burrstone::ops::ActivationBits;
use burrstone::scheduler::Preemption;
use clap::ValueEnum;

/// A list of token ids: `1,2,3`.
#[derive(Clone, Debug)]
pub struct TokenIds(pub Vec<u32>);

impl FromStr for TokenIds {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ids = text.split(',').map(|id| id.trim().parse().ok()).collect::<Option<Vec<u32>>>();
        ids.map(Self).ok_or("expected token ids, whole numbers with commas between them")
    }
}

/// Precision of the activations.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Precision {
    /// The checkpoint's own
    Auto,
    F32,
    Bf16,
    F16,
}

impl Precision {
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
        }
    }
}

/// When YaRN scaling is applied.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Scaling {
    /// To all sequences, as transformers does
    Always,
    /// Only to sequences whose prompt and --max-tokens together exceed the original context
    WhenNeeded,
}

impl From<Scaling> for RopeScaling {
    fn from(scaling: Scaling) -> Self {
        match scaling {
            Scaling::Always => Self::Always,
            Scaling::WhenNeeded => Self::WhenNeeded,
        }
    }
}

/// Precision of the KV cache.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum KvPrecision {
    /// The dtype of the activations
    Auto,
    F32,
    Bf16,
    F16,
    #[value(name = "fp8_e4m3")]
    Fp8E4m3,
    #[value(name = "fp8_e5m2")]
    Fp8E5m2,
    /// With one scale per head and token
    Int8,
}

impl KvPrecision {
    pub fn dtype(self) -> Option<DType> {
        Some(match self {
            Self::Auto => return None,
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::Fp8E4m3 => DType::E4M3,
            Self::Fp8E5m2 => DType::E5M2,
            Self::Int8 => DType::I8,
        })
    }
}

/// Formats of quantized weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightFormat {
    /// As the checkpoint has them
    None,
    /// 8-bit integers, a scale for each output
    Int8,
    /// 4-bit integers, a scale for each 128 inputs
    #[value(name = "int4-g128")]
    Int4G128,
    /// 4-bit integers, a scale for each 32 inputs
    #[value(name = "int4-g32")]
    Int4G32,
    /// 4-bit floats, a power of two for each 32 inputs
    Mxfp4,
}

impl WeightFormat {
    pub fn quantize(self) -> Option<Quantize> {
        Some(match self {
            Self::None => return None,
            Self::Int8 => Quantize::Int8,
            Self::Int4G128 => Quantize::Int4 { group: 128 },
            Self::Int4G32 => Quantize::Int4 { group: 32 },
            Self::Mxfp4 => Quantize::Mxfp4,
        })
    }
}

/// Precision of activations that quantized weights are multiplied with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ActivationFormat {
    /// As the checkpoint asks; with --quantize, 8 bits
    Auto,
    /// That of --dtype: slower, and as exact as unquantized activations
    Full,
    /// 8-bit integers with scales: the fastest
    Int8,
}

impl ActivationFormat {
    pub fn bits(self) -> Option<ActivationBits> {
        match self {
            Self::Auto => None,
            Self::Full => Some(ActivationBits::Full),
            Self::Int8 => Some(ActivationBits::Eight),
        }
    }
}

/// How a preempted sequence is resumed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OnPreemption {
    /// Prefill it again
    Recompute,
    /// Copy its KV blocks back from host memory
    Swap,
    /// The faster of the two
    Auto,
}

impl OnPreemption {
    pub fn preemption(self) -> Preemption {
        match self {
            Self::Recompute => Preemption::Recompute,
            Self::Swap => Preemption::Swap,
            Self::Auto => Preemption::Auto,
        }
    }
}

fn number(text: &str, holds: impl Fn(f32) -> bool, expected: &'static str) -> Result<f32, &'static str> {
    text.parse().ok().filter(|x: &f32| x.is_finite() && holds(*x)).ok_or(expected)
}

/// A number that is not negative.
pub fn amount(text: &str) -> Result<f32, &'static str> {
    number(text, |x| x >= 0.0, "expected a number from 0 up")
}

pub fn rate(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0).ok_or("expected a number above 0")
}

/// A fraction in (0, 1].
pub fn share(text: &str) -> Result<f32, &'static str> {
    number(text, |x| x > 0.0 && x <= 1.0, "expected a number above 0, at most 1")
}

pub fn min_p(text: &str) -> Result<f32, &'static str> {
    number(text, |x| (0.0..=1.0).contains(&x), "expected a number from 0 to 1")
}

pub fn penalty(text: &str) -> Result<f32, &'static str> {
    number(text, |x| x > 0.0, "expected a number above 0")
}

pub fn base(text: &str) -> Result<f32, &'static str> {
    number(text, |x| x >= 1.0, "expected a number from 1 up")
}

/// A penalty that is subtracted from logits.
pub fn subtracted(text: &str) -> Result<f32, &'static str> {
    number(text, |x| (-2.0..=2.0).contains(&x), "expected a number from -2 to 2")
}

/// A token id and what is added to its logit.
pub fn bias(text: &str) -> Result<(u32, f32), &'static str> {
    const EXPECTED: &str = "expected TOKEN=BIAS, such as 42=-5 or 42=-inf";
    let (token, bias) = text.split_once('=').ok_or(EXPECTED)?;
    let bias: f32 = bias.parse().map_err(|_| EXPECTED)?;
    let token = token.parse().map_err(|_| EXPECTED)?;
    if bias < f32::INFINITY { Ok((token, bias)) } else { Err(EXPECTED) }
}

/// A token id.
pub fn token(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "expected a token id, a whole number from 0 up")
}

pub fn seed(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "expected a whole number from 0 to 18446744073709551615")
}

/// A count, possibly 0.
pub fn count(text: &str) -> Result<usize, &'static str> {
    text.parse().map_err(|_| "expected a whole number from 0 up")
}

/// A count of at least 1.
pub fn positive(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|n| *n > 0).ok_or("expected a whole number from 1 up")
}

/// Threads of the CPU.
pub fn threads(text: &str) -> Result<usize, &'static str> {
    const EXPECTED: &str = "expected a whole number from 1 to 1024";
    text.parse().ok().filter(|n| (1..=MAX_THREADS).contains(n)).ok_or(EXPECTED)
}

/// A count with an upper bound, because memory is allocated for it: sequences, tokens of a step, repetitions.
pub fn bounded(text: &str) -> Result<usize, &'static str> {
    const MOST: usize = 1 << 20;
    text.parse().ok().filter(|n| (1..=MOST).contains(n)).ok_or("expected a whole number from 1 to 1048576")
}

/// A text that is not empty.
pub fn text(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("expected a text that is not empty") } else { Ok(text.to_owned()) }
}

/// An architecture with kernels: `sm_80`, `80`, `sm_90a`.
pub fn arch(text: &str) -> Result<u32, &'static str> {
    let number = text.strip_prefix("sm_").unwrap_or(text);
    let number = number.strip_suffix('a').filter(|n| *n == "90").unwrap_or(number);
    let arch = number.parse().ok().filter(|arch| burrstone::device::ARCHS.contains(arch));
    arch.ok_or("expected sm_70, sm_75, sm_80, sm_86, sm_89 or sm_90a")
}

/// A number of bytes: `8GiB`, `500MB`, `1.5g`, `4096`.
pub fn bytes(text: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str = "expected a size such as 8GiB, 500MB or 4096";
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "t" | "tib" => 1024f64.powi(4),
        _ => return Err(EXPECTED),
    };
    let number: f64 = number.parse().map_err(|_| EXPECTED)?;
    let bytes = (number * unit).round();
    // Beyond this, not every whole number has a float.
    if bytes <= 2f64.powi(53) { Ok(bytes as u64) } else { Err(EXPECTED) }
}
