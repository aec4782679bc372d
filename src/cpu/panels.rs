//! How weights are laid out for products.
//!
//! A panel is sixteen rows of the weight, which are columns of the result, side by side: first the first elements of all
//! sixteen, then the next ones. A vector then holds the same step of `k` of as many columns as it has lanes, and is
//! multiplied with one word of `x` that is broadcast to all of them. Panels lie behind each other, so a product reads the
//! weight as one or two streams, whatever its shape.

use std::sync::Arc;

use crate::cpu::buffer::Pages;
use crate::cpu::pool::{Pool, Shareable};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::{ActivationBits, Code, CodedWeight, Scales, WeightView, Zeros};

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 16;
/// Bytes of a panel in one block of `k`: sums of blocks are added in order.
pub(crate) const BLOCK_BYTES: usize = 4 << 10;
/// Elements of bf16 in a block of `k`.
const BLOCK_ELEMENTS: usize = BLOCK_BYTES / (2 * COLUMNS);
/// Codes are multiplied eight at a time.
const CODES: usize = 8;
/// Codes whose products with `x` are added up as integers, at most: these have one scale of `x`. The sums stay within 31
/// bits.
pub(super) const LARGEST_UNIT: usize = 256;
/// The same where `x` has eight bits: the more numbers share a scale, the less it fits each.
const LARGEST_UNIT_OF_EIGHT_BITS: usize = 128;

/// Elements of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    F32,
    F16,
    /// Two consecutive elements of a column side by side.
    Bf16,
    /// Codes of four consecutive elements of a column side by side.
    U8,
    /// Codes of eight consecutive elements in four bytes: the first four in the lower halves.
    U4,
}

/// The rows of a block of a linear layer.
pub(crate) struct Panels {
    pub(super) format: Format,
    pub(super) k: usize,
    pub(super) scaling: Option<Scaling>,
    /// Of dense elements, what sums over a group are multiplied with.
    pub(super) scales: Option<GroupScales>,
    pages: Pages,
}

/// Scales of groups of dense elements that are whole blocks of `k`, or all of a row.
pub(super) struct GroupScales {
    group: usize,
    /// `[panel][group][column]`.
    values: Vec<f32>,
}

impl GroupScales {
    /// The scales of a panel's sixteen columns, for the group of element `start`.
    pub fn at(&self, panel: usize, k: usize, start: usize) -> *const f32 {
        let place = panel * k.div_ceil(self.group) + start / self.group;
        self.values[place * COLUMNS..].as_ptr()
    }
}

/// What makes numbers of codes.
pub(super) struct Scaling {
    /// Codes whose products are added up before they are scaled.
    pub unit: usize,
    /// Codes that share a scale: a multiple of `unit`, or all of a row.
    pub group: usize,
    /// `[panel][group][column]`.
    pub scales: Vec<f32>,
    pub zeros: PanelZeros,
    /// Translates codes of four bits.
    pub table: Option<[u8; 16]>,
    /// Which input each code belongs to.
    pub order: Option<Arc<[u32]>>,
    pub activations: ActivationBits,
}

/// Zero points.
pub(super) enum PanelZeros {
    All(i32),
    /// `[panel][group][column]`.
    Each(Vec<i32>),
}

impl Format {
    /// Bytes of a panel of rows of `k` elements.
    pub const fn panel_bytes(self, k: usize) -> usize {
        COLUMNS
            * match self {
                Self::F32 => 4 * k,
                Self::F16 => 2 * k,
                Self::Bf16 => 2 * k.next_multiple_of(2),
                Self::U8 => k.next_multiple_of(CODES),
                Self::U4 => k.next_multiple_of(CODES) / 2,
            }
    }
}

impl Panels {
    /// A dense weight `[n, k]` of f32, bf16 or f16 whose data have the size of its shape.
    pub(crate) fn dense(pool: &Pool, view: &WeightView, n: usize, k: usize) -> Result<Self> {
        let row_bytes = k * view.dtype.size();
        let row = |row: usize| &view.data[row * row_bytes..][..row_bytes];
        let (format, pages) = match view.dtype {
            DType::F16 => (Format::F16, panels(pool, Format::F16, n, k, row, interleave::<2>)?),
            DType::F32 => (Format::F32, panels(pool, Format::F32, n, k, row, interleave::<4>)?),
            _ => (Format::Bf16, panels(pool, Format::Bf16, n, k, row, interleave::<4>)?),
        };
        Ok(Self { format, k, scaling: None, scales: None, pages })
    }

