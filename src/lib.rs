//! Burrstone is an LLM inference engine. It loads Hugging Face checkpoints, serves many requests at once from a paged KV
//! cache, and runs on kernels of its own: CUDA from Volta to Hopper, AVX2, AVX-512 and NEON.
//!
//! # Where to start
//!
//! | you want to | start at |
//! |---|---|
//! | run a model from your program | [`Engine`], [`Request`], [`Generation`] |
//! | set memory limits and scheduling | [`EngineBuilder`], [`guide::serving`] |
//! | launch one kernel on your own CUDA stream | [`kernels`], [`device::Stream`] |
//! | write or change a kernel | [`guide::kernels`] |
//! | build for a GPU | [`guide::gpus`] |
//! | see how fast it is | [`guide::measurements`] |
//!
//! ```no_run
//! use burrstone::{Engine, Request};
//!
//! fn main() -> burrstone::Result<()> {
//!     let engine = Engine::builder("./my-model").build()?;
//!     for token in engine.generate(Request::text("In the beginning").max_tokens(64).temperature(0.8))? {
//!         print!("{}", token?.text);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Layers
//!
//! Each layer uses only those below it:
//!
//! | module | holds |
//! |---|---|
//! | [`Engine`], [`scheduler`], [`kv`], [`capacity`], [`simulation`] | requests, scheduling, KV blocks, sampling, the step loop |
//! | [`model`] | `config.json` → [`ArchSpec`](model::ArchSpec) → one decoder |
//! | [`ops`] | the trait that the decoder calls |
//! | [`kernels`], [`cpu`] | its two implementations, under the same names |
//! | [`device`] | memory, streams and graphs of a GPU or of the simulator |

pub mod cpu;
pub mod device;
mod dtype;
#[cfg(feature = "engine")]
mod engine;
mod error;
pub mod guide;
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
    SlowStep, Status, StepSize, Timings, Token, TokenStream, Usage, batching, capacity, kv, scheduler, simulation,
};
pub use error::{Error, Result};

/// The README's code compiles.
#[cfg(all(doctest, feature = "builtin-model", feature = "cuda"))]
#[doc = include_str!("../README.md")]
struct Readme;
