//! Tables of variants, generated from `codegen/specs` by the build.

#![allow(unused_imports, reason = "a build without a CUDA compiler has no cubins")]

use crate::device::{Cubin, Kernel, Value, Variant};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
