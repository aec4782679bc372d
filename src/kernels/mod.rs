//! The CUDA kernels, each usable alone: a struct of what it works on, and `launch`.
//!
//! A wrapper checks the shapes of its slices, picks the variant for the device, and enqueues it on a [`Stream`], which
//! is a GPU's or the simulator's. Contracts are in the wrappers' documentation; device code is in `csrc/kernels`, under
//! the same names.
//!
//! [`Stream`]: crate::device::Stream

#[allow(non_camel_case_types, missing_docs, reason = "the C names of csrc/abi")]
mod abi;
mod act_mul;
mod attention;
mod attention_decode;
mod attention_plan;
mod attention_prefill;
mod call;
mod converted;
mod cost;
mod embedding;
mod gpu;
mod kv_cache;
mod matmul;
mod matmul_plan;
mod page_copy;
mod page_table_update;
mod rates;
mod rms_norm;
mod rotary_kv_write;
mod sample;
mod step;
mod tables;
mod target_logprobs;
mod weights;

pub use act_mul::ActMul;
pub use attention::{Heads, KvCache, KvScales, Scoring};
pub use attention_decode::{AttentionDecode, SplitStates};
pub use attention_plan::{AttentionPlan, AttentionShape};
pub use attention_prefill::AttentionPrefill;
pub use cost::{Floor, Machine};
pub use embedding::Embedding;
pub use gpu::Gpu;
pub use matmul::MatMul;
pub use matmul_plan::{MatMulPair, MatMulPlan, MatMulShape};
pub use page_copy::PageCopy;
pub use page_table_update::PageTableUpdate;
pub use rms_norm::{Norm, RmsNorm};
pub use rotary_kv_write::{KvCacheMut, KvScalesMut, QkGains, RopeRows, RotaryKvWrite};
pub use sample::{Sample, SampleWords};
#[cfg(feature = "engine")]
pub(crate) use step::recorded_rows;
pub use tables::KERNELS as ALL;
pub use target_logprobs::TargetLogprobs;
