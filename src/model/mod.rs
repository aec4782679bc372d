//! Architectures as data: `config.json` → [`ArchSpec`] → one decoder; checkpoints and hub downloads.

mod checkpoint;
mod config;
mod decoder;
mod families;
mod fields;
mod finite;
mod generation_config;
#[cfg(feature = "hub")]
pub mod hub;
mod lfs_pointer;
mod precision;
mod quantization;
mod resolve;
mod rope;
mod rope_config;
mod rope_table;
mod safetensors_file;
mod shards;
pub mod source;
mod spec;
mod tensors;
mod weights;

pub use checkpoint::{Checkpoint, TensorInfo};
pub use decoder::{Decoder, Forward, Limits};
pub use generation_config::GenerationConfig;
pub use precision::{Quantize, WeightPrecision};
pub use quantization::QuantizationReport;
pub use resolve::resolve;
pub use rope::{Rope, RopeKind, RopeScaling, RopeSpec};
pub use spec::ArchSpec;
