//! Builds an engine: loads the model, sizes the KV cache and starts the step loop.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Instant;

use crate::engine::capacity::{GpuModel, PAGE_SIZE, cache_size, typical_request};
use crate::engine::sampling::Masks;
use crate::engine::scheduler::{Policy, Preemption, Scheduler};
use crate::engine::step::batching::Batcher;
use crate::engine::step::{Incident, Runner, Watchdog, Worker};
use crate::engine::{Engine, Inner};
use crate::error::{Error, Result};
use crate::model::{ArchSpec, Checkpoint, Forward, Limits, TensorInfo, resolve};
use crate::ops::CacheShape;
use crate::text::Tokenizer;

use super::device::{Opened, Target};
use super::loader::Loader;
use super::report::warnings;
use super::{Device, EngineBuilder, LoadReport};

impl EngineBuilder {
    /// Resolves and loads the model.
    ///
    /// # Errors
    /// The model cannot be found, downloaded or read; the device is not available; there is too little memory.
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
        let mut generation_config = checkpoint.generation_config().clone();
        // Tokens that the model does not have cannot be generated, so they need no ban.
        let is_token = |token: &u32| (*token as usize) < spec.vocab_size;
        let (eos, unknown_eos) = generation_config.eos.into_iter().partition(is_token);
        generation_config.eos = eos;
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
        let activation_bytes = limits.activation_bytes(&spec) + opened.workspace_bytes(&per_token);
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
        // Where there are no kernels for the model, loading it fails below.
        let model = opened.gpu().and_then(|info| GpuModel::of_device(&spec, info, [dtype, shape.dtype]).ok());
        let tokens_per_s = model.map(|mut model| model.capacity(&policy, cache, prompt, output).tokens_per_s);

        let tokenizer = match (&folder, checkpoint.file("tokenizer.json")?) {
            (Some(folder), _) => Tokenizer::load(folder)?,
            (None, Some(bytes)) => Some(Tokenizer::from_bytes(&checkpoint.path("tokenizer.json"), &bytes)?),
            (None, None) => None,
        };
        if tokenizer.is_none() && !generation_config.stop_strings.is_empty() {
            let file = checkpoint.path("generation_config.json");
            let expected = "null, as there is no tokenizer.json to match texts with";
            return Err(Error::checkpoint(&file, "stop_strings", expected, generation_config.stop_strings.join(", ")));
        }
        let tensors: Vec<TensorInfo> = checkpoint.tensors().collect();
        let kv_scales = checkpoint.quantization().map_or(0, |report| report.kv_scales);
        let (threads, spec_loaded) = (self.threads, spec.clone());
        let precision = self.precision;
        let opened = Some(opened);
        let load = Loader { target, opened, checkpoint, spec: spec_loaded, threads, precision, dtype, limits };
        let mut runner = Runner::new(Box::new(load), Batcher::new(spec.rope.table(spec.context), PAGE_SIZE))?;
        // The simulator is slower than any fetch.
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
            read_bytes: runner.forward()?.weight_bytes(),
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
            warnings: warnings(&spec, context, &unknown_eos, shape.dtype, kv_scales),
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

    /// Opens the device. `Auto` is the first GPU that this build has kernels for, or else the CPU.
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

/// How many tokens at the start of a sequence the device computes, at its peak rate, in the time of fetching a page
/// from host memory.
fn fetch_tokens(spec: &ArchSpec, forward: &mut dyn Forward) -> Result<usize> {
    let parameters: usize = spec.products().iter().map(|[n, k]| n * k).sum();
    let per_token = 2.0 * parameters as f64 / 1e9;
    Ok((forward.fetch_time()?.as_secs_f64() * forward.rates()?.gflop_s / per_token) as usize)
}
