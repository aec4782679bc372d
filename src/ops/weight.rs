//! Weights as devices take them: dense tensors, and codes with scales. Checkpoint formats are turned into these when
//! they are loaded; afterwards nothing depends on the format.

use std::sync::Arc;

use crate::device::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// A tensor as a checkpoint stores it: row-major, little-endian, not necessarily aligned.
#[derive(Clone, Debug)]
pub struct WeightView {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub data: Bytes,
}

/// The weight of a linear layer, or a block of its rows: `[n, k]`, `n` outputs of `k` inputs each.
#[derive(Clone, Debug)]
pub enum Weight {
    Dense(WeightView),
    Coded(CodedWeight),
}

/// A block of a linear layer's rows.
#[derive(Clone, Debug)]
pub struct LinearPart {
    pub weight: Weight,
    /// `[n]`.
    pub bias: Option<WeightView>,
}

/// A weight `[n, k]` of four or eight bits an element, with scales.
///
/// Element `(row, order[j])` of the weight, or `(row, j)` without an order, is
///
/// - `(code - zero) · scale` for [`Code::U4`] and [`Code::U8`],
/// - `table[code] · scale` for [`Code::Table`],
/// - `e4m3(code) · scale` for [`Code::E4m3`],
///
/// in f32, where `code` is number `j` of the row's codes, and `scale` and `zero` belong to `(row, j)`: see [`Scales`].
#[derive(Clone, Debug)]
pub struct CodedWeight {
    /// Of the tensor that holds the codes, for messages.
    pub name: String,
    /// `[n, k]`.
    pub shape: [usize; 2],
    pub code: Code,
    /// `[n, k]`, row-major. Of four bits two are in a byte, the even column in its lower half; each row begins with a
    /// byte of its own.
    pub codes: Bytes,
    pub scales: Scales,
    /// A permutation of `0..k`: which input each code belongs to. Groups are contiguous in the order of the codes.
    pub order: Option<Arc<[u32]>>,
    /// Bits of the activations that the format multiplies with.
    pub activations: ActivationBits,
}

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Code {
    /// Four bits: a number from 0 to 15.
    U4,
    /// Eight bits: a number from 0 to 255.
    U8,
    /// Four bits: an index into a table.
    Table([f32; 16]),
    /// Eight bits: a float of four bits of exponent and three of mantissa.
    E4m3,
}

/// Scales and zero points of a [`CodedWeight`]: one for each block of `rows` × `columns` codes, row-major; blocks at the
/// edges may be smaller.
#[derive(Clone, Debug)]
pub struct Scales {
    /// Rows of a block: 1 where each row has its own scales.
    pub rows: usize,
    /// Columns of a block: the group size, or `k`.
    pub columns: usize,
    /// `[ceil(n / rows), ceil(k / columns)]`.
    pub values: Vec<f32>,
    pub zeros: Zeros,
}

/// Zero points, for [`Code::U4`] and [`Code::U8`]; the other codes have none.
#[derive(Clone, Debug, PartialEq)]
pub enum Zeros {
    /// The same everywhere.
    All(u8),
    /// One beside each scale.
    Each(Vec<u8>),
}

/// Precision of the activations that a quantized weight is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationBits {
    /// That of the activations' dtype: weight-only quantization.
    Full,
    /// Eight bits, with scales computed from the activations.
    Eight,
}

impl WeightView {
    /// Elements of the shape.
    ///
    /// # Errors
    /// The data do not have the size of shape and dtype.
    pub(crate) fn elements(&self, op: &'static str) -> Result<usize> {
        let elements = self.shape.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
        let bytes = elements.and_then(|n| n.checked_mul(self.dtype.size()));
        match (elements, bytes) {
            (Some(elements), Some(bytes)) if bytes == self.data.len() => Ok(elements),
            _ => {
                let expected = format!("the bytes of {:?} in {}", self.shape, self.dtype);
                Err(Error::operator(op, "data", expected, format!("{} bytes in {}", self.data.len(), self.name)))
            }
        }
    }
}

impl Weight {
    pub fn name(&self) -> &str {
        match self {
            Self::Dense(view) => &view.name,
            Self::Coded(coded) => &coded.name,
        }
    }

    /// `[n, k]`.
    ///
    /// # Errors
    /// A dense weight is not a matrix.
    pub fn shape(&self) -> Result<[usize; 2]> {
        match self {
            Self::Dense(view) => match *view.shape.as_slice() {
                [n, k] => Ok([n, k]),
                _ => Err(Error::operator("matrix", "shape", "[n, k]", format!("{:?} in {}", view.shape, view.name))),
            },
            Self::Coded(coded) => Ok(coded.shape),
        }
    }
}

impl Weight {
    /// Bytes of elements or codes, and of scales and zero points.
    pub fn bytes(&self) -> u64 {
        let bytes = match self {
            Self::Dense(view) => view.data.len(),
            Self::Coded(CodedWeight { codes, scales: Scales { values, zeros, .. }, .. }) => {
                let zeros = if let Zeros::Each(zeros) = zeros { zeros.len() } else { 0 };
                codes.len() + size_of_val(values.as_slice()) + zeros
            }
        };
        bytes as u64
    }
}

impl LinearPart {
    pub fn dense(weight: WeightView) -> Self {
        Self { weight: Weight::Dense(weight), bias: None }
    }
}

impl Code {
    /// FP4: two bits of exponent, one of mantissa, as in the MX and NVFP4 formats.
    pub const E2M1: Self =
        Self::Table([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]);

    /// Bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            Self::U4 | Self::Table(_) => 4,
            Self::U8 | Self::E4m3 => 8,
        }
    }

    /// Bytes of a row of `k` codes.
    pub const fn row_bytes(self, k: usize) -> usize {
        (k * self.bits()).div_ceil(8)
    }
}

