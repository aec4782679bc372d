//! Packed codes: transposed, unpacked, and packed as [`CodedWeight`](crate::ops::CodedWeight) has them.

use std::thread;

use crate::device::Bytes;

/// How a row stores its codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fields {
    /// One after another from the lowest bit up, across the borders of words.
    Dense,
    /// As many whole ones as a word of 32 bits holds, from the lowest bit up.
    InWords,
}

/// Rows per unit of parallel work: the tiles of the loops below divide it.
const ROWS: usize = 128;

/// Fills `to`, rows of `row` bytes, in parallel: `fill` gets the number of the first row and some rows.
fn in_parallel(to: &mut [u8], row: usize, fill: impl Fn(usize, &mut [u8]) + Sync) {
    const SMALL: usize = 1 << 20;
    let threads = if to.len() < SMALL { 1 } else { thread::available_parallelism().map_or(1, usize::from) };
    if threads == 1 || row == 0 {
        return fill(0, to);
    }
    let rows = (to.len() / row).div_ceil(threads).next_multiple_of(ROWS);
    thread::scope(|scope| {
        for (i, block) in to.chunks_mut(rows * row).enumerate() {
            let fill = &fill;
            scope.spawn(move || fill(i * rows, block));
        }
    });
}

/// 32-bit words `[rows, columns]` as `[columns, rows]`.
pub(super) fn transpose_words(words: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    // A cache line of the input.
    const TILE: usize = 16;
    let mut to = vec![0; 4 * rows * columns];
    in_parallel(&mut to, 4 * rows, |first, to| {
        for (tile, to) in to.chunks_mut(TILE * 4 * rows).enumerate() {
            let (column, width) = (first + tile * TILE, to.len() / (4 * rows));
            for row in 0..rows {
                let from = &words[4 * (row * columns + column)..][..4 * width];
                for (i, word) in from.chunks_exact(4).enumerate() {
                    to[4 * (i * rows + row)..][..4].copy_from_slice(word);
                }
            }
        }
    });
    to
}

/// 4-bit codes of words `[k, n / 8]`, which hold eight outputs each, as codes `[n, k]`, two to a byte. Field
/// `positions[j]` of a word is output `j`.
pub(super) fn transpose_nibbles(words: &[u8], k: usize, n: usize, positions: [u32; 8]) -> Vec<u8> {
    const TILE: usize = 16;
    let (columns, row) = (n / 8, k.div_ceil(2));
    let mut to = vec![0; n * row];
    in_parallel(&mut to, row, |first, to| {
        for (tile, to) in to.chunks_mut(8 * TILE * row).enumerate() {
            let (column, width) = (first / 8 + tile * TILE, to.len() / (8 * row));
            for start in (0..k).step_by(8) {
                let depth = (k - start).min(8);
                for c in 0..width {
                    let mut inputs = [0u32; 8];
                    for (i, word) in inputs[..depth].iter_mut().enumerate() {
                        *word = word_at(words, (start + i) * columns + column + c);
                    }
                    for (j, position) in positions.into_iter().enumerate() {
                        let fields = inputs.iter().rev().fold(0, |all, word| all << 4 | word >> (4 * position) & 0xf);
                        let bytes = depth.div_ceil(2);
                        to[(8 * c + j) * row + start / 2..][..bytes].copy_from_slice(&fields.to_le_bytes()[..bytes]);
                    }
                }
            }
        }
    });
    to
}

fn word_at(words: &[u8], index: usize) -> u32 {
    let bytes = &words[4 * index..][..4];
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Codes `[n, k]`, of four bits two to a byte, from rows of `stride` bytes that hold fields of 2, 3, 4 or 8 bits. With
/// `order`, code `j` of the result is field `order[j]`.
pub(super) fn codes(
    from: &Bytes,
    stride: usize,
    (bits, fields): (usize, Fields),
    [n, k]: [usize; 2],
    order: Option<&[u32]>,
) -> Bytes {
    let row = if bits <= 4 { k.div_ceil(2) } else { k };
    if order.is_none() && matches!(bits, 4 | 8) && stride == row {
        return from.clone();
    }
    let mut to = vec![0; n * row];
    in_parallel(&mut to, row, |first, to| {
        let (mut unpacked, mut sorted) = (vec![0; k], vec![0; k]);
        for (i, to) in to.chunks_mut(row).enumerate() {
            unpack(bits, fields, &from[(first + i) * stride..][..stride], &mut unpacked);
            if let Some(order) = order {
                sorted.iter_mut().zip(order).for_each(|(to, &input)| *to = unpacked[input as usize]);
            }
            let codes = if order.is_some() { &sorted } else { &unpacked };
            if bits <= 4 {
                for (to, pair) in to.iter_mut().zip(codes.chunks(2)) {
                    *to = pair[0] | pair.get(1).map_or(0, |high| high << 4);
                }
            } else {
                to.copy_from_slice(codes);
            }
        }
    });
    to.into()
}

/// Fields of 2, 3, 4 or 8 bits, one to a byte.
pub(super) fn unpack(bits: usize, fields: Fields, from: &[u8], to: &mut [u8]) {
    match (bits, fields) {
        (2, _) => unpack_dense::<2>(from, to),
        (3, Fields::Dense) => unpack_dense::<3>(from, to),
        (4, _) => unpack_dense::<4>(from, to),
        (8, _) => to.copy_from_slice(&from[..to.len()]),
        _ => {
            for (to, word) in to.chunks_mut(32 / bits).zip(from.chunks_exact(4)) {
                let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                to.iter_mut().enumerate().for_each(|(i, to)| *to = (word >> (i * bits)) as u8 & ((1 << bits) - 1));
            }
        }
    }
}

fn unpack_dense<const BITS: usize>(from: &[u8], to: &mut [u8]) {
    // Eight fields are as many bytes as a field has bits.
    for (to, from) in to.chunks_mut(8).zip(from.chunks(BITS)) {
        let mut bytes = [0; 4];
        bytes[..from.len()].copy_from_slice(from);
        let word = u32::from_le_bytes(bytes);
        to.iter_mut().enumerate().for_each(|(i, to)| *to = (word >> (i * BITS)) as u8 & ((1 << BITS) - 1));
    }
}

/// `[rows, columns]` as `[columns, rows]`.
pub(super) fn transpose<T: Copy>(from: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| from[row * columns + column])).collect()
}
