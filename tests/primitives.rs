//! Each primitive of `csrc/common` by itself, on the simulator, against what the PTX manual says it does.
#![cfg(feature = "sim")]

#[path = "primitives/counters.rs"]
mod counters;
#[path = "primitives/faults.rs"]
mod faults;
#[path = "primitives/probe.rs"]
mod probe;
#[path = "primitives/warp.rs"]
mod warp;
