//! Runs the scheduler's plans on a device, and loads the model again after a device failure.

use std::iter;

use crate::device::Counters;
use crate::engine::sampling::{Edited, Editor, Rules};
use crate::engine::scheduler::{Chunk, Scheduler, SequenceId};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Forward};
use crate::ops::{LogitEdits, Sampled};

use super::batching::Batcher;

/// The results of a step.
#[derive(Default)]
pub struct Results {
    /// An error ends its own sequence and no other.
    pub sampled: Vec<(SequenceId, Result<Sampled>)>,
    /// The start of each chunk, and log-probabilities of the tokens after each of its tokens.
    pub scored: Vec<(SequenceId, usize, Vec<f32>)>,
}

/// What a sequence is computed for.
pub enum Wanted<'a> {
    /// Its next token, sampled by these rules.
    Sample(&'a Rules),
    /// The log-probabilities of its tokens.
    Scores,
}

/// Loads a model onto its device.
pub trait Load: Send {
    /// # Errors
    /// The device is not available or has too little memory.
    fn load(&mut self) -> Result<Box<dyn Forward>>;

    /// Replaces the checkpoint that [`load`](Self::load) loads. Returns the old one.
    fn replace(&mut self, checkpoint: Checkpoint) -> Checkpoint;
}

pub struct Runner {
    /// `None` while the device is down.
    forward: Option<Box<dyn Forward>>,
    load: Box<dyn Load>,
    /// The device cannot be used by this process any more: `load` returns that error.
    gone: bool,
    /// How often it was loaded.
    loads: u64,
    /// A description of the device.
    device: String,
    batcher: Batcher,
    laid_out: LaidOut,
    begun: Begun,
}

/// What the batches contain that were built last, until a step uses them.
#[derive(Default)]
struct LaidOut {
    /// The plan's number.
    number: u64,
    chunks: Vec<Chunk>,
    /// The start of each scored chunk, and how many log-probabilities it gives.
    scored: Vec<(SequenceId, usize, usize)>,
}

/// What the step under way will return.
#[derive(Default)]
struct Begun {
    /// The sequence of each sampling row; `None` for the row of a negative prompt.
    sampled: Vec<Option<SequenceId>>,
    edited: Edited,
    /// See [`LaidOut`].
    scored: Vec<(SequenceId, usize, usize)>,
}

/// Builds the plan's batches; tokens and sampling rows are filled in later.
fn lay_out<'a>(batcher: &mut Batcher, scheduler: &Scheduler, wanted: impl Fn(SequenceId) -> Wanted<'a>) -> LaidOut {
    let plan = scheduler.plan();
    let mut laid_out = LaidOut { number: plan.number, chunks: plan.chunks.clone(), scored: Vec::new() };
    batcher.clear();
    for chunk in &plan.chunks {
        let Some(view) = scheduler.view(chunk.sequence) else { continue };
        if is_scored(scheduler, chunk, &wanted) {
            laid_out.scored.push((chunk.sequence, chunk.start, batcher.score(*chunk, view)));
        } else {
            batcher.generate(*chunk, view);
            rows(scheduler, chunk).for_each(|_| batcher.want());
        }
    }
    laid_out
}

fn is_scored<'a>(scheduler: &Scheduler, chunk: &Chunk, wanted: impl Fn(SequenceId) -> Wanted<'a>) -> bool {
    scheduler.guides(chunk.sequence).is_none() && matches!(wanted(chunk.sequence), Wanted::Scores)
}

/// The sequences that are sampled after a chunk: its own and its branches.
fn rows<'a>(scheduler: &'a Scheduler, chunk: &'a Chunk) -> impl Iterator<Item = SequenceId> + use<'a> {
    let all = iter::once(&chunk.sequence).chain(scheduler.branches(chunk.sequence));
    all.filter(|_| chunk.sample).copied()
}

impl Runner {
    /// # Errors
    /// Those of [`Load::load`].
    pub fn new(mut load: Box<dyn Load>, batcher: Batcher) -> Result<Self> {
        let forward = load.load()?;
        let device = forward.describe();
        Ok(Self {
            forward: Some(forward),
            load,
            gone: false,
            loads: 1,
            device,
            batcher,
            laid_out: LaidOut::default(),
            begun: Begun::default(),
        })
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    /// The model on its device, which is loaded first where it is down.
    ///
    /// # Errors
    /// Those of [`Load::load`].
    pub fn forward(&mut self) -> Result<&mut dyn Forward> {
        forward(&mut self.forward, &mut *self.load, &mut self.loads)
    }

    /// Whether the device works on after [`begin`](Self::begin) has returned.
    pub fn overlaps(&self) -> bool {
        self.forward.as_ref().is_some_and(|forward| forward.overlaps())
    }

    /// How often the model was loaded again.
    pub fn restarts(&self) -> u64 {
        self.loads - 1
    }

    /// Launches, replays and copies since the model was last loaded.
    pub fn counters(&self) -> Counters {
        self.forward.as_ref().map(|forward| forward.counters()).unwrap_or_default()
    }

    /// After a failure: whether the device has to be restarted.
    pub fn is_lost(&self) -> bool {
        !self.gone && self.forward.as_ref().is_none_or(|forward| forward.check().is_err())
    }

    /// Loads the model again. The KV cache is lost.
    ///
    /// # Errors
    /// Those of [`Load::load`], and [`forward`](Self::forward) tries again. Where the device has failed for good, the
    /// error says so, and is returned by each use from now on.
    pub fn restart(&mut self) -> Result<()> {
        if self.forward.as_ref().is_some_and(|forward| forward.fails_for_good() && forward.check().is_err()) {
            self.gone = true;
            self.load = Box::new(Gone { device: self.device.clone() });
        }
        // Frees the device's memory first.
        self.forward = None;
        self.forward().map(|_| ())
    }

    /// Loads another checkpoint in place of the current one. The KV cache is lost.
    ///
    /// # Errors
    /// It cannot be loaded; the old one is loaded again.
    pub fn update(&mut self, checkpoint: Checkpoint) -> Result<()> {
        let old = self.load.replace(checkpoint);
        self.restart().inspect_err(|_| {
            self.load.replace(old);
        })
    }

    /// Does the part of the next step that does not depend on the tokens of the step under way.
    ///
    /// # Errors
    /// The device refuses the plan; [`begin`](Self::begin) fails with the same error.
    pub fn prepare<'a>(&mut self, scheduler: &Scheduler, wanted: impl Fn(SequenceId) -> Wanted<'a>) -> Result<()> {
        // The step under way still needs its batches where it scores.
        if let Some(forward) = self.forward.as_mut().filter(|_| self.begun.scored.is_empty()) {
            let laid_out = lay_out(&mut self.batcher, scheduler, wanted);
            forward.prepare(self.batcher.generated())?;
            self.laid_out = laid_out;
        }
        Ok(())
    }

