//! Quantizes the weights of a 16-bit checkpoint while it is loaded.

use std::num::NonZero;
use std::thread;

use half::{bf16, f16};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{ActivationBits, Code, CodedWeight, Scales, Weight, WeightView, Zeros};

/// How the weights of linear layers are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightPrecision {
    /// Of the decoder's layers. `None` keeps what the checkpoint has; quantized weights always stay as they are.
    pub layers: Option<Quantize>,
    /// Of the output projection, and of the embedding where that is the same.
    pub head: Option<Quantize>,
    /// Bits of the activations that quantized weights are multiplied with; `None` is what the checkpoint says, and eight
    /// for weights that are quantized here.
    pub activations: Option<ActivationBits>,
}

/// A format for quantized weights. Values are rounded to the nearest; nothing is calibrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantize {
    /// 8-bit integers with a scale for each output.
    Int8,
    /// 4-bit integers with a scale for each group of inputs, of which the largest in size is exact.
    Int4 { group: usize },
    /// FP4 (e2m1) with a power of two for each group of 32 inputs, as the OCP's MX formats have it.
    Mxfp4,
}

impl Quantize {
    /// The format's name on the command line.
    pub fn name(self) -> String {
        match self {
            Self::Int8 => "int8".to_owned(),
            Self::Int4 { group } => format!("int4-g{group}"),
            Self::Mxfp4 => "mxfp4".to_owned(),
        }
    }

    fn code(self) -> Code {
        match self {
            Self::Int8 => Code::U8,
            Self::Int4 { .. } => Code::U4,
            Self::Mxfp4 => Code::E2M1,
        }
    }

    /// Inputs that share a scale.
    fn group(self, k: usize) -> usize {
        match self {
            Self::Int8 => k,
            Self::Int4 { group } => group.min(k),
            Self::Mxfp4 => 32.min(k),
        }
    }

    /// The scale of a group, and its codes by `put`.
    fn round(self, group: &[f32], mut put: impl FnMut(usize, u8)) -> f32 {
        let largest = group.iter().fold(0f32, |largest, &x| if x.abs() > largest.abs() { x } else { largest });
        let scale = match self {
            // So small that a scale would be zero or subnormal: all become zero.
            _ if largest.abs() < 1e-30 => 1.0,
            Self::Int8 => largest.abs() / 127.0,
            // The largest becomes -8, which has no positive counterpart.
            Self::Int4 { .. } => largest / -8.0,
            Self::Mxfp4 => (largest.abs().log2().floor() - 2.0).max(-127.0).exp2(),
        };
        for (i, x) in group.iter().map(|x| x / scale).enumerate() {
            let code = match self {
                Self::Int8 => (x.round_ties_even() + 128.0) as u8,
                Self::Int4 { .. } => (x.round_ties_even() + 8.0).clamp(0.0, 15.0) as u8,
                Self::Mxfp4 => nearest_e2m1(x),
            };
            put(i, code);
        }
        scale
    }

    /// Quantizes a dense `[n, k]`.
    ///
    /// # Errors
    /// An element is infinite or not a number.
    pub fn weight(self, view: &WeightView, activations: ActivationBits) -> Result<CodedWeight> {
        let &[n, k] = view.shape.as_slice() else {
            let found = format!("{:?} in {}", view.shape, view.name);
            return Err(Error::operator("quantize", "shape", "[n, k]", found));
        };
        let (elements, code) = (view.elements("quantize")?, self.code());
        let (row_bytes, group) = (code.row_bytes(k), self.group(k).max(1));
        let groups = k.div_ceil(group);
        let (mut codes, mut values) = (vec![0u8; n * row_bytes], vec![0f32; n * groups]);
        let size = view.dtype.size();
        let quantize = |data: &[u8], codes: &mut [u8], values: &mut [f32]| -> Result<()> {
            let mut row = vec![0f32; k];
            for ((data, codes), scales) in
                data.chunks(k * size).zip(codes.chunks_mut(row_bytes)).zip(values.chunks_mut(groups))
            {
                widen(view.dtype, data, &mut row)?;
                if let Some(x) = row.iter().find(|x| !x.is_finite()) {
                    return Err(Error::request(view.name.as_str(), "finite weights, to quantize them", x));
                }
                for (g, (group_values, scale)) in row.chunks(group).zip(scales).enumerate() {
                    *scale = self.round(group_values, |i, value| {
                        let column = g * group + i;
                        match code.bits() {
                            4 => codes[column / 2] |= value << (column % 2 * 4),
                            _ => codes[column] = value,
                        }
                    });
                }
            }
            Ok(())
        };
        if elements > 0 {
            let threads = thread::available_parallelism().map_or(1, NonZero::get);
            let rows = n.div_ceil(threads);
            thread::scope(|scope| {
                let data = view.data.chunks(rows * k * size);
                let parts = data.zip(codes.chunks_mut(rows * row_bytes)).zip(values.chunks_mut(rows * groups));
                let workers: Vec<_> =
                    parts.map(|((data, codes), values)| scope.spawn(|| quantize(data, codes, values))).collect();
                workers
                    .into_iter()
                    .try_for_each(|worker| worker.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            })?;
        }
        let zero = match self {
            Self::Int8 => 128,
            Self::Int4 { .. } => 8,
            Self::Mxfp4 => 0,
        };
        let scales = Scales { rows: 1, columns: group, values, zeros: Zeros::All(zero) };
        let (name, codes) = (view.name.clone(), codes.into());
        Ok(CodedWeight { name, shape: [n, k], code, codes, scales, order: None, activations })
    }
}

impl WeightPrecision {
    /// A weight of the decoder's layers.
    pub(super) fn layer(&self, weight: Weight) -> Result<Weight> {
        self.apply(weight, self.layers)
    }

