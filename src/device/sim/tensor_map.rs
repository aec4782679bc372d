//! The simulator's tensor maps, for bulk copies of tensor boxes.

use crate::device::tensor::Swizzle;

impl Swizzle {
    /// Bytes of a row of a swizzled box; `None` for any.
    fn span(self) -> Option<u32> {
        match self {
            Swizzle::None => None,
            Swizzle::Bytes32 => Some(32),
            Swizzle::Bytes64 => Some(64),
            Swizzle::Bytes128 => Some(128),
        }
    }
}

pub(super) const MAX_RANK: usize = 5;
const MAGIC: u32 = 0x7e45_0a4d;

/// The simulator's counterpart of `CUtensorMap`: 128 bytes at a multiple of 64, passed in an argument struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct TensorMap {
    magic: u32,
    pub(super) rank: u32,
    pub(super) element_bytes: u32,
    span: u32,
    pub(super) address: u64,
    /// Bytes between neighbours along each dimension; the first is an element.
    pub(super) strides: [u64; MAX_RANK],
    pub(super) dims: [u32; MAX_RANK],
    pub(super) box_dims: [u32; MAX_RANK],
    padding: [u64; 3],
}

/// A tensor that a map cannot describe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor map: {field}: expected {expected}, found {found}")]
pub struct TensorMapError {
    pub field: &'static str,
    pub expected: &'static str,
    pub found: String,
}

impl TensorMap {
    /// A tensor of `dims` elements, innermost first, with `strides` in bytes for the outer dimensions, copied in boxes
    /// of `box_dims` elements. The limits are those of `cuTensorMapEncodeTiled`; also, a swizzled row is exactly one
    /// span.
    ///
    /// # Errors
    /// A limit is violated.
    pub fn tiled(
        address: u64,
        element_bytes: u32,
        dims: &[u64],
        strides: &[u64],
        box_dims: &[u32],
        swizzle: Swizzle,
    ) -> Result<Self, TensorMapError> {
        let error = |field, expected, found: String| Err(TensorMapError { field, expected, found });
        let rank = dims.len();
        if rank == 0 || rank > MAX_RANK || strides.len() != rank - 1 || box_dims.len() != rank {
            let found = format!("{rank} dims, {} strides, {} box dims", strides.len(), box_dims.len());
            return error("rank", "1 to 5 dims, one stride fewer, a box side for each", found);
        }
        if !matches!(element_bytes, 1 | 2 | 4 | 8) {
            return error("element", "1, 2, 4 or 8 bytes", element_bytes.to_string());
        }
        if !address.is_multiple_of(16) {
            return error("address", "a multiple of 16", format!("{address:#x}"));
        }
        if let Some(dim) = dims.iter().find(|d| **d == 0 || u32::try_from(**d).is_err()) {
            return error("dims", "1 to 2^32 - 1", dim.to_string());
        }
        if let Some(stride) = strides.iter().find(|s| !s.is_multiple_of(16) || **s >= 1 << 40) {
            return error("strides", "multiples of 16 below 2^40", stride.to_string());
        }
        if let Some(side) = box_dims.iter().find(|b| **b == 0 || **b > 256) {
            return error("box", "1 to 256 elements", side.to_string());
        }
        let row = box_dims[0] * element_bytes;
        if !row.is_multiple_of(16) || swizzle.span().is_some_and(|span| span != row) {
            return error("box", "rows of a multiple of 16 bytes, or of the swizzle's span", format!("{row} bytes"));
        }
        let mut map = TensorMap {
            magic: MAGIC,
            rank: rank as u32,
            element_bytes,
            span: swizzle.span().unwrap_or(0),
            address,
            strides: [u64::from(element_bytes); MAX_RANK],
            dims: [1; MAX_RANK],
            box_dims: [1; MAX_RANK],
            padding: [0; 3],
        };
        map.strides[1..rank].copy_from_slice(strides);
        map.box_dims[..rank].copy_from_slice(box_dims);
        for (to, from) in map.dims.iter_mut().zip(dims) {
            *to = *from as u32;
        }
        Ok(map)
    }

    /// The bytes for an argument struct.
    pub fn to_bytes(&self) -> [u8; 128] {
        // SAFETY: the struct is 128 bytes without padding, all of them plain integers.
        unsafe { std::mem::transmute(*self) }
    }

    pub(super) fn is_valid(&self) -> bool {
        self.magic == MAGIC
    }

    pub(super) fn box_bytes(&self) -> u64 {
        self.box_dims.iter().map(|d| u64::from(*d)).product::<u64>() * u64::from(self.element_bytes)
    }

    /// The swizzled position of the byte at `address` of a box.
    pub(super) fn permuted(&self, address: u64) -> u64 {
        match self.span {
            32 => address ^ (address >> 3 & 0x10),
            64 => address ^ (address >> 3 & 0x30),
            128 => address ^ (address >> 3 & 0x70),
            _ => address,
        }
    }

    /// The 16-byte pieces of the box at `coordinates` in the order before swizzling, each with the global address of
    /// its first byte and the range of its bytes inside the tensor.
    pub(super) fn pieces(&self, coordinates: &[i32; MAX_RANK]) -> Vec<Piece> {
        let row_bytes = i64::from(self.box_dims[0] * self.element_bytes);
        let inner_bytes = i64::from(self.dims[0]) * i64::from(self.element_bytes);
        let start = i64::from(coordinates[0]) * i64::from(self.element_bytes);
        let rows: u32 = self.box_dims[1..].iter().product();
        let mut pieces = Vec::with_capacity((self.box_bytes() / 16) as usize);
        for row in 0..rows {
            let (mut rest, mut inside, mut offset) = (row, true, 0_i64);
            for (d, start) in coordinates.iter().enumerate().skip(1) {
                let index = i64::from(*start) + i64::from(rest % self.box_dims[d]);
                rest /= self.box_dims[d];
                inside &= index >= 0 && index < i64::from(self.dims[d]);
                // Missing dimensions have index 0.
                offset += index * self.strides[d] as i64;
            }
            for at in (0..row_bytes).step_by(16) {
                let first = start + at;
                let low = (-first).clamp(0, 16);
                let high = if inside { (inner_bytes - first).clamp(low, 16) } else { low };
                let global = (self.address as i64).wrapping_add(offset).wrapping_add(first) as u64;
                pieces.push(Piece { global, inside: low as usize..high as usize });
            }
        }
        pieces
    }
}

#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub global: u64,
    pub inside: std::ops::Range<usize>,
}
