//! From a checkpoint to a model on its device: once when an engine is built, and again where the device was lost or the
//! weights are others.

use crate::cpu::{Cpu, CpuOptions};
#[cfg(feature = "sim")]
use crate::device::SimOptions;
use crate::device::{DeviceInfo, Kernel, Stream};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::{self, Gpu};
use crate::model::{ArchSpec, Checkpoint, Decoder, Forward, Limits};

use super::budget::available_memory;
use super::runner::Load;

/// Where a model runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Cpu,
    /// By its index.
    Cuda(usize),
    Sim {
        arch: u32,
    },
}

/// A device that is there.
pub(super) enum Opened {
    Cpu,
    Gpu(Stream),
}

impl Opened {
    /// Precision of the activations where nobody asks for one: the checkpoint's own, as far as the device has it.
    pub fn default_dtype(&self, stored: DType) -> DType {
        match self {
            Self::Cpu => stored,
            Self::Gpu(stream) => Gpu::default_dtype(stream.arch(), stored),
        }
    }

    /// Sequences that run at a time where nobody says otherwise.
    pub fn max_sequences(&self) -> usize {
        match self {
            Self::Cpu => 64,
            Self::Gpu(stream) if stream.info().device == "sim" => 4,
            Self::Gpu(_) => 256,
        }
    }

    /// What it is, of a GPU or what stands for one.
    pub fn gpu(&self) -> Option<&DeviceInfo> {
        match self {
            Self::Cpu => None,
            Self::Gpu(stream) => Some(stream.info()),
        }
    }

    /// Bytes that its kernels work in, whatever the model is.
    pub fn workspace_bytes(&self) -> u64 {
        self.gpu().map_or(0, |_| Gpu::WORKSPACE_BYTES)
    }

    /// Bytes that are free beside the model's own; `None` where nobody knows. The CPU's weights stay in the file.
    pub fn free_memory(&self, weights: u64, activations: u64) -> Result<Option<u64>> {
        match self {
            Self::Cpu => Ok(available_memory()),
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
    Err(crate::error::Error::Device { device: format!("cuda:{ordinal}"), reason })
}

#[cfg(feature = "sim")]
fn simulated(arch: u32) -> Result<Stream> {
    crate::device::sim::require_kernels()?;
    Stream::sim(SimOptions { arch, ..SimOptions::default() })
}

#[cfg(not(feature = "sim"))]
fn simulated(_arch: u32) -> Result<Stream> {
    let reason = "this build is without the feature sim".to_owned();
    Err(crate::error::Error::Device { device: "sim".to_owned(), reason })
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
    /// The device is not there.
    pub fn open(self) -> Result<Opened> {
        Ok(match self {
            Self::Cpu => Opened::Cpu,
            Self::Cuda(ordinal) => Opened::Gpu(gpu(ordinal)?),
            Self::Sim { arch } => Opened::Gpu(simulated(arch)?),
        })
    }
}

/// All that it takes to put a model on its device.
pub(super) struct Loader {
    pub target: Target,
    /// For the first time.
    pub opened: Option<Opened>,
    pub checkpoint: Checkpoint,
    pub spec: ArchSpec,
    /// Of the CPU.
    pub threads: usize,
    pub dtype: DType,
    pub limits: Limits,
}

impl Load for Loader {
    fn load(&mut self) -> Result<Box<dyn Forward>> {
        let opened = match self.opened.take() {
            Some(opened) => opened,
            None => self.target.open()?,
        };
        let Self { checkpoint, spec, threads, dtype, limits, .. } = &*self;
        Ok(match opened {
            Opened::Cpu => {
                let cpu = Cpu::new(CpuOptions { threads: *threads, isa: None })?;
                Box::new(Decoder::load(cpu, spec, checkpoint, *dtype, *limits)?)
            }
            Opened::Gpu(stream) => {
                let gpu = Gpu::new(stream, *dtype, limits.batch_tokens, spec.vocab_size)?;
                Box::new(Decoder::load(gpu, spec, checkpoint, *dtype, *limits)?)
            }
        })
    }

    fn replace(&mut self, checkpoint: Checkpoint) -> Checkpoint {
        std::mem::replace(&mut self.checkpoint, checkpoint)
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    /// Weights go to the same memory as the cache, and are not there yet when it is sized.
    #[test]
    fn what_a_model_takes_on_a_gpu_is_not_free() {
        let stream = Stream::sim(SimOptions { memory_bytes: 1 << 20, ..SimOptions::default() }).unwrap();
        let opened = Opened::Gpu(stream);
        assert_eq!(opened.free_memory(1 << 19, 1 << 18).unwrap(), Some(1 << 18));
        assert_eq!(opened.free_memory(1 << 20, 1).unwrap(), Some(0));
    }
}
