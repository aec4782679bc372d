//! Loads a checkpoint onto its device: when an engine is built, after a device failure, and to replace weights.

use crate::cpu::{Cpu, CpuOptions};
use crate::dtype::DType;
use crate::engine::step::Load;
use crate::error::Result;
use crate::kernels::Gpu;
use crate::model::{ArchSpec, Checkpoint, Decoder, Forward, Limits, WeightPrecision};

use super::device::{Opened, Target};

/// Everything needed to load the model, any number of times.
pub struct Loader {
    pub target: Target,
    /// The opened device, for the first time.
    pub opened: Option<Opened>,
    pub checkpoint: Checkpoint,
    pub spec: ArchSpec,
    /// Threads of the CPU.
    pub threads: usize,
    pub precision: WeightPrecision,
    pub dtype: DType,
    pub limits: Limits,
}

impl Load for Loader {
    fn load(&mut self) -> Result<Box<dyn Forward>> {
        let opened = match self.opened.take() {
            Some(opened) => opened,
            None => self.target.open()?,
        };
        let Self { checkpoint, spec, threads, precision, dtype, limits, .. } = &*self;
        Ok(match opened {
            Opened::Cpu => {
                let cpu = Cpu::new(CpuOptions { threads: *threads, isa: None })?;
                Box::new(Decoder::load(cpu, spec, checkpoint, *precision, *dtype, *limits)?)
            }
            Opened::Gpu(stream) => {
                let gpu = Gpu::new(stream, *dtype, limits.batch_tokens, spec.vocab_size)?;
                Box::new(Decoder::load(gpu, spec, checkpoint, *precision, *dtype, *limits)?)
            }
        })
    }

    fn replace(&mut self, checkpoint: Checkpoint) -> Checkpoint {
        std::mem::replace(&mut self.checkpoint, checkpoint)
    }
}
