//! Rotary position embeddings: how an angle follows from a position.
//!
//! The arithmetic is that of `transformers`' `modeling_rope_utils.py`, step by step in float32 where it is float32
//! there: frequencies are `theta^(-2i/d)` bent by the kind, an angle is the float32 product of position and frequency.
//! Powers, sines and cosines are taken in float64 and rounded once, so that every machine gets the same bits.

use std::f64::consts::PI;

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Leading dimensions of a head that rotate; even.
    pub rotary_dim: usize,
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    pub kind: RopeKind,
}

/// How the frequencies of a model are stretched beyond the context that it was trained with.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeKind {
    /// Su et al., "RoFormer" (2021).
    Default,
    /// Every frequency divided by `factor`: position interpolation, Chen et al. (2023).
    Linear { factor: f64 },
    /// NTK-aware scaling whose base follows the length of the sequence once it exceeds `context`.
    Dynamic { factor: f64, context: usize },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a linear blend between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_context: usize },
    /// Peng et al., "YaRN" (2023).
    Yarn {
        factor: f64,
        /// Cosines and sines are multiplied by this.
        attention_factor: f64,
        /// Rotations over the original context from which a dimension keeps its frequency.
        beta_fast: f64,
        /// Rotations below which a dimension is fully interpolated.
        beta_slow: f64,
        original_context: usize,
        /// Whether the borders of the blend are rounded outward to whole dimensions.
        truncate: bool,
    },
}

impl RopeKind {
    /// Name as `rope_type` spells it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Llama3 { .. } => "llama3",
            Self::Yarn { .. } => "yarn",
        }
    }
}

impl RopeSpec {
    /// The frequencies of this kind, ready to give factors.
    pub fn table(&self) -> Rope {
        let attention_factor = match self.kind {
            RopeKind::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        };
        let frequencies = self.frequencies();
        let stretched = (0, frequencies.clone());
        Rope { spec: self.clone(), frequencies, stretched, attention_factor, rows: Vec::new() }
    }

