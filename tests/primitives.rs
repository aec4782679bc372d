//! Each primitive of `csrc/common` by itself, on the simulator, against what the PTX manual says it does.
#![cfg(feature = "sim")]

#[path = "primitives/convert.rs"]
mod convert;
#[path = "primitives/copies.rs"]
mod copies;
#[path = "primitives/counters.rs"]
mod counters;
#[path = "primitives/faults.rs"]
mod faults;
#[path = "primitives/ldmatrix.rs"]
mod ldmatrix;
#[path = "primitives/memory.rs"]
mod memory;
#[path = "primitives/mma.rs"]
mod mma;
#[path = "primitives/probe.rs"]
mod probe;
#[path = "primitives/tensor.rs"]
mod tensor;
#[path = "primitives/warp.rs"]
mod warp;
#[path = "primitives/wgmma.rs"]
mod wgmma;
