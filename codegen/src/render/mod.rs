//! Specifications and variants as source code. All output is ordered, and the same for the same input.

pub mod cuda;
pub mod problems;
pub mod tables;