    /// A checked weight of codes; `None` where its kernels do not take it.
    pub(crate) fn coded(pool: &Pool, weight: &CodedWeight) -> Result<Option<Self>> {
        let [n, k] = weight.shape;
        let (format, table, factor) = match &weight.code {
            Code::U4 => (Format::U4, None, 1.0),
            Code::U8 => (Format::U8, None, 1.0),
            Code::Table(table) => match integers(table) {
                Some((codes, factor)) => (Format::U4, Some(codes), factor),
                None => return Ok(None),
            },
            Code::E4m3 => return Self::e4m3(pool, weight),
        };
        let group = weight.scales.columns.min(k);
        let largest = match weight.activations {
            ActivationBits::Full => LARGEST_UNIT,
            ActivationBits::Eight => LARGEST_UNIT_OF_EIGHT_BITS,
        };
        let unit = if group == k { largest } else { 1 << group.trailing_zeros().min(largest.ilog2()) };
        if unit < 2 * CODES {
            return Ok(None);
        }
        let row_bytes = weight.code.row_bytes(k);
        let row = |row: usize| &weight.codes[row * row_bytes..][..row_bytes];
        let pages = match format {
            Format::U4 => panels(pool, format, n, k, row, interleave_nibbles)?,
            _ => panels(pool, format, n, k, row, interleave::<4>)?,
        };
        let scale = |(row, g): (usize, usize)| weight.scale(row, g * group);
        let zeros = match (&weight.scales.zeros, table) {
            (_, Some(_)) => PanelZeros::All(TABLE_ZERO.into()),
            (Zeros::All(zero), None) => PanelZeros::All((*zero).into()),
            (Zeros::Each(_), None) => {
                PanelZeros::Each(places(n, k.div_ceil(group)).map(|place| scale(place).1.into()).collect())
            }
        };
        let scales = places(n, k.div_ceil(group)).map(|place| scale(place).0 * factor).collect();
        let (order, activations) = (weight.order.clone(), weight.activations);
        let scaling = Some(Scaling { unit, group, scales, zeros, table, order, activations });
        Ok(Some(Self { format, k, scaling, scales: None, pages }))
    }

    /// bf16 holds the codes exactly; the scales are applied to sums. `None` where a block of `k` has several scales.
    fn e4m3(pool: &Pool, weight: &CodedWeight) -> Result<Option<Self>> {
        let [n, k] = weight.shape;
        let group = weight.scales.columns.min(k);
        if weight.order.is_some() || (group < k && !group.is_multiple_of(BLOCK_ELEMENTS)) {
            return Ok(None);
        }
        let values = places(n, k.div_ceil(group)).map(|(row, g)| weight.scale(row, g * group).0).collect();
        let one = Scales { rows: n, columns: k, values: vec![1.0], zeros: Zeros::All(0) };
        let codes = CodedWeight { scales: one, ..weight.clone() }.dense(DType::BF16);
        let scales = Some(GroupScales { group, values });
        Ok(Some(Self { scales, ..Self::dense(pool, &codes, n, k)? }))
    }

    /// The first byte of a panel.
    pub(super) fn panel(&self, panel: usize) -> *const u8 {
        self.pages.as_ptr().wrapping_add(panel * self.panel_bytes())
    }

    pub(super) fn panel_bytes(&self) -> usize {
        self.format.panel_bytes(self.k)
    }

    /// A row as numbers, in the order of the inputs: `k` of them.
    pub(crate) fn row(&self, row: usize, to: &mut [f32]) {
        let (panel, column) = (row / COLUMNS, row % COLUMNS);
        let bytes = self.panel_bytes();
        let panel_bytes = &self.pages.bytes()[panel * bytes..][..bytes];
        let byte = |word: usize, size: usize| (word * COLUMNS + column) * size;
        let two = |at: usize| u16::from_le_bytes([panel_bytes[at], panel_bytes[at + 1]]);
        for j in 0..self.k {
            let code = match self.format {
                Format::F32 => {
                    let at = byte(j, 4);
                    to[j] = f32::from_bits(u32::from(two(at)) | u32::from(two(at + 2)) << 16);
                    continue;
                }
                Format::F16 => {
                    to[j] = half::f16::from_bits(two(byte(j, 2))).to_f32();
                    continue;
                }
                Format::Bf16 => {
                    let x = half::bf16::from_bits(two(byte(j / 2, 4) + j % 2 * 2)).to_f32();
                    let place = |scales: &GroupScales| {
                        (panel * self.k.div_ceil(scales.group) + j / scales.group) * COLUMNS + column
                    };
                    to[j] = x * self.scales.as_ref().map_or(1.0, |scales| scales.values[place(scales)]);
                    continue;
                }
                Format::U8 => panel_bytes[byte(j / 4, 4) + j % 4],
                Format::U4 => panel_bytes[byte(j / 8, 4) + j % 4] >> (j / 4 % 2 * 4) & 0xf,
            };
            let Some(Scaling { group, scales, zeros, table, order, .. }) = &self.scaling else { return };
            let code = table.map_or(code, |table| table[usize::from(code)]);
            let place = (panel * self.k.div_ceil(*group) + j / group) * COLUMNS + column;
            let zero = match zeros {
                PanelZeros::All(zero) => *zero,
                PanelZeros::Each(zeros) => zeros[place],
            };
            let input = order.as_ref().map_or(j, |order| order[j] as usize);
            to[input] = (i32::from(code) - zero) as f32 * scales[place];
        }
    }
}