    /// `[rotary_dim / 2]` radians per position, for sequences within the context of the configuration.
    fn frequencies(&self) -> Vec<f32> {
        let plain = self.powers(self.theta as f32).map(|p| 1.0 / p);
        match self.kind {
            // Up to `context` the bent base is the base itself.
            RopeKind::Default | RopeKind::Dynamic { .. } => plain.collect(),
            RopeKind::Linear { factor } => plain.map(|f| f / factor as f32).collect(),
            RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let original = original_context as f64;
                let longest = (original / low_freq_factor) as f32;
                let shortest = (original / high_freq_factor) as f32;
                let factor = factor as f32;
                let span = (high_freq_factor - low_freq_factor) as f32;
                plain
                    .map(|f| {
                        let wavelength = (1.0 / f) * (2.0 * PI) as f32;
                        if wavelength > longest {
                            f / factor
                        } else if wavelength < shortest {
                            f
                        } else {
                            let smooth = ((1.0 / wavelength) * original as f32 - low_freq_factor as f32) / span;
                            (1.0 - smooth) * f / factor + smooth * f
                        }
                    })
                    .collect()
            }
            RopeKind::Yarn { factor, beta_fast, beta_slow, original_context, truncate, .. } => {
                let (low, high) = self.blend(beta_fast, beta_slow, original_context, truncate);
                let (start, width) = (low as f32, (high - low) as f32);
                self.powers(self.theta as f32)
                    .enumerate()
                    .map(|(i, power)| {
                        let ramp = ((i as f32 - start) / width).clamp(0.0, 1.0);
                        let kept = 1.0 - ramp;
                        let interpolated = 1.0 / (factor as f32 * power);
                        interpolated * (1.0 - kept) + (1.0 / power) * kept
                    })
                    .collect()
            }
        }
    }

    /// Frequencies of a sequence longer than the context of the configuration (`dynamic` only).
    fn stretched(&self, factor: f64, context: usize, sequence_len: usize) -> Vec<f32> {
        // Here the length is a tensor in `transformers`, hence float32 from the first product on.
        let ratio = factor as f32 * sequence_len as f32 / context as f32 - (factor - 1.0) as f32;
        let exponent = (self.rotary_dim as f64 / (self.rotary_dim as f64 - 2.0)) as f32;
        let bend = f64::from(ratio).powf(f64::from(exponent)) as f32;
        self.powers(bend * self.theta as f32).map(|p| 1.0 / p).collect()
    }

    /// `base^(2i / rotary_dim)` for each pair.
    fn powers(&self, base: f32) -> impl Iterator<Item = f32> {
        let dim = self.rotary_dim;
        (0..dim / 2).map(move |i| {
            let exponent = (2 * i) as f32 / dim as f32;
            f64::from(base).powf(f64::from(exponent)) as f32
        })
    }

    /// First and last dimension of YaRN's blend between kept and interpolated frequencies.
    fn blend(&self, beta_fast: f64, beta_slow: f64, original_context: usize, truncate: bool) -> (f64, f64) {
        let dim = self.rotary_dim as f64;
        let at =
            |rotations: f64| (dim * (original_context as f64 / (rotations * 2.0 * PI)).ln()) / (2.0 * self.theta.ln());
        let (mut low, mut high) = (at(beta_fast), at(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        (low, high)
    }
}

/// Positions whose factors are kept: 32 MiB of them with heads of 128. Sines are most of what preparing a step takes.
const KEPT: usize = 1 << 16;

/// Rotary factors of single positions. Not shared between threads: it remembers what it computed.
#[derive(Clone, Debug)]
pub struct Rope {
    spec: RopeSpec,
    frequencies: Vec<f32>,
    /// The last length that `dynamic` stretched to, and its frequencies.
    stretched: (usize, Vec<f32>),
    attention_factor: f32,
    /// Factors of the first positions, `[positions, 2, rotary_dim / 2]`, as far as they were asked for.
    rows: Vec<f32>,
}

impl Rope {
    /// Appends the factors of one token to `out`: `rotary_dim / 2` cosines, then as many sines, already multiplied by
    /// the kind's attention factor.
    ///
    /// `sequence_len` is the length of the sequence in this forward pass: the whole prompt while it is read, however
    /// it is cut into chunks, and `position + 1` for a generated token. Only `dynamic` looks at it, as
    /// `transformers`' `dynamic_frequency_update` does.
    pub fn append(&mut self, position: u32, sequence_len: usize, out: &mut Vec<f32>) {
        let (position, width) = (position as usize, 2 * self.frequencies.len());
        match self.spec.kind {
            RopeKind::Dynamic { factor, context } if sequence_len > context => {
                if self.stretched.0 != sequence_len {
                    self.stretched = (sequence_len, self.spec.stretched(factor, context, sequence_len));
                }
                append_row(position, &self.stretched.1, self.attention_factor, out);
            }
            _ if position >= KEPT => append_row(position, &self.frequencies, self.attention_factor, out),
            _ => {
                for next in self.rows.len() / width.max(1)..=position {
                    append_row(next, &self.frequencies, self.attention_factor, &mut self.rows);
                }
                out.extend_from_slice(&self.rows[position * width..(position + 1) * width]);
            }
        }
    }
}

/// Factors of one position: cosines, then sines.
fn append_row(position: usize, frequencies: &[f32], attention_factor: f32, out: &mut Vec<f32>) {
    let start = out.len();
    let half = frequencies.len();
    out.resize(start + 2 * half, 0.0);
    let (cosines, sines) = out[start..].split_at_mut(half);
    for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(frequencies) {
        let angle = position as f32 * frequency;
        let (s, c) = f64::from(angle).sin_cos();
        *cosine = c as f32 * attention_factor;
        *sine = s as f32 * attention_factor;
    }
}
