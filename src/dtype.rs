//! Element types of weights, activations, the KV cache and what a step is made of.

use std::fmt;

/// An element type. Names follow safetensors in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    F32,
    BF16,
    F16,
    /// 8-bit float with 4 bits of exponent and 3 of mantissa: ±448 and NaN, no infinities.
    E4M3,
    /// 8-bit float with 5 bits of exponent and 2 of mantissa.
    E5M2,
    I8,
    U8,
    U32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::BF16 | Self::F16 => 2,
            Self::E4M3 | Self::E5M2 | Self::I8 | Self::U8 => 1,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::E4M3 => "e4m3",
            Self::E5M2 => "e5m2",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::U32 => "u32",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
