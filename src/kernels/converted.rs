//! Converts weights to another dtype than the checkpoint's.

use half::{bf16, f16};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::WeightView;

/// Elements per piece: enough for uploads to run at full speed.
const PIECE: usize = 1 << 20;

/// The elements of a view, f32, bf16 or f16, as bits of bf16 or f16 (`to`), piece by piece.
///
/// # Errors
/// A finite element is too large for f16.
pub(super) fn converted(view: &WeightView, to: DType) -> impl Iterator<Item = Result<Vec<u16>>> {
    let size = view.dtype.size();
    view.data.chunks(PIECE * size).enumerate().map(move |(i, bytes)| {
        let elements = bytes.chunks_exact(size).enumerate();
        elements.map(|(j, bytes)| narrowed(view, to, i * PIECE + j, bytes)).collect()
    })
}

fn narrowed(view: &WeightView, to: DType, index: usize, bytes: &[u8]) -> Result<u16> {
    let x = match (view.dtype, bytes) {
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (DType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        _ => return Err(Error::operator("weight", "dtype", "f32, bf16 or f16", view.dtype)),
    };
    if to == DType::BF16 {
        return Ok(bf16::from_f32(x).to_bits());
    }
    let narrow = f16::from_f32(x);
    if x.is_finite() && narrow.is_infinite() {
        let field = format!("{}: element {index}", view.name);
        return Err(Error::request(field, "at most 65504 in size, the largest f16", x));
    }
    Ok(narrow.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Bytes;

    fn view(values: &[f32]) -> WeightView {
        let data: Vec<u8> = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        WeightView { name: "w".to_owned(), dtype: DType::BF16, shape: vec![values.len()], data: Bytes::from(data) }
    }

    #[test]
    fn elements_keep_their_values_and_order_across_pieces() {
        let values: Vec<f32> = (0..PIECE + 3).map(|i| (i % 251) as f32 - 100.0).collect();
        let pieces: Vec<Vec<u16>> = converted(&view(&values), DType::F16).map(Result::unwrap).collect();
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [PIECE, 3]);
        for (bits, x) in pieces.concat().into_iter().zip(values) {
            assert_eq!(f16::from_bits(bits).to_f32(), x);
        }
    }

    #[test]
    fn what_f16_cannot_hold_is_named() {
        let wide = view(&[1.0, 65280.0, -1e6]);
        let error = converted(&wide, DType::F16).next().unwrap().unwrap_err();
        assert!(error.is_input());
        let expected = "w: element 2: expected at most 65504 in size, the largest f16, found -999424";
        assert_eq!(error.to_string(), expected);
        assert!(converted(&wide, DType::BF16).next().unwrap().is_ok());
        assert!(converted(&view(&[f32::INFINITY]), DType::F16).next().unwrap().is_ok(), "as the checkpoint has it");
    }
}
