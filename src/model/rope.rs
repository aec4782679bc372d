//! Rotary position embeddings: angles from positions.
//!
//! The arithmetic follows `transformers`' `modeling_rope_utils.py`, in float32 where that is float32: frequencies are
//! `theta^(-2i/d)` modified by the kind of scaling, an angle is the float32 product of position and frequency. Powers,
//! sines and cosines are computed in float64 and rounded once, so that every machine gets the same bits.

use std::f64::consts::PI;
use std::ops::Range;

/// The rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Rotated dimensions at the start of a head; even.
    pub rotary_dim: usize,
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    pub kind: RopeKind,
}

/// Which sequences YaRN scaling applies to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopeScaling {
    /// All, as in `transformers`. Sequences within the original context lose quality by it.
    #[default]
    Always,
    /// Only sequences whose prompt and `max_tokens` together exceed the original context.
    WhenNeeded,
}

/// How frequencies are scaled beyond the training context.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeKind {
    /// Su et al., "RoFormer" (2021).
    Default,
    /// Every frequency divided by `factor`: position interpolation, Chen et al. (2023).
    Linear { factor: f64 },
    /// NTK-aware scaling whose base depends on the length of the sequence once it exceeds `context`.
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
        /// Sequences of at most `original_context` tokens are not scaled.
        when_needed: bool,
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
    /// The factors of this kind. `context` is the length of the longest sequence.
    pub fn table(&self, context: usize) -> Rope {
        let (frequencies, scale) = match self.kind {
            RopeKind::Yarn { attention_factor, .. } => (self.frequencies(), attention_factor as f32),
            _ => (self.frequencies(), 1.0),
        };
        let mut angles = vec![Angles { frequencies, scale }];
        if matches!(self.kind, RopeKind::Yarn { when_needed: true, .. }) {
            let plain = Self { kind: RopeKind::Default, ..self.clone() };
            angles.push(Angles { frequencies: plain.frequencies(), scale: 1.0 });
        }
        let stretched = (0, angles[0].clone());
        Rope { spec: self.clone(), positions: context.min(POSITIONS), angles, stretched }
    }

    /// Sets which sequences are scaled; false if this kind only supports [`RopeScaling::Always`].
    pub fn scale(&mut self, scaling: RopeScaling) -> bool {
        match (&mut self.kind, scaling) {
            (RopeKind::Yarn { when_needed, .. }, scaling) => *when_needed = scaling == RopeScaling::WhenNeeded,
            (_, RopeScaling::Always) => {}
            (_, RopeScaling::WhenNeeded) => return false,
        }
        true
    }

    /// A number that differs between sequences whose angles differ at the same positions. The sequence has a prompt of
    /// `prompt_len` tokens and at most `longest` tokens in all.
    pub fn stretch(&self, prompt_len: usize, longest: usize) -> usize {
        match self.kind {
            // All angles depend on the prompt's length.
            RopeKind::Dynamic { context, .. } if prompt_len > context => prompt_len,
            RopeKind::Yarn { original_context, when_needed: true, .. } if longest <= original_context => 1,
            _ => 0,
        }
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

/// Most positions in a table: 128 MiB with heads of 128.
const POSITIONS: usize = 1 << 18;

/// Rotary factors: a table for most positions, because computing sines would dominate the preparation of a step; others
/// are computed individually.
#[derive(Clone, Debug)]
pub struct Rope {
    spec: RopeSpec,
    /// Of the table.
    positions: usize,
    /// The kind's angles and, if some sequences are not scaled, the original ones.
    angles: Vec<Angles>,
    /// The last length that `dynamic` scaled to, and its angles.
    stretched: (usize, Angles),
}

#[derive(Clone, Debug)]
struct Angles {
    /// Radians per position.
    frequencies: Vec<f32>,
    /// Of cosines and sines.
    scale: f32,
}

impl Rope {
    /// Rows of the table: a position's row is its number; unscaled sequences have a second range of rows.
    pub fn table_rows(&self) -> usize {
        self.positions * self.angles.len()
    }

    /// Rows after which positions start again.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// These rows of the table, `[rows, 2, rotary_dim / 2]`: cosines, then sines, multiplied by the kind's attention
    /// factor.
    pub fn factors(&self, rows: Range<usize>) -> Vec<f32> {
        let mut out = Vec::with_capacity(rows.len() * self.spec.rotary_dim);
        rows.for_each(|row| self.angles[row / self.positions].append(row % self.positions, &mut out));
        out
    }

    /// Adds a token to a batch's [rows](crate::ops::Batch::rope_rows), and its factors to the batch's [own
    /// factors](crate::ops::Batch::rope) if the table lacks them.
    ///
    /// `sequence_len` is the length of the sequence in this forward pass: the whole prompt during prefill, even in
    /// chunks, and `position + 1` for a generated token. Only `dynamic` uses it, as `transformers`'
    /// `dynamic_frequency_update` does. `longest` is the most tokens that the sequence will have; it matters with
    /// [`RopeScaling::WhenNeeded`].
    pub fn append(
        &mut self,
        position: usize,
        sequence_len: usize,
        longest: usize,
        rows: &mut Vec<u32>,
        others: &mut Vec<f32>,
    ) {
        let width = self.spec.rotary_dim;
        let plain = matches!(self.spec.kind, RopeKind::Yarn { .. }) && self.spec.stretch(0, longest) > 0;
        let angles = match self.spec.kind {
            RopeKind::Dynamic { factor, context } if sequence_len > context => {
                if self.stretched.0 != sequence_len {
                    let frequencies = self.spec.stretched(factor, context, sequence_len);
                    self.stretched = (sequence_len, Angles { frequencies, scale: 1.0 });
                }
                &self.stretched.1
            }
            _ if position < self.positions => {
                rows.push((position + usize::from(plain) * self.positions) as u32);
                if !others.is_empty() {
                    others.resize(rows.len() * width, 0.0);
                }
                return;
            }
            _ => &self.angles[usize::from(plain)],
        };
        others.resize(rows.len() * width, 0.0);
        rows.push((self.table_rows() + rows.len()) as u32);
        angles.append(position, others);
    }
}

impl Angles {
    /// Factors of one position: cosines, then sines.
    fn append(&self, position: usize, out: &mut Vec<f32>) {
        let (start, half) = (out.len(), self.frequencies.len());
        out.resize(start + 2 * half, 0.0);
        let (cosines, sines) = out[start..].split_at_mut(half);
        for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&self.frequencies) {
            let angle = position as f32 * frequency;
            let (s, c) = f64::from(angle).sin_cos();
            *cosine = c as f32 * self.scale;
            *sine = s as f32 * self.scale;
        }
    }
}
