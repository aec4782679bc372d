//! From a model's name to a running engine.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Instant;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::source::{Progress, resolve};
use crate::model::{ArchSpec, Checkpoint, Forward, Limits, RopeScaling, TensorInfo};
use crate::ops::CacheShape;
use crate::text::Tokenizer;

use super::batching::Batcher;
use super::budget::KvBudget;
use super::constraint::Masks;
use super::incident::{Incident, OnIncident};
use super::loader::{Loader, Opened, Target};
use super::report::{typical_request, warnings};
use super::runner::Runner;
use super::scheduler::{CacheSize, Policy, Preemption, Scheduler};
use super::simulation::GpuModel;
use super::watchdog::Watchdog;
use super::worker::Worker;
use super::{Engine, Inner, LoadReport};

/// Tokens of one KV page.
pub(super) const PAGE_SIZE: usize = 32;

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The best there is.
    #[default]
    Auto,
    Cpu,
    /// A CUDA device by its index.
    Cuda(usize),
    /// The CUDA kernels, on the CPU.
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

/// Options of an [`Engine`], and its making.
#[must_use]
pub struct EngineBuilder {
    /// `None` is the built-in model.
    model: Option<String>,
    device: Device,
    dtype: Option<DType>,
    kv_dtype: Option<DType>,
    threads: usize,
    sim_arch: u32,
    context: Option<usize>,
    rope_scaling: RopeScaling,
    budget: KvBudget,
    host_kv_memory: u64,
    preemption: Option<Preemption>,
    max_sequences: Option<usize>,
    step_tokens: Option<usize>,
    policy: Policy,
    check_weights: bool,
    offline: bool,
    progress: Box<dyn Progress>,
    incident: OnIncident,
}

/// The architecture that the simulator stands in for without a say: the oldest that has all dtypes.
const SIM_ARCH: u32 = 80;

