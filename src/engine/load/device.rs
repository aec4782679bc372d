//! Selects and opens the device that a model runs on.

use std::fmt;
use std::str::FromStr;

#[cfg(feature = "sim")]
use crate::device::SimOptions;
use crate::device::{DeviceInfo, Kernel, Stream};
use crate::dtype::DType;
use crate::engine::capacity::memory;
use crate::error::{Error, Result};
use crate::kernels::{self, Gpu};
use crate::ops::CacheShape;

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The first GPU that this build has kernels for, or else the CPU.
    #[default]
    Auto,
    Cpu,
    /// A CUDA device by its index.
    Cuda(usize),
    /// The CUDA kernels in the simulator, on the CPU.
    Sim,
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "cuda" => Self::Cuda(0),
            "sim" => Self::Sim,
            _ => match text.strip_prefix("cuda:").and_then(|index| index.parse().ok()) {
                Some(index) => Self::Cuda(index),
                None => return Err(Error::request("device", "auto, cpu, cuda, cuda:N or sim", text)),
            },
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Sim => f.write_str("sim"),
        }
    }
}

/// A [`Device`] with its options; `Auto` is decided.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    Cpu,
    /// By its index.
    Cuda(usize),
    Sim {
        arch: u32,
    },
}

/// An opened device.
pub enum Opened {
    Cpu,
    Gpu(Stream),
}

impl Opened {
    /// The default dtype of the activations: the checkpoint's, if the device supports it.
    pub fn default_dtype(&self, stored: DType) -> DType {
        match self {
            Self::Cpu => stored,
            Self::Gpu(stream) => Gpu::default_dtype(stream.arch(), stored),
        }
    }

    /// The default number of sequences that run at a time.
    pub fn max_sequences(&self) -> usize {
        match self {
            Self::Cpu => 64,
            Self::Gpu(stream) if stream.info().device == "sim" => 4,
            Self::Gpu(_) => 256,
        }
    }

    /// Properties of the GPU, or of the one that is simulated.
    pub fn gpu(&self) -> Option<&DeviceInfo> {
        match self {
            Self::Cpu => None,
            Self::Gpu(stream) => Some(stream.info()),
        }
    }

    /// Bytes of workspace beside a KV cache of this shape, for any number of pages.
    pub fn workspace_bytes(&self, cache: &CacheShape) -> u64 {
        self.gpu().map_or(0, |_| Gpu::workspace_bytes(cache))
    }

    /// Free bytes after the model's own, if known. On the CPU weights stay in the mapped file.
    pub fn free_memory(&self, weights: u64, activations: u64) -> Result<Option<u64>> {
        match self {
            Self::Cpu => Ok(memory::available().map(|available| memory::beside_mapped(weights, available))),
            Self::Gpu(stream) => Ok(Some(stream.free_bytes()?.saturating_sub(weights.saturating_add(activations)))),
        }
    }
}

#[cfg(feature = "cuda")]
fn gpu(ordinal: usize) -> Result<Stream> {
    Stream::cuda(ordinal)
}

#[cfg(not(feature = "cuda"))]
fn gpu(ordinal: usize) -> Result<Stream> {
    let reason = "this build is without the feature cuda".to_owned();
    Err(Error::Device { device: format!("cuda:{ordinal}"), reason })
}

#[cfg(feature = "sim")]
fn simulated(arch: u32) -> Result<Stream> {
    crate::device::sim::require_kernels()?;
    Stream::sim(SimOptions { arch, ..SimOptions::default() })
}

#[cfg(not(feature = "sim"))]
fn simulated(_arch: u32) -> Result<Stream> {
    let reason = "this build is without the feature sim".to_owned();
    Err(Error::Device { device: "sim".to_owned(), reason })
}

/// Whether this build has kernels for a GPU of this architecture.
fn has_code(arch: u32) -> bool {
    let has = |kernel: &Kernel| kernel.variants.iter().any(|v| v.cubins.iter().any(|cubin| cubin.arch == arch));
    kernels::ALL.iter().all(|kernel| has(kernel))
}

impl Target {
    /// The first GPU that this build has code for, or else the CPU.
    pub fn best() -> (Self, Opened) {
        match gpu(0) {
            Ok(stream) if has_code(stream.arch()) => (Self::Cuda(0), Opened::Gpu(stream)),
            _ => (Self::Cpu, Opened::Cpu),
        }
    }

    /// # Errors
    /// The device is not available.
    pub fn open(self) -> Result<Opened> {
        Ok(match self {
            Self::Cpu => Opened::Cpu,
            Self::Cuda(ordinal) => Opened::Gpu(gpu(ordinal)?),
            Self::Sim { arch } => Opened::Gpu(simulated(arch)?),
        })
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    /// Weights take the same memory as the cache, and are loaded after it is sized.
    #[test]
    fn what_a_model_takes_on_a_gpu_is_not_free() {
        let stream = Stream::sim(SimOptions { memory_bytes: 1 << 20, ..SimOptions::default() }).unwrap();
        let opened = Opened::Gpu(stream);
        assert_eq!(opened.free_memory(1 << 19, 1 << 18).unwrap(), Some(1 << 18));
        assert_eq!(opened.free_memory(1 << 20, 1).unwrap(), Some(0));
    }
}
