//! Options of an engine.

use std::sync::Arc;

use crate::dtype::DType;
use crate::engine::capacity::KvBudget;
use crate::engine::scheduler::{Policy, Preemption};
use crate::engine::step::{Incident, OnIncident};
use crate::model::RopeScaling;
use crate::model::source::Progress;

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

/// The architecture that the simulator stands in for without a say: the oldest that has all dtypes.
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

    /// Precision of the activations; on a GPU of the weights too, which on the CPU stay as they are stored. `None` is the
    /// checkpoint's own, as far as the device has it.
    pub fn dtype(mut self, dtype: Option<DType>) -> Self {
        self.dtype = dtype;
        self
    }

    /// Precision of the KV cache; `None` is that of the activations. [`DType::E4M3`], [`DType::E5M2`] and [`DType::I8`]
    /// halve what a 16-bit one takes (i8 has a scale of f32 beside each head of each token); on a GPU it is one of these
    /// or the activations' own, on the CPU any floating-point number or i8. A request's results depend on it, and are
    /// then the same bits in any company as with every other.
    pub fn kv_dtype(mut self, dtype: Option<DType>) -> Self {
        self.kv_dtype = dtype;
        self
    }

    /// Threads of the CPU engine; 0 takes what the control group and the processor's cores allow.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// The architecture that [`Device::Sim`] stands in for: one of [`ARCHS`](crate::device::ARCHS).
    pub fn sim_arch(mut self, arch: u32) -> Self {
        self.sim_arch = arch;
        self
    }

    /// Tokens that one sequence may hold, at most what the model allows.
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Bytes that weights, activations and KV cache may take together.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.budget.memory = Some(bytes);
        self
    }

    /// Which sequences are stretched, of a model whose configuration asks for `yarn`.
    pub fn rope_scaling(mut self, scaling: RopeScaling) -> Self {
        self.rope_scaling = scaling;
        self
    }

    /// Bytes of the KV cache. Without this, [`memory`](Self::memory) or [`kv_tokens`](Self::kv_tokens) it is what all
    /// sequences need at their full length, or half of the free memory where that is less.
    pub fn kv_memory(mut self, bytes: u64) -> Self {
        self.budget.kv_memory = Some(bytes);
        self
    }

    /// Tokens of the KV cache.
    pub fn kv_tokens(mut self, tokens: usize) -> Self {
        self.budget.kv_tokens = Some(tokens);
        self
    }

    /// Bytes of the host's memory for what the KV cache gives up: what is asked for again comes back from there, and is not
    /// computed again, be it the beginning of another request or a sequence that had to give its place up. 0 is none.
    pub fn host_kv_memory(mut self, bytes: u64) -> Self {
        self.host_kv_memory = bytes;
        self
    }

    /// How a sequence that had to give its place up gets back what it had. [`Preemption::Swap`] needs
    /// [`host_kv_memory`](Self::host_kv_memory).
    pub fn preemption(mut self, preemption: Preemption) -> Self {
        self.preemption = Some(preemption);
        self
    }

    /// Sequences that run at a time; others wait.
    pub fn max_sequences(mut self, sequences: usize) -> Self {
        self.max_sequences = Some(sequences);
        self
    }

    /// Tokens of one step. More make prompts faster, and the time between two tokens longer while there are prompts.
    pub fn step_tokens(mut self, tokens: usize) -> Self {
        self.step_tokens = Some(tokens);
        self
    }

    /// How requests are scheduled. `step_tokens` and `max_running` are set by [`step_tokens`](Self::step_tokens) and
    /// [`max_sequences`](Self::max_sequences) where those are given, and by what the device does well where not;
    /// [`preemption`](Self::preemption) goes before `preemption`.
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

    /// Who is told how downloads go on.
    pub fn progress(mut self, progress: impl Progress + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Who is told of a device that hangs or fails: from one of the engine's threads, which waits for it.
    pub fn on_incident(mut self, incident: impl Fn(Incident) + Send + Sync + 'static) -> Self {
        self.incident = Arc::new(incident);
        self
    }
}
