//! Requests, KV blocks, the scheduler and the step loop.
//!
//! From the bottom up, each room using only those before it: [`kv`] (blocks and their hashes), [`scheduler`] (a state
//! machine that plans steps), `sampling` (how tokens are chosen), `step` (the loop that runs plans on a device), this
//! module (the [`Engine`] handle), `request` (requests and their tokens), [`capacity`] (what fits), `load` (builds an
//! engine) and [`simulation`] (the scheduler under a virtual clock).

pub mod capacity;
pub mod kv;
mod load;
mod request;
mod sampling;
pub mod scheduler;
pub mod simulation;
mod step;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::device::Counters;
use crate::error::{Error, Result};
use crate::model::{ArchSpec, Checkpoint, GenerationConfig, RopeScaling, TensorInfo};
use crate::ops::Rates;
use crate::text::{ChatTemplate, Tokenizer};

pub use capacity::KvLimit;
pub use load::{Device, EngineBuilder, LoadReport};
pub use request::{Generation, Guidance, Prompt, Request, Score, Timings, Token, TokenStream, Usage};
pub use sampling::{
    Constraint, ConstraintState, Dry, FinishReason, LogitsContext, LogitsProcessor, RepetitionDetection, Sampling,
};
pub use step::{Incident, SlowStep, Status, StepSize, batching};

use sampling::{Grammars, Masks};
use scheduler::Submission;
use step::{Command, Job, Kind};

/// A loaded model on a device. Clones share it; several engines in one process know nothing of each other.
///
/// ```
/// # #[cfg(feature = "builtin-model")]
/// # fn main() -> burrstone::Result<()> {
/// use burrstone::{Engine, Request};
///
/// let engine = Engine::builtin().build()?;
/// let mut text = String::new();
/// for token in engine.generate(Request::text("In the beginning").max_tokens(16))? {
///     text += &token?.text;
/// }
/// assert!(!text.is_empty());
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "builtin-model"))]
/// # fn main() {}
/// ```
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    spec: ArchSpec,
    generation_config: GenerationConfig,
    /// `None` where the checkpoint has none: it can still be asked with token ids.
    tokenizer: Option<Tokenizer>,
    /// Where the checkpoint is; `None` for the built-in one.
    folder: Option<PathBuf>,
    /// The tensors of the checkpoint that the engine was built for.
    tensors: Vec<TensorInfo>,
    /// Whether NaN and infinities among the weights are refused.
    check_weights: bool,
    report: LoadReport,
    commands: mpsc::Sender<Command>,
    /// The step loop; `None` while it is joined.
    worker: Option<JoinHandle<()>>,
    /// Requests so far: their keys.
    requests: AtomicU64,
    /// Made when a request is first constrained.
    grammars: OnceLock<Grammars>,
    masks: Masks,
}

impl Engine {
    /// An engine for a folder in Hugging Face format or, with the feature `hub`, a hub id: `org/name`, `org/name@rev`.
    pub fn builder(model: impl Into<String>) -> EngineBuilder {
        EngineBuilder::new(Some(model.into()))
    }

    /// An engine for the small model that is part of this crate.
    #[cfg(feature = "builtin-model")]
    pub fn builtin() -> EngineBuilder {
        EngineBuilder::new(None)
    }

    /// Asks for a generation. It runs along with all others of this engine, from any thread.
    ///
    /// # Errors
    /// The prompt, or a negative one, is empty, longer than the context, or has token ids out of range; a sampling value or
    /// a stop token is out of range; `min_tokens` is more than may be generated; the constraint is none, or cannot be fulfilled; text or a constraint is
    /// given and the checkpoint has no tokenizer, or messages and it has no chat template.
    pub fn generate(&self, request: Request) -> Result<Generation> {
        let mut generations = self.generate_several(request, 1)?;
        generations.pop().ok_or_else(|| Error::request("n", "at least 1", 0))
    }

    /// The start of a constraint over this model's vocabulary, as a request would have it.
    ///
    /// # Errors
    /// It is none, or needs a tokenizer, which the checkpoint does not have.
    pub fn constraint(&self, constraint: &Constraint) -> Result<Box<dyn ConstraintState>> {
        constraint.start(|| {
            if let Some(grammars) = self.0.grammars.get() {
                return Ok(grammars);
            }
            let eos = &self.0.generation_config.eos;
            let grammars = Grammars::new(self.tokenizer()?, self.0.spec.vocab_size, eos)?;
            // Another request may have been faster.
            Ok(self.0.grammars.get_or_init(|| grammars))
        })
    }

