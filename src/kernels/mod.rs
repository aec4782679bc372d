//! Launch wrappers of the CUDA kernels. Each is a struct with its arguments and a method `launch`, and works alone.
//!
//! A wrapper checks the shapes of its slices, picks a variant for the device and enqueues it on a [`Stream`], a GPU's
//! or the simulator's. Device code is in `csrc/kernels`, under the same names.
//!
//! [`Stream`]: crate::device::Stream

// Kernels, by `burrstone-codegen lists`:
mod act_mul;
mod attention_decode;
mod attention_prefill;
mod embedding;
mod matmul;
mod page_copy;
mod page_table_update;
mod permute_columns;
mod rms_norm;
mod rotary_kv_write;
mod sample;
mod target_logprobs;
// End of kernels.

#[allow(non_camel_case_types, missing_docs, reason = "the C names of csrc/abi")]
mod abi;
mod attention;
mod attention_plan;
mod call;
mod converted;
mod cost;
mod gpu;
mod kv_cache;
mod matmul_plan;
mod packed_weight;
mod rates;
mod step;
mod tables;
mod weights;

pub use act_mul::ActMul;
pub use attention::{Heads, KvCache, KvScales, Scoring};
pub use attention_decode::{AttentionDecode, SplitStates};
pub use attention_plan::{AttentionPlan, AttentionShape};
pub use attention_prefill::AttentionPrefill;
pub use cost::{CostModel, Floor};
pub use embedding::Embedding;
pub use gpu::Gpu;
pub use matmul::{MatMul, MatMulWeight};
pub use matmul_plan::{MatMulPair, MatMulPlan, MatMulShape, WeightKind};
pub use packed_weight::{MatMulCodes, PackedWeight};
pub use page_copy::PageCopy;
pub use page_table_update::PageTableUpdate;
pub use permute_columns::PermuteColumns;
pub use rms_norm::{Norm, RmsNorm};
pub use rotary_kv_write::{KvCacheMut, KvScalesMut, QkGains, RopeRows, RotaryKvWrite};
pub use sample::{Sample, SampleWords};
#[cfg(feature = "engine")]
pub(crate) use step::recorded_rows;
pub use tables::KERNELS as ALL;
pub use target_logprobs::TargetLogprobs;
