//! Burrstone: an LLM inference engine.
//!
//! [`Engine`] loads a checkpoint and answers requests. Below it, in this order: [`model`] (an architecture is data),
//! [`ops`] (what a forward pass may ask of a device), [`cpu`] and [`kernels`] (the two sides that answer), [`device`]
//! (memory, streams, graphs: a GPU's or the simulator's).

pub mod cpu;
pub mod device;
mod dtype;
#[cfg(feature = "engine")]
mod engine;
mod error;
pub mod kernels;
#[cfg(feature = "engine")]
pub mod model;
pub mod ops;
#[cfg(feature = "engine")]
pub mod text;

pub use dtype::DType;
#[cfg(feature = "engine")]
pub use engine::{
    Constraint, ConstraintState, Device, Dry, Engine, EngineBuilder, FinishReason, Generation, Guidance, Incident,
    KvLimit, LoadReport, LogitsContext, LogitsProcessor, Prompt, RepetitionDetection, Request, Sampling, Score,
    SlowStep, Status, StepSize, Timings, Token, TokenStream, Usage, batching, kv, scheduler, simulation,
};
pub use error::{Error, Result};

/// The README's code compiles.
#[cfg(all(doctest, feature = "builtin-model", feature = "cuda"))]
#[doc = include_str!("../README.md")]
struct Readme;
