//! Rows of `x` as the kernels multiply them.

use std::sync::Arc;

use crate::cpu::buffer::convert;
use crate::cpu::simd::{Bf16, Element, F32, Isa, Kernel, Simd, with_element};
use crate::dtype::DType;
use crate::ops::ActivationBits;

use crate::cpu::panels::{Format, LARGEST_UNIT, PanelZeros, Panels};

/// Bits of the lower part of a number of fifteen: kernels multiply the upper part's products with 2⁷.
const LOW_BITS: u32 = 7;

/// What a row becomes. Panels that want the same share it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    F32,
    Bf16,
    Integers(Integers),
}

/// Rows as integers with a scale for each unit, as products with codes want them: of eight bits, or of fifteen in two
/// parts of eight (the upper seven with the sign, and the lower seven), which are multiplied one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Integers {
    pub unit: usize,
    pub parts: usize,
    /// Sums of units are multiplied with this: the weight's zero point, or one if it has many.
    pub factor: i32,
    pub order: Option<Arc<[u32]>>,
}

/// Rows of `k` elements in a [`Form`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    pub form: Form,
    pub k: usize,
}

impl Form {
    pub fn of(isa: Isa, x: DType, panels: &Panels) -> Self {
        match &panels.scaling {
            Some(scaling) => Self::Integers(Integers {
                unit: scaling.unit,
                parts: match scaling.activations {
                    ActivationBits::Full => 2,
                    ActivationBits::Eight => 1,
                },
                factor: match scaling.zeros {
                    PanelZeros::All(zero) => zero,
                    PanelZeros::Each(_) => 1,
                },
                order: scaling.order.clone(),
            }),
            None if isa.has_pairs() && x == DType::BF16 && panels.format == Format::Bf16 => Self::Bf16,
            None => Self::F32,
        }
    }
}

impl Layout {
    /// Bytes from a row to the next. An odd number of cache lines: rows of a power of two would share their places in the
    /// first-level cache.
    pub fn stride(&self) -> usize {
        const LINE: usize = 64;
        let bytes = match &self.form {
            Form::F32 => 4 * self.k.next_multiple_of(2),
            Form::Bf16 => 2 * self.k.next_multiple_of(2),
            Form::Integers(_) => self.sums() + 4 * self.units(),
        };
        (bytes.div_ceil(LINE) | 1) * LINE
    }

    /// Bytes of a part of a row of integers.
    pub fn part(&self) -> usize {
        self.k.next_multiple_of(8)
    }

    /// Where a row's scales begin, f32 `[unit]`.
    pub fn scales(&self) -> usize {
        let Form::Integers(integers) = &self.form else { return 0 };
        integers.parts * self.part()
    }

    /// Where a row's sums begin, i32 `[unit]`: less the sum of a unit's integers, times the factor.
    pub fn sums(&self) -> usize {
        self.scales() + 4 * self.units()
    }

    fn units(&self) -> usize {
        let Form::Integers(integers) = &self.form else { return 0 };
        self.k.div_ceil(integers.unit)
    }
}

/// Prepares `count` rows of `x` from row `first` on.
pub(super) struct Prepare<'a> {
    pub layout: &'a Layout,
    /// `[row][k]`.
    pub x: *const u8,
    pub dtype: DType,
    pub first: usize,
    pub count: usize,
    /// `[row]`, a stride apart. No two threads have the same rows.
    pub to: *mut u8,
}

impl Kernel for Prepare<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_element!(self.dtype, X => {
            for row in self.first..self.first + self.count {
                // SAFETY: `x` has the row, and `to` a stride for it.
                unsafe {
                    let from = self.x.add(row * self.layout.k * X::SIZE);
                    self.prepare::<S, X>(s, from, self.to.add(row * self.layout.stride()));
                }
            }
        });
    }
}

impl Prepare<'_> {
    /// # Safety
    /// `from` has `k` elements, and `to` a stride of bytes.
    #[inline(always)]
    unsafe fn prepare<S: Simd, X: Element>(&self, s: S, from: *const u8, to: *mut u8) {
        let k = self.layout.k;
        // SAFETY: as the caller promises; a stride has room for an even number of elements, or for all that integers need.
        unsafe {
            match &self.layout.form {
                Form::F32 => {
                    to.cast::<f32>().add(k.next_multiple_of(2) - 1).write(0.0);
                    convert::<S, X, F32>(s, from, to, k);
                }
                Form::Bf16 => {
                    to.cast::<u16>().add(k.next_multiple_of(2) - 1).write(0);
                    convert::<S, X, Bf16>(s, from, to, k);
                }
                Form::Integers(integers) => self.quantize::<S, X>(s, integers, from, to),
            }
        }
    }

    /// # Safety
    /// As [`prepare`](Self::prepare).
    #[inline(always)]
    unsafe fn quantize<S: Simd, X: Element>(&self, s: S, integers: &Integers, from: *const u8, to: *mut u8) {
        let Integers { unit, parts, factor, order } = integers;
        let (k, part) = (self.layout.k, self.layout.part());
        let (scales, sums) = (self.layout.scales(), self.layout.sums());
        let most = if *parts == 2 { 127 << LOW_BITS } else { 127 } as f32;
        let mut values = [0f32; LARGEST_UNIT];
        for u in 0..k.div_ceil(*unit) {
            let (start, count) = (u * unit, (*unit).min(k - u * unit));
            let values = &mut values[..count.next_multiple_of(8)];
            values[count..].fill(0.0);
            // SAFETY: inputs are below `k`; the unit's codes, its scale and its sum have their places in the row.
            unsafe {
                match order {
                    Some(order) => {
                        for (value, &input) in values.iter_mut().zip(&order[start..start + count]) {
                            let element = X::load_first(s, from.add(input as usize * X::SIZE), 1);
                            let mut lanes = [0f32; 16];
                            s.store(lanes.as_mut_ptr(), element);
                            *value = lanes[0];
                        }
                    }
                    None => convert::<S, X, F32>(s, from.add(start * X::SIZE), values.as_mut_ptr().cast(), count),
                }
                let largest = values.iter().fold(0f32, |largest, x| if x.abs() > largest { x.abs() } else { largest });
                // NaN where an element is NaN or infinite, so that the results are.
                let finite = values.iter().fold(0f32, |sum, x| sum + x * 0.0);
                // What is smaller is zero: its inverse would overflow.
                let (scale, inverse) = if largest > 1e-30 { (largest / most, most / largest) } else { (0.0, 0.0) };
                let (high, low) = (to.add(start), to.add(part + start));
                let mut sum = 0i32;
                for (i, x) in values.iter().enumerate() {
                    // Rounds to the nearest integer, as every addition does.
                    const MAGIC: f32 = 12_582_912.0;
                    let q = ((x * inverse + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
                    sum = sum.wrapping_add(q);
                    if *parts == 2 {
                        high.add(i).write((q >> LOW_BITS) as u8);
                        low.add(i).write((q & ((1 << LOW_BITS) - 1)) as u8);
                    } else {
                        high.add(i).write(q as u8);
                    }
                }
                to.add(scales).cast::<f32>().add(u).write(scale + finite);
                to.add(sums).cast::<i32>().add(u).write(sum.wrapping_neg().wrapping_mul(*factor));
            }
        }
    }
}
