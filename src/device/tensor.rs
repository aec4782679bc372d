//! Tensors for TMA copies, on Hopper and later.

/// The permutation of a box's 16-byte pieces in shared memory: address bits 4 and up are xored with bits 7 and up,
/// within spans of 32, 64 or 128 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "sim"), allow(dead_code, reason = "kernels use one of them, the simulator's tests use all"))]
pub enum Swizzle {
    None,
    Bytes32,
    Bytes64,
    Bytes128,
}

/// A tensor and the boxes in which it is copied. Dimensions are counted in elements, innermost first.
pub struct TmaBoxes<'a> {
    /// The address of the first element, a multiple of 16.
    pub address: u64,
    /// 1, 2, 4 or 8.
    pub element_bytes: u32,
    pub dims: &'a [u64],
    /// Bytes between neighbours along all dimensions but the innermost: multiples of 16.
    pub strides: &'a [u64],
    /// The sides of a box. Its elements outside the tensor are zero.
    pub sides: &'a [u32],
    pub swizzle: Swizzle,
}

/// The tensor's descriptor in a kernel's arguments: a CUtensorMap, or the simulator's own.
pub type TensorMap = [u64; 16];
