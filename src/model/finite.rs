//! Finds weights that are infinite or NaN.

use crate::dtype::DType;

/// Elements per check: long enough to vectorise, short enough to stay in L1 for the second look.
const BLOCK: usize = 4096;

/// Index and value of the first element of little-endian `data` that is infinite or not a number.
pub(super) fn first_not_finite(dtype: DType, data: &[u8]) -> Option<(usize, f32)> {
    match dtype {
        DType::F32 => search(data, u32::from_le_bytes, |bits| bits & 0x7f80_0000 == 0x7f80_0000, f32::from_bits),
        DType::BF16 => {
            let value = |bits| half::bf16::from_bits(bits).to_f32();
            search(data, u16::from_le_bytes, |bits| bits & 0x7f80 == 0x7f80, value)
        }
        DType::F16 => {
            let value = |bits| half::f16::from_bits(bits).to_f32();
            search(data, u16::from_le_bytes, |bits| bits & 0x7c00 == 0x7c00, value)
        }
        DType::E4M3 => search(data, u8::from_le_bytes, |bits| bits & 0x7f == 0x7f, |_| f32::NAN),
        DType::E5M2 => search(
            data,
            u8::from_le_bytes,
            |bits| bits & 0x7c == 0x7c,
            |bits| if bits & 3 == 0 { f32::INFINITY } else { f32::NAN },
        ),
        DType::I8 | DType::U8 | DType::U32 => None,
    }
}

fn search<const SIZE: usize, T: Copy>(
    data: &[u8],
    bits: impl Fn([u8; SIZE]) -> T,
    bad: impl Fn(T) -> bool,
    value: impl Fn(T) -> f32,
) -> Option<(usize, f32)> {
    let (elements, _) = data.as_chunks::<SIZE>();
    let block = elements.chunks(BLOCK).position(|block| block.iter().fold(false, |any, e| any | bad(bits(*e))))?;
    let index = block * BLOCK + elements[block * BLOCK..].iter().position(|e| bad(bits(*e)))?;
    Some((index, value(bits(elements[index]))))
}