/// Row and group of each scale, in the order of `[panel][group][column]`. Columns beyond the last row have its scales.
fn places(n: usize, groups: usize) -> impl Iterator<Item = (usize, usize)> {
    let of_panel = move |panel: usize| {
        let of_group = move |group: usize| (0..COLUMNS).map(move |c| ((panel * COLUMNS + c).min(n - 1), group));
        (0..groups).flat_map(of_group)
    };
    (0..n.div_ceil(COLUMNS)).flat_map(of_panel)
}

/// What is added to a table's numbers, so that none is negative.
const TABLE_ZERO: u8 = 12;

/// A table's numbers as integers from 0 to `2 · TABLE_ZERO`, and what they must be multiplied with; `None` if they are
/// not multiples of a half, or too large.
fn integers(table: &[f32; 16]) -> Option<([u8; 16], f32)> {
    let mut codes = [0; 16];
    for (code, x) in codes.iter_mut().zip(table) {
        let shifted = 2.0 * x + f32::from(TABLE_ZERO);
        *code = shifted as u8;
        if f32::from(*code) != shifted || *code > 2 * TABLE_ZERO {
            return None;
        }
    }
    Some((codes, 0.5))
}

/// Packs all panels of `n` rows. `pack` gets the sixteen rows of a panel and its zeroed bytes.
fn panels<'a>(
    pool: &Pool,
    format: Format,
    n: usize,
    k: usize,
    row: impl Fn(usize) -> &'a [u8] + Sync,
    pack: impl Fn(&[&[u8]], &mut [u8]) + Sync,
) -> Result<Pages> {
    let (count, bytes) = (n.div_ceil(COLUMNS), format.panel_bytes(k));
    let mut pages = Pages::new(count * bytes)?;
    let to = Shareable::new(pages.as_mut_ptr());
    pool.run(count, &|_, panel| {
        // Columns beyond the last row are copies of it.
        let rows: [&[u8]; COLUMNS] = std::array::from_fn(|c| row((panel * COLUMNS + c).min(n - 1)));
        // SAFETY: the pages have room for all panels, and each task writes its own.
        pack(&rows, unsafe { std::slice::from_raw_parts_mut(to.get().add(panel * bytes), bytes) });
    });
    Ok(pages)
}

/// `WORD` bytes of each row, then the next ones of each; the last may be shorter.
fn interleave<const WORD: usize>(rows: &[&[u8]], to: &mut [u8]) {
    for (column, row) in rows.iter().enumerate() {
        let words = row.chunks_exact(WORD);
        let rest = words.remainder();
        let mut places = to[column * WORD..].chunks_mut(WORD * rows.len());
        for (word, to) in words.zip(&mut places) {
            to[..WORD].copy_from_slice(word);
        }
        if let Some(to) = places.next() {
            to[..rest.len()].copy_from_slice(rest);
        }
    }
}

/// Codes of four bits, eight of each row in four bytes.
fn interleave_nibbles(rows: &[&[u8]], to: &mut [u8]) {
    for (column, row) in rows.iter().enumerate() {
        for (codes, to) in row.chunks(4).zip(to[4 * column..].chunks_mut(4 * rows.len())) {
            let mut bytes = [0; 4];
            bytes[..codes.len()].copy_from_slice(codes);
            let [a, b, c, d] = bytes;
            let pair = |first: u8, second: u8| [first & 0xf | second << 4, first >> 4 | second & 0xf0];
            let ([w, x], [y, z]) = (pair(a, c), pair(b, d));
            to[..4].copy_from_slice(&[w, x, y, z]);
        }
    }
}