impl EngineBuilder {
    pub(super) fn new(model: Option<String>) -> Self {
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

    /// Resolves and loads the model.
    ///
    /// # Errors
    /// The model cannot be found, downloaded or understood; the device is not there; memory is short.
    pub fn build(mut self) -> Result<Engine> {
        let started = Instant::now();
        let folder = match &self.model {
            Some(model) => Some(resolve(model, self.offline, &mut *self.progress)?),
            None => None,
        };
        let checkpoint = match &folder {
            Some(folder) => Checkpoint::open(folder)?,
            #[cfg(feature = "builtin-model")]
            None => Checkpoint::builtin()?,
            #[cfg(not(feature = "builtin-model"))]
            None => return Err(Error::Model { model: String::new(), reason: "no model given".to_owned() }),
        };
        let name = self.model.clone().unwrap_or_else(|| "built-in".to_owned());
        let mut spec = checkpoint.spec().clone();
        if !spec.rope.scale(self.rope_scaling) {
            return Err(Error::request("rope_scaling", "yarn in the model's configuration", spec.rope.kind.name()));
        }
        let generation_config = checkpoint.generation_config().clone();
        if self.check_weights {
            checkpoint.check_finite()?;
        }
        let (target, opened) = self.target()?;
        let dtype = self.dtype.unwrap_or_else(|| opened.default_dtype(spec.dtype));
        let context = self.context_for(spec.context)?;
        let per_token = spec.cache_shape(0, PAGE_SIZE, self.kv_dtype.unwrap_or(dtype));
        let max_running = self.max_sequences.unwrap_or_else(|| opened.max_sequences());
        let step_tokens = self.step_tokens.unwrap_or(self.policy.step_tokens.max(max_running));
        if !(1..=step_tokens).contains(&max_running) {
            let expected = format!("from 1 to {step_tokens}, the tokens of a step");
            return Err(Error::request("max sequences", expected, max_running));
        }
        let preemption = self.preemption.unwrap_or(self.policy.preemption);
        let policy = Policy { step_tokens, max_running, preemption, ..self.policy };
        let limits = Limits { batch_tokens: step_tokens, cache: per_token };
        let weight_bytes = checkpoint.tensors().map(|tensor| tensor.bytes).sum();
        let activation_bytes = limits.activation_bytes(&spec) + opened.workspace_bytes();
        let most = max_running.saturating_mul(context.next_multiple_of(PAGE_SIZE));
        let (tokens, kv_limit) = self.budget.tokens(
            per_token.bytes_per_token() as u64,
            weight_bytes,
            activation_bytes,
            opened.free_memory(weight_bytes, activation_bytes)?,
            most,
        )?;
        let shape = CacheShape { pages: (tokens / PAGE_SIZE).max(1), ..per_token };
        let limits = Limits { cache: shape, ..limits };

        let host_blocks = self.host_kv_memory / (PAGE_SIZE * shape.bytes_per_token()).max(1) as u64;
        let host_blocks = usize::try_from(host_blocks).unwrap_or(usize::MAX);
        if preemption == Preemption::Swap && host_blocks == 0 {
            let found = format!("{} bytes", self.host_kv_memory);
            return Err(Error::request("preemption", "memory of the host to swap to", found));
        }
        let context = context.min(shape.pages * PAGE_SIZE);
        let cache = cache_size(&spec, shape.pages);
        let typical @ [prompt, output] = typical_request(context);
        // What a device has no kernels for it refuses itself, as the model is loaded.
        let model = opened.gpu().and_then(|info| GpuModel::of_device(&spec, info, [dtype, shape.dtype]).ok());
        let tokens_per_s = model.map(|mut model| model.capacity(&policy, cache, prompt, output).tokens_per_s);

        let tokenizer = match checkpoint.file("tokenizer.json")? {
            Some(bytes) => Some(Tokenizer::from_bytes(&checkpoint.path("tokenizer.json"), &bytes)?),
            None => None,
        };
        let tensors: Vec<TensorInfo> = checkpoint.tensors().collect();
        let (threads, spec_loaded) = (self.threads, spec.clone());
        let load = Loader { target, opened: Some(opened), checkpoint, spec: spec_loaded, threads, dtype, limits };
        let mut runner = Runner::new(Box::new(load), Batcher::new(spec.rope.table(spec.context), PAGE_SIZE))?;
        // The simulator computes slower than anything can be fetched.
        let is_fetched = host_blocks > 0 && self.device != Device::Sim;
        let fetch = if is_fetched { fetch_tokens(&spec, runner.forward()?)? } else { 0 };
        let report = LoadReport {
            model: name,
            device: runner.device().to_owned(),
            dtype,
            kv_dtype: shape.dtype,
            kv_shape: shape,
            load_s: 0.0,
            weight_bytes,
            kv_bytes: shape.bytes() as u64,
            kv_tokens: shape.pages * PAGE_SIZE,
            kv_limit,
            host_kv_bytes: self.host_kv_memory,
            activation_bytes,
            step_tokens,
            max_sequences: max_running,
            context,
            typical,
            tokens_per_s,
            warnings: warnings(&spec, context),
        };
        let scheduler = Scheduler::new(policy, cache).with_host(host_blocks, fetch);
        let (commands, receiver) = mpsc::channel();
        let failed = |e| Error::Device { device: report.device.clone(), reason: format!("a thread of its own: {e}") };
        let incident = Arc::clone(&self.incident);
        let watchdog = Watchdog::new(Arc::new(move |step| incident(Incident::SlowStep(step)))).map_err(failed)?;
        let worker = Worker::new(runner, scheduler, receiver, watchdog, self.incident);
        let masks = Masks::start().map_err(failed)?;
        let worker =
            thread::Builder::new().name("burrstone-steps".to_owned()).spawn(|| worker.run()).map_err(failed)?;
        let report = LoadReport { load_s: started.elapsed().as_secs_f64(), ..report };
        let inner = Inner {
            spec,
            generation_config,
            tokenizer,
            folder,
            tensors,
            check_weights: self.check_weights,
            report,
            commands,
            worker: Some(worker),
            requests: AtomicU64::new(0),
            grammars: OnceLock::new(),
            masks,
        };
        Ok(Engine(Arc::new(inner)))
    }

    /// Where to. Without a say it is the first GPU that this build has code for, or else the CPU.
    fn target(&self) -> Result<(Target, Opened)> {
        let target = match self.device {
            Device::Auto => return Ok(Target::best()),
            Device::Cpu => Target::Cpu,
            Device::Cuda(ordinal) => Target::Cuda(ordinal),
            Device::Sim => Target::Sim { arch: self.sim_arch },
        };
        Ok((target, target.open()?))
    }

    fn context_for(&self, model: usize) -> Result<usize> {
        match self.context {
            None => Ok(model),
            Some(tokens) if (1..=model).contains(&tokens) => Ok(tokens),
            Some(tokens) => Err(Error::request("context", format!("from 1 to {model}, the model's own"), tokens)),
        }
    }
}

/// Tokens at the start of a sequence that a device computes, at its best, while a page comes from the host's memory.
fn fetch_tokens(spec: &ArchSpec, forward: &mut dyn Forward) -> Result<usize> {
    let parameters: usize = spec.products().iter().map(|[n, k]| n * k).sum();
    let per_token = 2.0 * parameters as f64 / 1e9;
    Ok((forward.fetch_time()?.as_secs_f64() * forward.rates()?.gflop_s / per_token) as usize)
}

/// The KV cache as the scheduler sees it.
pub(super) fn cache_size(spec: &ArchSpec, blocks: usize) -> CacheSize {
    // What no layer sees any more is given back: one that sees all keeps all.
    let windows: Option<Vec<usize>> = spec.windows.iter().copied().collect();
    let window = windows.and_then(|windows| windows.into_iter().max());
    let parameters: usize = spec.products().iter().map(|[n, k]| n * k).sum();
    // A multiply-add for each parameter, and two for each element of a query and position that it sees.
    let balance = parameters / (2 * spec.heads * spec.head_dim).max(1);
    CacheSize { blocks, block_size: PAGE_SIZE, window, balance }
}