impl CodedWeight {
    /// Checks the parts against each other.
    ///
    /// # Errors
    /// Codes, scales, zero points or the order do not fit the shape.
    pub fn check(&self) -> Result<()> {
        const OP: &str = "matrix";
        let [n, k] = self.shape;
        let wrong = |field: &'static str, expected: String, found: usize| {
            Err(Error::operator(OP, field, expected, format!("{found} in {}", self.name)))
        };
        let Scales { rows, columns, values, zeros } = &self.scales;
        if n.checked_mul(k).is_none_or(|elements| elements == 0) || *rows == 0 || *columns == 0 {
            return wrong("shape", "sizes above 0 that fit memory".to_owned(), n.min(k).min(*rows).min(*columns));
        }
        let bytes = n * self.code.row_bytes(k);
        if self.codes.len() != bytes {
            return wrong("codes", format!("{bytes} bytes"), self.codes.len());
        }
        let blocks = n.div_ceil(*rows) * k.div_ceil(*columns);
        if values.len() != blocks {
            return wrong("scales", blocks.to_string(), values.len());
        }
        match zeros {
            Zeros::Each(zeros) if zeros.len() != blocks => return wrong("zeros", blocks.to_string(), zeros.len()),
            Zeros::Each(_) if !matches!(self.code, Code::U4 | Code::U8) => {
                return wrong("zeros", "none".to_owned(), blocks);
            }
            _ => {}
        }
        if let Some(order) = &self.order {
            let mut seen = vec![false; k];
            let mut is_new =
                |column: u32| seen.get_mut(column as usize).is_some_and(|seen| !std::mem::replace(seen, true));
            if order.len() != k || !order.iter().all(|&column| is_new(column)) {
                return wrong("order", format!("a permutation of 0..{k}"), order.len());
            }
        }
        Ok(())
    }

    /// Scale and zero point of code `column` of a row.
    pub fn scale(&self, row: usize, column: usize) -> (f32, u8) {
        let Scales { rows, columns, values, zeros } = &self.scales;
        let block = row / rows * self.shape[1].div_ceil(*columns) + column / columns;
        let zero = match zeros {
            Zeros::All(zero) => *zero,
            Zeros::Each(zeros) => zeros[block],
        };
        (values[block], zero)
    }

    /// Code `column` of a row, as it is stored.
    pub fn code(&self, row: usize, column: usize) -> u8 {
        let first = row * self.code.row_bytes(self.shape[1]);
        match self.code.bits() {
            4 => self.codes[first + column / 2] >> (column % 2 * 4) & 0xf,
            _ => self.codes[first + column],
        }
    }

    /// A code at that place whose element is 0, or of a table's the one nearest to it.
    pub(crate) fn zero_code(&self, row: usize, column: usize) -> u8 {
        match &self.code {
            Code::U4 | Code::U8 => self.scale(row, column).1,
            Code::Table(table) => {
                let nearest = table.iter().enumerate().min_by(|(_, a), (_, b)| a.abs().total_cmp(&b.abs()));
                nearest.map_or(0, |(code, _)| code as u8)
            }
            Code::E4m3 => 0,
        }
    }

    /// The row's elements in f32, in the order of the inputs. `to` has `k` elements.
    pub fn row(&self, row: usize, to: &mut [f32]) {
        for (column, j) in (0..self.shape[1]).map(|j| (self.order.as_ref().map_or(j, |order| order[j] as usize), j)) {
            let (scale, zero) = self.scale(row, j);
            let code = self.code(row, j);
            to[column] = scale
                * match &self.code {
                    Code::U4 | Code::U8 => f32::from(i16::from(code) - i16::from(zero)),
                    Code::Table(table) => table[usize::from(code)],
                    Code::E4m3 => e4m3(code),
                };
        }
    }

    /// The weight as a dense tensor of `dtype`, f32, bf16 or f16, rounded to nearest.
    pub fn dense(&self, dtype: DType) -> WeightView {
        let [n, k] = self.shape;
        let mut data = Vec::with_capacity(n * k * dtype.size());
        let mut values = vec![0f32; k];
        for row in 0..n {
            self.row(row, &mut values);
            match dtype {
                DType::BF16 => data.extend(values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes())),
                DType::F16 => data.extend(values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes())),
                _ => data.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            }
        }
        WeightView { name: self.name.clone(), dtype, shape: vec![n, k], data: data.into() }
    }
}

/// Four bits of exponent, three of mantissa, no infinities.
pub(crate) fn e4m3(code: u8) -> f32 {
    let (sign, exponent, mantissa) = (code >> 7, code >> 3 & 0xf, f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa * 2f32.powi(-9),
        15 if code & 7 == 7 => f32::NAN,
        _ => (8.0 + mantissa) * 2f32.powi(i32::from(exponent) - 10),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

/// Checks that the parts are a gate and an up projection of the same shape.
pub(crate) fn check_gated(parts: &[LinearPart]) -> Result<()> {
    let shapes = parts.iter().map(|part| part.weight.shape()).collect::<Result<Vec<_>>>()?;
    match shapes.as_slice() {
        [gate, up] if gate == up => Ok(()),
        _ => {
            let found: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
            Err(Error::operator("gated_matrix", "parts", "gate and up, of one shape", found.join(" and ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_codes_are_the_formats_numbers() {
        for (code, expected) in [(0, 0.0), (1, 2f32.powi(-9)), (8, 2f32.powi(-6)), (0x38, 1.0), (0x7e, 448.0)] {
            assert_eq!(e4m3(code), expected);
            assert_eq!(e4m3(code | 0x80), -expected);
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }
}
