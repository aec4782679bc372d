//! The engine builder's options.

use std::sync::Arc;

use crate::dtype::DType;
use crate::engine::capacity::KvBudget;
use crate::engine::scheduler::{Policy, Preemption};
use crate::engine::step::{Incident, OnIncident};
use crate::model::source::Progress;
use crate::model::{RopeScaling, WeightPrecision};

use super::Device;

/// Options of an [`Engine`](crate::Engine); [`build`](Self::build) loads the model.
#[must_use]
pub struct EngineBuilder {
    /// `None` is the built-in model.
    pub(super) model: Option<String>,
    pub(super) device: Device,
    pub(super) dtype: Option<DType>,
    pub(super) kv_dtype: Option<DType>,
    pub(super) threads: usize,
    pub(super) sim_arch: u32,
    pub(super) context: Option<usize>,
    pub(super) rope_scaling: RopeScaling,
    pub(super) precision: WeightPrecision,
    pub(super) budget: KvBudget,
    pub(super) host_kv_memory: u64,
    pub(super) preemption: Option<Preemption>,
    pub(super) max_sequences: Option<usize>,
    pub(super) step_tokens: Option<usize>,
    pub(super) policy: Policy,
    pub(super) check_weights: bool,
    pub(super) offline: bool,
    pub(super) progress: Box<dyn Progress>,
    pub(super) incident: OnIncident,
}

/// The default architecture of the simulator: the oldest that has all dtypes.
const SIM_ARCH: u32 = 80;

impl EngineBuilder {
    pub(in crate::engine) fn new(model: Option<String>) -> Self {
        Self {
            model,
            device: Device::Auto,
            dtype: None,
            kv_dtype: None,
            threads: 0,
            sim_arch: SIM_ARCH,
            context: None,
            rope_scaling: RopeScaling::Always,
            precision: WeightPrecision::default(),
            budget: KvBudget::default(),
            host_kv_memory: 0,
            preemption: None,
            max_sequences: None,
            step_tokens: None,
            policy: Policy::default(),
            check_weights: false,
            offline: false,
            progress: Box::new(()),
            incident: Arc::new(|_| ()),
        }
    }

    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// The dtype of the activations, and on a GPU of the weights too; on the CPU these stay as stored. `None` is the
    /// checkpoint's dtype if the device supports it.
    pub fn dtype(mut self, dtype: Option<DType>) -> Self {
        self.dtype = dtype;
        self
    }

    /// Quantizes 16-bit and f32 weights while they are loaded, and chooses the precision of activations that quantized
    /// weights are multiplied with. By default nothing is quantized, and quantized checkpoints are computed as they ask.
    pub fn weight_precision(mut self, precision: WeightPrecision) -> Self {
        self.precision = precision;
        self
    }

    /// The dtype of the KV cache; `None` is that of the activations. [`DType::E4M3`], [`DType::E5M2`] and [`DType::I8`]
    /// take half the memory of 16 bits (i8 has an f32 scale for each head of each token). A GPU takes one of these or
    /// the activations' dtype, the CPU any floating-point dtype or i8.
    pub fn kv_dtype(mut self, dtype: Option<DType>) -> Self {
        self.kv_dtype = dtype;
        self
    }

    /// Threads of the CPU engine; 0 takes as many as cores are available within the control group.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// The architecture that [`Device::Sim`] stands in for: one of [`ARCHS`](crate::device::ARCHS).
    pub fn sim_arch(mut self, arch: u32) -> Self {
        self.sim_arch = arch;
        self
    }

    /// Tokens of one sequence, prompt and output, at most the model's context.
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Bytes for weights, activations and KV cache together.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.budget.memory = Some(bytes);
        self
    }

    /// Which sequences are scaled, for a model with `yarn` rope scaling.
    pub fn rope_scaling(mut self, scaling: RopeScaling) -> Self {
        self.rope_scaling = scaling;
        self
    }

    /// Bytes of the KV cache. The default, unless [`memory`](Self::memory) or [`kv_tokens`](Self::kv_tokens) is given,
    /// is room for all sequences at full length, but at most half of the free memory.
    pub fn kv_memory(mut self, bytes: u64) -> Self {
        self.budget.kv_memory = Some(bytes);
        self
    }

    /// Tokens of the KV cache.
    pub fn kv_tokens(mut self, tokens: usize) -> Self {
        self.budget.kv_tokens = Some(tokens);
        self
    }

    /// Bytes of host memory for blocks that are evicted from the KV cache. They are fetched from there when they are
    /// needed again, by another request with the same prefix or by a preempted sequence. 0 is no host tier.
    pub fn host_kv_memory(mut self, bytes: u64) -> Self {
        self.host_kv_memory = bytes;
        self
    }

    /// How a preempted sequence is restored. [`Preemption::Swap`] needs [`host_kv_memory`](Self::host_kv_memory).
    pub fn preemption(mut self, preemption: Preemption) -> Self {
        self.preemption = Some(preemption);
        self
    }

    /// Sequences that run at a time; others wait.
    pub fn max_sequences(mut self, sequences: usize) -> Self {
        self.max_sequences = Some(sequences);
        self
    }

    /// Token budget of one step. A larger one makes prefill faster, and the time between two tokens longer during
    /// prefill.
    pub fn step_tokens(mut self, tokens: usize) -> Self {
        self.step_tokens = Some(tokens);
        self
    }

    /// The scheduling policy. Its `max_running` is replaced by [`max_sequences`](Self::max_sequences) or the device's
    /// default; [`step_tokens`](Self::step_tokens) and [`preemption`](Self::preemption) override the fields of the same
    /// name.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Reads every weight once and refuses NaN and infinities.
    pub fn check_weights(mut self, check: bool) -> Self {
        self.check_weights = check;
        self
    }

    /// Never touches the network; a hub id must be in the cache.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Called with the progress of downloads.
    pub fn progress(mut self, progress: impl Progress + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Called when a device hangs or fails, on one of the engine's threads, which waits for it.
    pub fn on_incident(mut self, incident: impl Fn(Incident) + Send + Sync + 'static) -> Self {
        self.incident = Arc::new(incident);
        self
    }
}
