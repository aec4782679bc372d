//! Renders specifications and variants as source code. All output is ordered and deterministic.

pub mod cuda;
pub mod problems;
pub mod tables;
