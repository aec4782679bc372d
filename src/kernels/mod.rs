//! The CUDA kernels, each usable alone: a struct of what it works on, and `launch`.
//!
//! A wrapper checks the shapes of its slices, picks the variant for the device, and enqueues it on a [`Stream`], which
//! is a GPU's or the simulator's. Contracts are in the wrappers' documentation; device code is in `csrc/kernels`, under
//! the same names.
//!
//! [`Stream`]: crate::device::Stream

#[allow(non_camel_case_types, missing_docs, reason = "the C names of csrc/abi")]
mod abi;
mod tables;

pub use tables::KERNELS as ALL;