    /// Starts the planned step. [`finish`](Self::finish) waits for its results.
    pub fn begin<'a>(&mut self, scheduler: &Scheduler, wanted: impl Fn(SequenceId) -> Wanted<'a>) -> Result<()> {
        let (plan, batcher) = (scheduler.plan(), &mut self.batcher);
        let mut laid_out = std::mem::take(&mut self.laid_out);
        if laid_out.number != plan.number || laid_out.chunks != plan.chunks {
            laid_out = lay_out(batcher, scheduler, &wanted);
        }
        let (mut sampled, mut editor) = (Vec::new(), Editor::default());
        let generating = plan.chunks.iter().filter(|chunk| !is_scored(scheduler, chunk, &wanted));
        for (at, chunk) in generating.enumerate() {
            let Some(view) = scheduler.view(chunk.sequence) else { continue };
            batcher.renew(at, view);
            let lead = scheduler.guides(chunk.sequence);
            for id in rows(scheduler, chunk) {
                let row = sampled.len();
                match (lead, wanted(id)) {
                    (Some(lead), _) => editor.negative(row, lead),
                    (None, Wanted::Sample(rules)) => {
                        batcher.choose(row, rules.row(view));
                        editor.own(row, id, rules, view);
                    }
                    (None, Wanted::Scores) => {}
                }
                sampled.push(Some(id).filter(|_| lead.is_none()));
            }
        }
        let forward = forward(&mut self.forward, &mut *self.load, &mut self.loads)?;
        if !plan.moves.is_empty() {
            forward.move_pages(&plan.moves)?;
        }
        if !plan.copies.is_empty() {
            forward.copy_pages(&plan.copies)?;
        }
        if !sampled.is_empty() {
            let rows = editor.rows();
            let edits = LogitEdits { rows: &rows, edit: &mut |row, logits| editor.edit(row, logits) };
            forward.sample(batcher.generated(), edits)?;
        } else if !batcher.generated().tokens.is_empty() {
            forward.run(batcher.generated())?;
        }
        self.begun = Begun { sampled, edited: editor.edited(), scored: laid_out.scored };
        Ok(())
    }

    /// Waits for the step under way.
    pub fn finish(&mut self) -> Result<Results> {
        let Begun { sampled, mut edited, scored } = std::mem::take(&mut self.begun);
        let forward = forward(&mut self.forward, &mut *self.load, &mut self.loads)?;
        let mut results = Results::default();
        if !sampled.is_empty() {
            let of = |(row, (id, chosen)): (usize, (Option<SequenceId>, Result<Sampled>))| {
                Some((id?, edited.result(row, chosen)))
            };
            results.sampled = sampled.into_iter().zip(forward.sampled()?).enumerate().filter_map(of).collect();
        }
        if !scored.is_empty() {
            let mut logprobs = forward.target_logprobs(self.batcher.scored())?.into_iter();
            let of = |(id, start, count)| (id, start, logprobs.by_ref().take(count).collect());
            results.scored = scored.into_iter().map(of).collect();
        }
        Ok(results)
    }
}

/// A device that this process cannot use any more.
struct Gone {
    device: String,
}

impl Load for Gone {
    fn load(&mut self) -> Result<Box<dyn Forward>> {
        let reason = "a fault of a kernel has broken this process's CUDA context: restart the process".to_owned();
        Err(Error::Device { device: self.device.clone(), reason })
    }

    fn replace(&mut self, checkpoint: Checkpoint) -> Checkpoint {
        checkpoint
    }
}

/// The loaded model, which is loaded first where it is not.
fn forward<'a>(
    there: &'a mut Option<Box<dyn Forward>>,
    load: &mut dyn Load,
    loads: &mut u64,
) -> Result<&'a mut dyn Forward> {
    let forward = match there.take() {
        Some(forward) => forward,
        None => {
            let forward = load.load()?;
            *loads += 1;
            forward
        }
    };
    Ok(&mut **there.insert(forward))
}
