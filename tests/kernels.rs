//! Tests every kernel against its oracle: CPU kernels on every instruction set of this machine, CUDA kernels on the
//! simulator.
#![cfg(feature = "sim")]

#[path = "kernels/device.rs"]
mod device;
#[path = "gpu/device.rs"]
mod gpu;
#[path = "slice/mod.rs"]
mod slice;
#[path = "kernels/support.rs"]
mod support;

/// The shapes of `codegen/specs`: benches and tests share them.
#[allow(dead_code, reason = "tests and benches each read the fields that they need")]
mod problems {
    include!(concat!(env!("OUT_DIR"), "/problems.rs"));
}

#[path = "reference/mod.rs"]
mod reference;
mod simulator;

// Kernels, by `burrstone-codegen lists`:
#[path = "kernels/act_mul.rs"]
mod act_mul;
#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/attention_decode.rs"]
mod attention_decode;
#[path = "kernels/attention_prefill.rs"]
mod attention_prefill;
#[path = "kernels/embedding.rs"]
mod embedding;
#[path = "kernels/gather_rows.rs"]
mod gather_rows;
#[path = "kernels/matmul.rs"]
mod matmul;
#[path = "kernels/page_copy.rs"]
mod page_copy;
#[path = "kernels/page_table_update.rs"]
mod page_table_update;
#[path = "kernels/permute_columns.rs"]
mod permute_columns;
#[path = "kernels/rms_norm.rs"]
mod rms_norm;
#[path = "kernels/rotary_kv_write.rs"]
mod rotary_kv_write;
#[path = "kernels/sample.rs"]
mod sample;
#[path = "kernels/target_logprobs.rs"]
mod target_logprobs;
// End of kernels.

#[path = "kernels/attention_masks.rs"]
mod attention_masks;
#[path = "kernels/coded_matmul.rs"]
mod coded_matmul;
#[path = "kernels/gated_matmul.rs"]
mod gated_matmul;
#[path = "kernels/paged_attention.rs"]
mod paged_attention;
#[cfg(feature = "sim")]
#[path = "kernels/quantized_matmul.rs"]
mod quantized_matmul;
#[cfg(feature = "sim")]
#[path = "kernels/tensor_cores.rs"]
mod tensor_cores;