    /// The output projection.
    pub(super) fn head(&self, weight: Weight) -> Result<Weight> {
        self.apply(weight, self.head)
    }

    fn apply(&self, weight: Weight, quantize: Option<Quantize>) -> Result<Weight> {
        Ok(match (weight, quantize) {
            (Weight::Dense(view), Some(quantize)) => {
                Weight::Coded(quantize.weight(&view, self.activations.unwrap_or(ActivationBits::Eight))?)
            }
            (Weight::Coded(weight), _) => {
                let activations = self.activations.unwrap_or(weight.activations);
                Weight::Coded(CodedWeight { activations, ..weight })
            }
            (dense, None) => dense,
        })
    }
}

fn widen(dtype: DType, data: &[u8], to: &mut [f32]) -> Result<()> {
    let elements = to.iter_mut();
    match dtype {
        DType::F32 => elements.zip(data.as_chunks().0).for_each(|(to, &x)| *to = f32::from_le_bytes(x)),
        DType::BF16 => elements.zip(data.as_chunks().0).for_each(|(to, &x)| *to = bf16::from_le_bytes(x).to_f32()),
        DType::F16 => elements.zip(data.as_chunks().0).for_each(|(to, &x)| *to = f16::from_le_bytes(x).to_f32()),
        _ => return Err(Error::operator("quantize", "dtype", "f32, bf16 or f16", dtype)),
    }
    Ok(())
}

/// The code of the nearest number, ties to the even code; what is too large becomes the largest.
fn nearest_e2m1(x: f32) -> u8 {
    // Half-way points between neighbours; at those before an even code the upper one is taken.
    const MIDDLES: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let magnitude = x.abs();
    let above = |(i, &middle): (usize, &f32)| magnitude > middle || (magnitude == middle && i % 2 == 1);
    let code = MIDDLES.iter().enumerate().take_while(|&middle| above(middle)).count() as u8;
    if x.is_sign_negative() { code | 8 } else { code }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(values: &[f32], shape: [usize; 2]) -> WeightView {
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        WeightView { name: "w".to_owned(), dtype: DType::F32, shape: shape.to_vec(), data: data.into() }
    }

    fn rounded(values: &[f32], shape: [usize; 2], quantize: Quantize) -> Vec<f32> {
        let weight = quantize.weight(&view(values, shape), ActivationBits::Eight).unwrap();
        weight.check().unwrap();
        let mut row = vec![0.0; shape[1]];
        let rows = (0..shape[0]).flat_map(|r| {
            weight.row(r, &mut row);
            row.clone()
        });
        rows.collect()
    }

    #[test]
    fn errors_are_half_a_step_at_most() {
        let [n, k] = [5, 100];
        let values: Vec<f32> = (0..n * k).map(|i| ((i * 7919 % 1009) as f32 - 500.0) / 250.0 + 0.001).collect();
        for (quantize, group, levels) in [
            (Quantize::Int8, k, 127.0),
            (Quantize::Int4 { group: 32 }, 32, 8.0),
            (Quantize::Int4 { group: 128 }, k, 8.0),
        ] {
            let got = rounded(&values, [n, k], quantize);
            for (row, got) in values.chunks(k).zip(got.chunks(k)) {
                for (group, got) in row.chunks(group).zip(got.chunks(group)) {
                    let largest = group.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                    // With four bits, what is opposite in sign to the largest may lack a whole step.
                    let step = largest / levels * if levels == 8.0 { 1.0 } else { 0.5 } * 1.0001;
                    for (x, y) in group.iter().zip(got) {
                        assert!((x - y).abs() <= step, "{}: {x} became {y}, step {step}", quantize.name());
                    }
                }
            }
        }
    }

    #[test]
    fn fp4_rounds_to_the_nearest() {
        let Code::Table(numbers) = Code::E2M1 else { unreachable!() };
        for (x, expected) in [
            (0.0, 0.0),
            (0.25, 0.0),
            (0.26, 0.5),
            (0.75, 1.0),
            (1.25, 1.0),
            (1.75, 2.0),
            (2.5, 2.0),
            (3.5, 4.0),
            (5.0, 4.0),
            (5.1, 6.0),
            (7.9, 6.0),
            (-1.4, -1.5),
        ] {
            assert_eq!(numbers[usize::from(nearest_e2m1(x))], expected, "{x}");
        }
        // The scale of a group whose largest is 6 · 2³.
        let values: Vec<f32> = numbers.iter().map(|x| x * 8.0).collect();
        assert_eq!(rounded(&values, [1, 16], Quantize::Mxfp4), values);
    }

    #[test]
    fn zeros_stay_and_infinities_are_named() {
        for quantize in [Quantize::Int8, Quantize::Int4 { group: 32 }, Quantize::Mxfp4] {
            assert_eq!(rounded(&[0.0; 64], [2, 32], quantize), [0.0; 64]);
            assert_eq!(rounded(&[1e-44; 64], [2, 32], quantize), [0.0; 64]);
            let mut values = [1.0; 64];
            values[40] = f32::INFINITY;
            let error = quantize.weight(&view(&values, [2, 32]), ActivationBits::Eight).unwrap_err();
            assert_eq!(error.to_string(), "w: expected finite weights, to quantize them, found inf");
        }
    }
}
