//! From a plan to a device: batches of what it asks for.

use std::iter;

use crate::device::Counters;
use crate::error::Result;
use crate::model::{Checkpoint, Forward, Rope};
use crate::ops::{Batch, Sampled, Span};

use super::rules::Rules;
use super::scheduler::{Chunk, Scheduler, SequenceId, View};

/// What a step gave.
#[derive(Default)]
pub(super) struct Results {
    pub sampled: Vec<(SequenceId, Sampled)>,
    /// Where a chunk starts, and log-probabilities of the tokens that follow those of it.
    pub scored: Vec<(SequenceId, usize, Vec<f32>)>,
}

/// What is wanted of a sequence.
pub(super) enum Wanted<'a> {
    /// The token after its last one, chosen by these.
    Sample(&'a Rules),
    /// How likely each of its tokens is.
    Scores,
}

/// Puts a model on its device, as often as need be.
pub(super) trait Load: Send {
    /// # Errors
    /// The device is not there, or has no room.
    fn load(&mut self) -> Result<Box<dyn Forward>>;

    /// Another checkpoint takes the place of the one that was loaded so far, which is returned.
    fn replace(&mut self, checkpoint: Checkpoint) -> Checkpoint;
}

pub(super) struct Runner {
    /// `None` where the device failed and could not be brought back yet.
    forward: Option<Box<dyn Forward>>,
    load: Box<dyn Load>,
    /// How often it was loaded.
    loads: u64,
    /// What runs the model, for people.
    device: String,
    rope: Rope,
    page_size: usize,
    /// Of sequences that generate.
    generate: Batch,
    /// Of sequences that are scored.
    score: Batch,
}

impl Runner {
    /// # Errors
    /// Those of [`Load::load`].
    pub fn new(mut load: Box<dyn Load>, rope: Rope, page_size: usize) -> Result<Self> {
        let forward = load.load()?;
        let device = forward.describe();
        let (generate, score) = (Batch::default(), Batch::default());
        Ok(Self { forward: Some(forward), load, loads: 1, device, rope, page_size, generate, score })
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

    /// How often the device was set up anew.
    pub fn restarts(&self) -> u64 {
        self.loads - 1
    }

    /// What the device was asked to do since it was last set up.
    pub fn counters(&self) -> Counters {
        self.forward.as_ref().map(|forward| forward.counters()).unwrap_or_default()
    }

    /// Whether the device, which failed at something, is of use no more.
    pub fn is_lost(&self) -> bool {
        self.forward.as_ref().is_none_or(|forward| forward.check().is_err())
    }

    /// Sets the device up anew: all that its memory held is lost.
    ///
    /// # Errors
    /// It cannot be brought back now; [`forward`](Self::forward) tries again.
    pub fn restart(&mut self) -> Result<()> {
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

    /// Carries the plan out.
    pub fn run<'a>(&mut self, scheduler: &Scheduler, wanted: impl Fn(SequenceId) -> Wanted<'a>) -> Result<Results> {
        clear(&mut self.generate);
        clear(&mut self.score);
        let plan = scheduler.plan();
        let (mut sampled, mut scored) = (Vec::new(), Vec::new());
        for chunk in &plan.chunks {
            let Some(view) = scheduler.view(chunk.sequence) else { continue };
            if let Wanted::Scores = wanted(chunk.sequence) {
                append(&mut self.score, &mut self.rope, self.page_size, *chunk, view);
                let end = chunk.start + chunk.len;
                let targets = &view.tokens[chunk.start + 1..view.tokens.len().min(end + 1)];
                let first = (self.score.tokens.len() - chunk.len) as u32;
                self.score.logit_rows.extend(first..first + targets.len() as u32);
                self.score.targets.extend_from_slice(targets);
                scored.push((chunk.sequence, chunk.start, targets.len()));
                continue;
            }
            append(&mut self.generate, &mut self.rope, self.page_size, *chunk, view);
            if chunk.sample {
                let row = self.generate.tokens.len() as u32 - 1;
                for &id in iter::once(&chunk.sequence).chain(scheduler.branches(chunk.sequence)) {
                    if let Wanted::Sample(rules) = wanted(id) {
                        self.generate.logit_rows.push(row);
                        self.generate.samples.push(rules.row(view));
                        sampled.push(id);
                    }
                }
            }
        }
        let forward = forward(&mut self.forward, &mut *self.load, &mut self.loads)?;
        if !plan.moves.is_empty() {
            forward.move_pages(&plan.moves)?;
        }
        if !plan.copies.is_empty() {
            forward.copy_pages(&plan.copies)?;
        }
        let mut results = Results::default();
        if !sampled.is_empty() {
            results.sampled = sampled.into_iter().zip(forward.sample(&self.generate)?).collect();
        } else if !self.generate.tokens.is_empty() {
            forward.run(&self.generate)?;
        }
        if !scored.is_empty() {
            let mut logprobs = forward.target_logprobs(&self.score)?.into_iter();
            let of = |(id, start, count)| (id, start, logprobs.by_ref().take(count).collect());
            results.scored = scored.into_iter().map(of).collect();
        }
        Ok(results)
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

fn clear(batch: &mut Batch) {
    let Batch { tokens, positions, slots, rope, spans, page_table, masks, logit_rows, samples, targets } = batch;
    [tokens, positions, slots, page_table, logit_rows, targets].into_iter().for_each(Vec::clear);
    rope.clear();
    spans.clear();
    masks.clear();
    samples.clear();
}

/// Adds a chunk. Rope kinds that depend on the length see the whole prompt's for each of its tokens, however it is cut,
/// and for a generated token the length up to it, whenever it is computed.
fn append(batch: &mut Batch, rope: &mut Rope, page_size: usize, chunk: Chunk, view: View<'_>) {
    let (start, end) = (batch.tokens.len(), chunk.start + chunk.len);
    batch.tokens.extend_from_slice(&view.tokens[chunk.start..end]);
    for position in chunk.start..end {
        let page = view.blocks[position / page_size] as usize;
        batch.positions.push(position as u32);
        batch.slots.push((page * page_size + position % page_size) as u32);
        rope.append(position as u32, view.prompt_len.max(position + 1), &mut batch.rope);
    }
    batch.spans.push(Span { start, len: chunk.len, kv_len: end, pages: batch.page_table.len() });
    batch.page_table.extend_from_slice(&view.blocks[..end.div_ceil(page_size)]);
}
