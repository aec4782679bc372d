//! Tensors as bulk copies see them, from Hopper on.

/// How 16-byte pieces of a box are permuted in shared memory: bits 4 and up of the address are xored with bits 7 and
/// up, over spans of 32, 64 or 128 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "sim"), allow(dead_code, reason = "kernels use one of them; the simulator's tests use all"))]
pub enum Swizzle {
    None,
    Bytes32,
    Bytes64,
    Bytes128,
}

/// A tensor and the boxes that it is copied in. Dimensions are counted in elements, innermost first.
pub struct Boxes<'a> {
    /// The first element's: a multiple of 16.
    pub address: u64,
    /// 1, 2, 4 or 8.
    pub element_bytes: u32,
    pub dims: &'a [u64],
    /// Bytes from one index to the next, of all dimensions but the innermost: multiples of 16.
    pub strides: &'a [u64],
    /// A box's: what of it lies outside the tensor is zero.
    pub sides: &'a [u32],
    pub swizzle: Swizzle,
}

/// What a kernel's argument struct says of a tensor: a CUtensorMap, or the simulator's own.
pub type TensorMap = [u64; 16];
