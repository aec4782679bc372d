//! Oracles: naive loops, short enough to check by reading. Their f64 results are taken as exact; their f32 results are
//! the plain implementation whose error sets the tolerance.

// Kernels, by `burrstone-codegen lists`:
pub mod act_mul;
pub mod attention;
pub mod embedding;
pub mod gather_rows;
pub mod matmul;
pub mod page_copy;
pub mod page_table_update;
pub mod rms_norm;
pub mod rotary_kv_write;
pub mod sample;
pub mod target_logprobs;
// End of kernels.

use std::ops::{Add, Div, Mul, Sub};

/// f32 or f64.
pub trait Real:
    Copy + PartialOrd + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    fn of(x: f32) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn tanh(self) -> Self;
}

macro_rules! real {
    ($t:ident) => {
        impl Real for $t {
            fn of(x: f32) -> Self {
                x as $t
            }
            fn exp(self) -> Self {
                $t::exp(self)
            }
            fn ln(self) -> Self {
                $t::ln(self)
            }
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            fn tanh(self) -> Self {
                $t::tanh(self)
            }
        }
    };
}

real!(f32);
real!(f64);
