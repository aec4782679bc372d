//! Chapters for people who run, tune or extend Burrstone.
//!
//! - [`serving`]: options that decide memory, scheduling and results; for people who run models.
//! - [`kernels`]: where a kernel's files are, how to add a variant, how to test and measure it; for kernel writers.
//! - [`gpus`]: building for GPUs, and what to run on a machine that has one.
//! - [`measurements`]: every figure with its date, machine and floor.

#[doc = include_str!("serving.md")]
pub mod serving {}

#[doc = include_str!("kernels.md")]
pub mod kernels {}

#[doc = include_str!("gpus.md")]
pub mod gpus {}

#[doc = include_str!("measurements.md")]
pub mod measurements {}
