//! From a plan to a device: batches of what it asks for.

use std::iter;

use crate::error::Result;
use crate::model::{Forward, Rope};
use crate::ops::{Batch, SampleRow, Sampled, Span};

use super::scheduler::{Chunk, Scheduler, SequenceId, View};

/// What a step gave.
#[derive(Default)]
pub(super) struct Results {
    pub sampled: Vec<(SequenceId, Sampled)>,
    /// Where a chunk starts, and log-probabilities of the tokens that follow those of it.
    pub scored: Vec<(SequenceId, usize, Vec<f32>)>,
}

/// What is wanted of a sequence.
pub(super) enum Wanted {
    /// The token after its last one, chosen like this.
    Sample(SampleRow),
    /// How likely each of its tokens is.
    Scores,
}

pub(super) struct Runner {
    pub forward: Box<dyn Forward>,
    rope: Rope,
    page_size: usize,
    /// Of sequences that generate.
    generate: Batch,
    /// Of sequences that are scored.
    score: Batch,
}

impl Runner {
    pub fn new(forward: Box<dyn Forward>, rope: Rope, page_size: usize) -> Self {
        Self { forward, rope, page_size, generate: Batch::default(), score: Batch::default() }
    }

    /// Carries the plan out.
    pub fn run(&mut self, scheduler: &Scheduler, wanted: impl Fn(SequenceId, View<'_>) -> Wanted) -> Result<Results> {
        clear(&mut self.generate);
        clear(&mut self.score);
        let plan = scheduler.plan();
        let (mut sampled, mut scored) = (Vec::new(), Vec::new());
        for chunk in &plan.chunks {
            let Some(view) = scheduler.view(chunk.sequence) else { continue };
            if let Wanted::Scores = wanted(chunk.sequence, view) {
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
                    if let Wanted::Sample(sample) = wanted(id, view) {
                        self.generate.logit_rows.push(row);
                        self.generate.samples.push(sample);
                        sampled.push(id);
                    }
                }
            }
        }
        if !plan.copies.is_empty() {
            self.forward.copy_pages(&plan.copies)?;
        }
        let mut results = Results::default();
        if !sampled.is_empty() {
            results.sampled = sampled.into_iter().zip(self.forward.sample(&self.generate)?).collect();
        } else if !self.generate.tokens.is_empty() {
            self.forward.run(&self.generate)?;
        }
        if !scored.is_empty() {
            let mut logprobs = self.forward.target_logprobs(&self.score)?.into_iter();
            let of = |(id, start, count)| (id, start, logprobs.by_ref().take(count).collect());
            results.scored = scored.into_iter().map(of).collect();
        }
        Ok(results)
    }
}

fn clear(batch: &mut Batch) {
    let Batch { tokens, positions, slots, rope, spans, page_table, logit_rows, samples, targets } = batch;
    [tokens, positions, slots, page_table, logit_rows, targets].into_iter().for_each(Vec::clear);
    rope.clear();
    spans.clear();
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