    /// Log-probability of each token of a text given those before it.
    ///
    /// # Errors
    /// The text is empty, longer than the context, or has token ids out of range.
    pub fn score(&self, tokens: &[u32]) -> Result<Score> {
        self.check_tokens("text", tokens)?;
        let (reply, scores) = mpsc::channel();
        let key = self.0.requests.fetch_add(1, Ordering::Relaxed);
        let jobs = vec![Job { key, kind: Kind::Score { logprobs: Vec::new(), reply } }];
        let submission =
            Submission { salt: self.salt(0, tokens.len(), 0), scored: true, ..Submission::new(tokens.to_vec(), 0) };
        self.0.send(Command::Submit { at: Instant::now(), deadline: None, submission, jobs });
        let predicted = scores.recv().map_err(|_| self.0.stopped())??;
        let perplexity = (!predicted.is_empty()).then(|| {
            let sum: f64 = predicted.iter().copied().map(f64::from).sum();
            (-sum / predicted.len() as f64).exp()
        });
        let logprobs = std::iter::once(None).chain(predicted.into_iter().map(Some)).collect();
        Ok(Score { token_ids: tokens.to_vec(), logprobs, perplexity })
    }

    /// Serves with the weights of another checkpoint from now on: of the same architecture, with the same tensors, by name,
    /// shape and dtype. Tokenizer, chat template and generation settings stay. Nothing that was computed with the old
    /// weights is used any more: requests under way keep the tokens that they have, and go on with the new weights as if
    /// these had been the prompt; whoever wants no mixture waits for them first. Returns when the new weights serve.
    ///
    /// Files are mapped: new weights belong in new files, not into those that are being served.
    ///
    /// # Errors
    /// The checkpoint cannot be read or is of another architecture; the device does not take it. The old weights serve on.
    pub fn update_weights(&self, folder: &Path) -> Result<()> {
        let checkpoint = Checkpoint::open(folder)?;
        let mut spec = self.0.spec.clone();
        spec.rope.scale(RopeScaling::Always);
        checkpoint.check_like(&spec, &self.0.tensors)?;
        if self.0.check_weights {
            checkpoint.check_finite()?;
        }
        let (reply, updated) = mpsc::channel();
        self.0.send(Command::Update(Box::new(checkpoint), reply));
        updated.recv().map_err(|_| self.0.stopped())?
    }

    /// What the engine is doing.
    ///
    /// # Errors
    /// It has stopped.
    pub fn status(&self) -> Result<Status> {
        let (reply, status) = mpsc::channel();
        self.0.send(Command::Status(reply));
        status.recv().map_err(|_| self.0.stopped())
    }

    /// What the device gives at this moment, at its best, with activations of this engine's dtype. On the CPU both rates
    /// are measured, in about a second; on a GPU memory's is, and that of operations is the data sheet's. Requests wait
    /// for it.
    ///
    /// # Errors
    /// The device has no room for the measurement, or the engine has stopped.
    pub fn rates(&self) -> Result<Rates> {
        let (reply, rates) = mpsc::channel();
        self.0.send(Command::Rates(reply));
        rates.recv().map_err(|_| self.0.stopped())?
    }

    /// # Errors
    /// The checkpoint has no `tokenizer.json`.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.0.tokenizer.as_ref().ok_or_else(|| self.without("it has no tokenizer.json; give token ids"))
    }

    /// The checkpoint's chat template, read anew.
    ///
    /// # Errors
    /// The checkpoint has no chat template, or one that is none.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        match &self.0.folder {
            Some(folder) => ChatTemplate::load(folder, None),
            None => Err(self.without("it has no chat template; give one with --chat-template FILE")),
        }
    }

    /// A chat template from a file, with the checkpoint's special tokens.
    ///
    /// # Errors
    /// The file cannot be read, or is no chat template.
    pub fn chat_template_from(&self, file: &Path) -> Result<ChatTemplate> {
        match &self.0.folder {
            Some(folder) => ChatTemplate::load(folder, Some(file)),
            None => ChatTemplate::read(file),
        }
    }

    fn without(&self, reason: &str) -> Error {
        Error::Model { model: self.0.report.model.clone(), reason: reason.to_owned() }
    }

    pub fn spec(&self) -> &ArchSpec {
        &self.0.spec
    }

    pub fn generation_config(&self) -> &GenerationConfig {
        &self.0.generation_config
    }

    pub fn report(&self) -> &LoadReport {
        &self.0.report
    }

    /// What the device was asked to do since it was last set up: launches, replays, copies. Nothing is counted on the
    /// CPU, nor by an engine that has stopped.
    pub fn counters(&self) -> Counters {
        self.status().map(|status| status.counters).unwrap_or_default()
    }
}

impl Inner {
    /// Tells the step loop. One that has stopped has dropped its ends of all channels, as it does with this command's.
    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    fn stopped(&self) -> Error {
        Error::Device { device: self.report.device.clone(), reason: "the engine has stopped".to_owned() }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(worker) = self.worker.take() {
            // A panic of its own has been reported, and has ended all requests.
            let _ = worker.join();
        }
    }
}
