//! From a plan to a device, which is set up as often as need be.

use std::iter;

use crate::device::Counters;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Forward};
use crate::ops::{LogitEdits, Sampled};

use super::batching::Batcher;
use crate::engine::sampling::Rules;
use crate::engine::sampling::{Edited, Editor};
use crate::engine::scheduler::{Chunk, Scheduler, SequenceId};

/// What a step gave.
#[derive(Default)]
pub struct Results {
    /// An error is the sequence's own, which ends with it.
    pub sampled: Vec<(SequenceId, Sampled, Result<()>)>,
    /// Where a chunk starts, and log-probabilities of the tokens that follow those of it.
    pub scored: Vec<(SequenceId, usize, Vec<f32>)>,
}

/// What is wanted of a sequence.
pub enum Wanted<'a> {
    /// The token after its last one, chosen by these.
    Sample(&'a Rules),
    /// How likely each of its tokens is.
    Scores,
}

/// Puts a model on its device, as often as need be.
pub trait Load: Send {
    /// # Errors
    /// The device is not there, or has no room.
    fn load(&mut self) -> Result<Box<dyn Forward>>;

    /// Another checkpoint takes the place of the one that was loaded so far, which is returned.
    fn replace(&mut self, checkpoint: Checkpoint) -> Checkpoint;
}

pub struct Runner {
    /// `None` where the device failed and could not be brought back yet.
    forward: Option<Box<dyn Forward>>,
    load: Box<dyn Load>,
    /// The device cannot be used by this process any more: `load` only says so.
    gone: bool,
    /// How often it was loaded.
    loads: u64,
    /// What runs the model, for people.
    device: String,
    batcher: Batcher,
    laid_out: LaidOut,
    begun: Begun,
}

/// What the batches that were made last are of, until they are used.
#[derive(Default)]
struct LaidOut {
    /// Of the plan.
    number: u64,
    chunks: Vec<Chunk>,
    /// Where a chunk starts, and of how many tokens log-probabilities are wanted.
    scored: Vec<(SequenceId, usize, usize)>,
}

/// What the step that was begun last gives.
#[derive(Default)]
struct Begun {
    /// Whose tokens are chosen, in order; nobody's after a negative prompt.
    sampled: Vec<Option<SequenceId>>,
    edited: Edited,
    /// See [`LaidOut`].
    scored: Vec<(SequenceId, usize, usize)>,
}

/// Makes the batches of the plan, of which tokens and samples are yet to be filled in.
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
    scheduler.contrast_of(chunk.sequence).is_none() && matches!(wanted(chunk.sequence), Wanted::Scores)
}

/// Whose next tokens are chosen behind a chunk.
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

    /// The model on its device, which is brought back where it was lost.
    ///
    /// # Errors
    /// It cannot be brought back.
    pub fn forward(&mut self) -> Result<&mut dyn Forward> {
        forward(&mut self.forward, &mut *self.load, &mut self.loads)
    }

    /// Whether a step goes on after [`begin`](Self::begin) has returned.
    pub fn overlaps(&self) -> bool {
        self.forward.as_ref().is_some_and(|forward| forward.overlaps())
    }

    /// How often the device was set up anew.
    pub fn restarts(&self) -> u64 {
        self.loads - 1
    }

    /// What the device was asked to do since it was last set up.
    pub fn counters(&self) -> Counters {
        self.forward.as_ref().map(|forward| forward.counters()).unwrap_or_default()
    }

    /// Whether the device, which failed at something, is to be set up anew.
    pub fn is_lost(&self) -> bool {
        !self.gone && self.forward.as_ref().is_none_or(|forward| forward.check().is_err())
    }

    /// Sets the device up anew: all that its memory held is lost.
    ///
    /// # Errors
    /// It cannot be brought back now, and [`forward`](Self::forward) tries again; or not by this process, and each use of it
    /// is the same error from now on.
    pub fn restart(&mut self) -> Result<()> {
        if self.forward.as_ref().is_some_and(|forward| forward.fails_for_good() && forward.check().is_err()) {
            self.gone = true;
            self.load = Box::new(Gone { device: self.device.clone() });
        }
        // First of all its memory is given back.
        self.forward = None;
        self.forward().map(|_| ())
    }

    /// Loads another checkpoint in the place of the one that was loaded so far. All that the device's memory held is lost.
    ///
    /// # Errors
    /// The device does not take it, and goes on with the old one.
    pub fn update(&mut self, checkpoint: Checkpoint) -> Result<()> {
        let old = self.load.replace(checkpoint);
        self.restart().inspect_err(|_| {
            self.load.replace(old);
        })
    }

    /// Does of the next step what can be done before the tokens of the one under way are known.
    ///
    /// # Errors
    /// The plan makes no sense to the device: so will [`begin`](Self::begin) say.
    pub fn prepare<'a>(&mut self, scheduler: &Scheduler, wanted: impl Fn(SequenceId) -> Wanted<'a>) -> Result<()> {
        // The batches of the step under way are needed until its texts are scored.
        if let Some(forward) = self.forward.as_mut().filter(|_| self.begun.scored.is_empty()) {
            let laid_out = lay_out(&mut self.batcher, scheduler, wanted);
            forward.prepare(self.batcher.generated())?;
            self.laid_out = laid_out;
        }
        Ok(())
    }

    /// Begins to carry the plan out. [`finish`](Self::finish) waits for what comes of it.
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
            let lead = scheduler.contrast_of(chunk.sequence);
            for id in rows(scheduler, chunk) {
                let row = sampled.len();
                match (lead, wanted(id)) {
                    (Some(lead), _) => editor.contrast(row, lead),
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

    /// Waits for the step that was begun last.
    pub fn finish(&mut self) -> Result<Results> {
        let Begun { sampled, mut edited, scored } = std::mem::take(&mut self.begun);
        let forward = forward(&mut self.forward, &mut *self.load, &mut self.loads)?;
        let mut results = Results::default();
        if !sampled.is_empty() {
            let of = |(row, (id, mut chosen)): (usize, (Option<SequenceId>, Sampled))| {
                let verdict = edited.verdict(row, &mut chosen);
                Some((id?, chosen, verdict))
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

/// What is there, or is brought back.
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
