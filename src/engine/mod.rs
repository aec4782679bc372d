//! The inference engine: requests, continuous batching over a paged KV cache, and the step loop.
//!
//! Modules from the bottom up; each uses only those above it in this table:
//!
//! | module | what it does |
//! |---|---|
//! | [`kv`] | block pool, block tables, prefix cache, host tier |
//! | [`scheduler`] | decides what each step computes; a state machine |
//! | `sampling` | sampling options, penalties, constraints, logits processors |
//! | `step` | the step loop: runs plans on a device |
//! | this module | [`Engine`], the handle |
//! | `request` | requests, and the streams of tokens that they return |
//! | [`capacity`] | memory budgets, expected step times |
//! | `load` | builds an engine |
//! | [`simulation`] | runs the scheduler under a virtual clock |

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
use std::thread::{self, JoinHandle};
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

/// A loaded model on a device. Clones share it; several engines in one process are independent.
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
    /// `None` where the checkpoint has none: prompts are then token ids.
    tokenizer: Option<Tokenizer>,
    /// The checkpoint's folder; `None` for the built-in model.
    folder: Option<PathBuf>,
    /// The checkpoint's tensors: other weights must match them.
    tensors: Vec<TensorInfo>,
    /// Whether NaN and infinities among the weights are refused.
    check_weights: bool,
    report: LoadReport,
    commands: mpsc::Sender<Command>,
    /// The step loop; `None` while it is joined.
    worker: Option<JoinHandle<()>>,
    /// The key of the next request.
    requests: AtomicU64,
    /// Created by the first request with a constraint.
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

    /// Starts a generation. It is batched with all others of this engine; any thread may call this.
    ///
    /// # Errors
    /// A prompt is empty, longer than the context, or has token ids out of range; a sampling value or stop token is out of
    /// range; `min_tokens` is more than may be generated; the constraint is invalid or cannot be satisfied; the request needs
    /// a tokenizer or a chat template that the checkpoint does not have.
    pub fn generate(&self, request: Request) -> Result<Generation> {
        let mut generations = self.generate_several(request, 1)?;
        generations.pop().ok_or_else(|| Error::request("n", "at least 1", 0))
    }

    /// The initial state of a constraint over this model's vocabulary.
    ///
    /// # Errors
    /// It is invalid, or needs a tokenizer and the checkpoint has none.
    pub fn constraint(&self, constraint: &Constraint) -> Result<Box<dyn ConstraintState>> {
        constraint.start(|| {
            if let Some(grammars) = self.0.grammars.get() {
                return Ok(grammars);
            }
            let eos = &self.0.generation_config.eos;
            let grammars = Grammars::new(self.tokenizer()?, self.0.spec.vocab_size, eos)?;
            // Another thread may have been faster.
            Ok(self.0.grammars.get_or_init(|| grammars))
        })
    }

    /// Computes the log-probability of each token of a text given those before it.
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

    /// Replaces the weights by those of another checkpoint with the same architecture and the same tensors (name,
    /// shape, dtype). Tokenizer, chat template and generation settings stay. The KV cache is emptied. Requests under
    /// way keep their tokens so far and go on with the new weights, as if these tokens had been the prompt; to avoid
    /// such mixtures, wait for them first. Returns when the new weights are in use.
    ///
    /// Weight files are memory-mapped: write new weights to new files, not into those that are in use.
    ///
    /// # Errors
    /// The checkpoint cannot be read, does not match, or cannot be loaded. The old weights stay in use.
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

    /// The engine's current state.
    ///
    /// # Errors
    /// The engine has stopped.
    pub fn status(&self) -> Result<Status> {
        let (reply, status) = mpsc::channel();
        self.0.send(Command::Status(reply));
        status.recv().map_err(|_| self.0.stopped())
    }

    /// The device's peak rates for activations of this engine's dtype. On the CPU both are measured, in about a second;
    /// on a GPU the memory rate is measured and the compute rate is that of the data sheet. Requests wait meanwhile.
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

    /// The checkpoint's chat template, read from its file.
    ///
    /// # Errors
    /// The checkpoint has no chat template, or an invalid one.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        match &self.0.folder {
            Some(folder) => ChatTemplate::load(folder, None),
            None => Err(self.without("it has no chat template; give one with --chat-template FILE")),
        }
    }

    /// A chat template from a file, with the checkpoint's special tokens.
    ///
    /// # Errors
    /// The file cannot be read, or is not a chat template.
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

    /// Launches, replays and copies since the device was last set up. Zeros on the CPU, and for an engine that has
    /// stopped.
    pub fn counters(&self) -> Counters {
        self.status().map(|status| status.counters).unwrap_or_default()
    }
}

impl Inner {
    /// Sends a command to the step loop. Where that has stopped the command is dropped, and with it its reply channel.
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
        // The last handle may belong to a request (a logits processor may own one), which the loop's own thread drops.
        // That thread cannot join itself; it ends with the command above.
        let is_own = |worker: &JoinHandle<()>| worker.thread().id() == thread::current().id();
        if let Some(worker) = self.worker.take_if(|worker| !is_own(worker)) {
            // A panic of the loop has been printed and has ended all requests.
            let _ = worker.join();
        }
    }
}
