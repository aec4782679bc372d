//! The tensors of one linear layer, checked as they are read.

use std::sync::Arc;

use safetensors::Dtype;

use crate::error::{Error, Result};
use crate::model::tensors::{Stored, Tensors};
use crate::ops::{Zeros, e4m3};

/// A linear layer, or the embedding, of a checkpoint.
pub(super) struct Layer<'a> {
    tensors: &'a Tensors,
    /// What the names of its tensors begin with.
    name: &'a str,
    /// `[n, k]`: outputs, inputs.
    pub shape: [usize; 2],
}

impl<'a> Layer<'a> {
    pub fn new(tensors: &'a Tensors, name: &'a str, shape: [usize; 2]) -> Self {
        Self { tensors, name, shape }
    }

    /// The tensor whose name ends with `part`.
    pub fn find(&self, part: &str) -> Option<&'a Stored> {
        let found = self.tensors.get(&self.name_of(part));
        found.inspect(|stored| stored.mark_used())
    }

    fn name_of(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    /// The same; the tensor must exist.
    pub fn required(&self, part: &str) -> Result<&'a Stored> {
        self.find(part).ok_or_else(|| self.missing(part, "a tensor, as this layer is quantized"))
    }

    pub fn missing(&self, part: &str, expected: impl ToString) -> Error {
        self.tensors.missing(self.name, &self.name_of(part), expected)
    }

    /// A tensor of one of these dtypes, of this shape.
    pub fn tensor(&self, part: &str, dtypes: &[Dtype], shape: &[usize]) -> Result<&'a Stored> {
        let stored = self.required(part)?;
        stored.check(dtypes, &[shape])?;
        Ok(stored)
    }

    /// An error about the layer's size.
    pub fn bad_shape(&self, part: &str, expected: impl ToString) -> Error {
        let [n, k] = self.shape;
        let found = format!("{n} outputs of {k} inputs");
        match self.find(part) {
            Some(stored) => stored.error(expected, found),
            None => self.missing(part, expected),
        }
    }

    /// Tensors that the engine does not need: scales of static activations, which are computed anew here.
    pub fn ignore(&self, parts: &[&str]) -> Result<()> {
        parts.iter().filter_map(|part| self.find(part)).try_for_each(Stored::check_finite)
    }

    /// The order of inputs by their groups of `columns`, where it is not their own; `part` has the group of each input.
    pub fn order(&self, part: &str, columns: usize) -> Result<Option<Arc<[u32]>>> {
        let (k, Some(stored)) = (self.shape[1], self.find(part)) else { return Ok(None) };
        stored.check(&[Dtype::I32, Dtype::I64], &[&[k]])?;
        let groups: Vec<i64> = match stored.entry.dtype {
            Dtype::I32 => numbers(&stored.data, |bytes| i32::from_le_bytes(bytes).into()),
            _ => numbers(&stored.data, i64::from_le_bytes),
        };
        // compressed-tensors writes -1 where there is no order.
        if groups.iter().all(|&group| group == -1) {
            return Ok(None);
        }
        let mut left = vec![columns; k.div_ceil(columns)];
        if let Some(last) = left.last_mut() {
            *last -= k.next_multiple_of(columns) - k;
        }
        for (i, &group) in groups.iter().enumerate() {
            match usize::try_from(group).ok().and_then(|group| left.get_mut(group)) {
                Some(0) => {
                    return Err(stored.error_at(
                        i,
                        format_args!("groups of {columns} inputs"),
                        format_args!("more of {group}"),
                    ));
                }
                Some(left) => *left -= 1,
                None => {
                    return Err(stored.error_at(i, format_args!("a group from 0 to {}", left.len() - 1), group));
                }
            }
        }
        if groups.is_sorted() {
            return Ok(None);
        }
        let mut order: Vec<u32> = (0..k as u32).collect();
        order.sort_by_key(|&input| groups[input as usize]);
        Ok(Some(order.into()))
    }
}

impl Stored {
    /// Checks dtype and shape.
    pub fn check(&self, dtypes: &[Dtype], shapes: &[&[usize]]) -> Result<()> {
        let list = |all: Vec<String>| all.join(" or ");
        if !dtypes.contains(&self.entry.dtype) {
            let expected = list(dtypes.iter().map(Dtype::to_string).collect());
            return Err(self.error(format_args!("dtype {expected}"), self.entry.dtype));
        }
        if !shapes.contains(&&*self.entry.shape) {
            let expected = list(shapes.iter().map(|shape| format!("{shape:?}")).collect());
            return Err(self.error(format_args!("shape {expected}"), format_args!("{:?}", self.entry.shape)));
        }
        Ok(())
    }

    /// The elements in f32. Bytes are exponents, as MX formats store scales.
    pub fn floats(&self) -> Result<Vec<f32>> {
        let each = |value: &dyn Fn(u8) -> f32| {
            let values: Vec<f32> = (0..=255).map(value).collect();
            self.data.iter().map(|&code| values[usize::from(code)]).collect()
        };
        Ok(match self.entry.dtype {
            Dtype::F32 => numbers(&self.data, f32::from_le_bytes),
            Dtype::BF16 => numbers(&self.data, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F16 => numbers(&self.data, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
            Dtype::F8_E4M3 => each(&e4m3),
            Dtype::F8_E8M0 | Dtype::U8 => each(&e8m0),
            other => return Err(self.error("scales in F32, BF16, F16, F8_E4M3 or F8_E8M0", other)),
        })
    }

    /// Scales: finite, and not zero.
    pub fn scales(&self) -> Result<Vec<f32>> {
        let scales = self.floats()?;
        match scales.iter().position(|scale| !scale.is_finite() || *scale == 0.0) {
            Some(index) => Err(self.error_at(index, "a finite scale that is not 0", scales[index])),
            None => Ok(scales),
        }
    }
}

/// A power of two: 127 is 1, 255 is not a number.
fn e8m0(code: u8) -> f32 {
    match code {
        // The smallest one is subnormal.
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

fn numbers<const SIZE: usize, T>(data: &[u8], number: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
    data.as_chunks::<SIZE>().0.iter().map(|bytes| number(*bytes)).collect()
}

/// Zero points, one beside each scale, or one for all.
pub(super) fn zeros(zeros: Vec<u8>) -> Zeros {
    match zeros.first() {
        Some(&first) if zeros.iter().all(|&zero| zero == first) => Zeros::All(first),
        _ => Zeros::Each(zeros),
    }
}
