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

impl Fields {
    /// Words of so many fields.
    pub fn words(self, bits: usize, count: usize) -> usize {
        match self {
            Self::Dense => (count * bits).div_ceil(32),
            Self::InWords => count.div_ceil(32 / bits),
        }
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Fields of `bits` from the lowest bit up, filled up to words.
    fn pack(bits: usize, fields: Fields, values: &[u8]) -> Vec<u8> {
        let per_word = 32 / bits;
        let mut bytes = Vec::new();
        for (i, value) in values.iter().enumerate() {
            for bit in 0..bits {
                let at = match fields {
                    Fields::Dense => i * bits + bit,
                    Fields::InWords => i / per_word * 32 + i % per_word * bits + bit,
                };
                bytes.resize(bytes.len().max((at / 32 + 1) * 4), 0);
                bytes[at / 8] |= (value >> bit & 1) << (at % 8);
            }
        }
        bytes
    }

    fn numbers(count: usize, bits: usize) -> Vec<u8> {
        (0..count).map(|i| ((i * 0x9e37_79b9) >> 13) as u8 & (u8::MAX >> (8 - bits))).collect()
    }

    proptest! {
        #[test]
        fn codes_are_what_was_packed(
            bits in prop::sample::select(vec![2usize, 3, 4, 8]),
            in_words in any::<bool>(),
            n in 1usize..5,
            k in 1usize..100,
            shuffled in any::<bool>(),
        ) {
            let fields = if in_words { Fields::InWords } else { Fields::Dense };
            let values = numbers(n * k, bits);
            let rows: Vec<Vec<u8>> = values.chunks(k).map(|row| pack(bits, fields, row)).collect();
            let order: Vec<u32> = (0..k as u32).rev().collect();
            let (from, stride) = (Bytes::from(rows.concat()), rows[0].len());
            let found = codes(&from, stride, (bits, fields), [n, k], shuffled.then_some(&order[..]));
            let row = if bits == 8 { k } else { k.div_ceil(2) };
            prop_assert_eq!(found.len(), n * row);
            for (i, expected) in values.iter().enumerate() {
                let (n, k) = (i / k, if shuffled { k - 1 - i % k } else { i % k });
                let byte = found[n * row + if bits == 8 { k } else { k / 2 }];
                let code = if bits == 8 { byte } else { byte >> (k % 2 * 4) & 15 };
                prop_assert_eq!(code, *expected);
            }
        }

        #[test]
        fn words_transposed_twice_are_themselves(rows in 1usize..40, columns in 1usize..300) {
            let words = numbers(4 * rows * columns, 8);
            let transposed = transpose_words(&words, rows, columns);
            for (i, word) in words.chunks(4).enumerate() {
                prop_assert_eq!(&transposed[4 * (i % columns * rows + i / columns)..][..4], word);
            }
            prop_assert_eq!(transpose_words(&transposed, columns, rows), words);
        }

        #[test]
        fn nibbles_go_where_their_positions_say(k in 1usize..40, words in 1usize..40) {
            let positions = [0, 4, 1, 5, 2, 6, 3, 7];
            let (from, n, row) = (numbers(4 * k * words, 8), 8 * words, k.div_ceil(2));
            let to = transpose_nibbles(&from, k, n, positions);
            for (input, output) in (0..k).flat_map(|input| (0..n).map(move |output| (input, output))) {
                let field = 8 * (input * words + output / 8) + positions[output % 8] as usize;
                let expected = from[field / 2] >> (field % 2 * 4) & 15;
                prop_assert_eq!(to[output * row + input / 2] >> (input % 2 * 4) & 15, expected);
            }
        }
    }

    /// Large enough for several threads, and no multiple of what each of them takes.
    #[test]
    fn threads_fill_all_rows() {
        let (rows, columns) = (300, 1537);
        let words = numbers(4 * rows * columns, 8);
        assert!(transpose_words(&transpose_words(&words, rows, columns), columns, rows) == words);
    }
}
