//! Turns the scheduler's chunks into a [`Batch`]: tokens, cache slots, rotary factors, page table rows, sampling rows.

use crate::engine::scheduler::{Chunk, View};
use crate::model::Rope;
use crate::ops::{Batch, SampleRow, Span};

use super::page_rows::PageRows;

/// Builds the batches of each step, and reuses their memory.
pub struct Batcher {
    rope: Rope,
    page_size: usize,
    /// The batch of sequences that generate.
    generate: Part,
    /// The batch of sequences that are scored.
    score: Part,
    /// Batches so far; numbers their layouts.
    layouts: u64,
}

#[derive(Default)]
struct Part {
    batch: Batch,
    rows: PageRows,
}

impl Batcher {
    /// For pages of `page_size` tokens.
    pub fn new(rope: Rope, page_size: usize) -> Self {
        Self { rope, page_size, generate: Part::default(), score: Part::default(), layouts: 0 }
    }

    /// Begins a step.
    pub fn clear(&mut self) {
        for part in [&mut self.generate, &mut self.score] {
            let Batch {
                layout,
                tokens,
                slots,
                rope_rows,
                rope,
                spans,
                // It is updated from step to step.
                page_table: _,
                masks,
                logit_rows,
                samples,
                targets,
            } = &mut part.batch;
            part.rows.begin_step();
            self.layouts += 1;
            *layout = self.layouts;
            [tokens, slots, rope_rows, logit_rows, targets].into_iter().for_each(Vec::clear);
            rope.clear();
            spans.clear();
            masks.clear();
            samples.clear();
        }
    }

    /// Adds a chunk of a sequence that generates.
    pub fn generate(&mut self, chunk: Chunk, view: View<'_>) {
        append(&mut self.generate, &mut self.rope, self.page_size, chunk, view);
    }

    /// Samples a token after the last one that was added: greedily, unless [`choose`](Self::choose) sets another row.
    /// May be called several times.
    pub fn want(&mut self) {
        let batch = &mut self.generate.batch;
        batch.logit_rows.push(batch.tokens.len() as u32 - 1);
        batch.samples.push(SampleRow::GREEDY);
    }

    /// Sets the sampling row of the `at`th [`want`](Self::want).
    pub fn choose(&mut self, at: usize, row: SampleRow) {
        self.generate.batch.samples[at] = row;
    }

    /// Enters the tokens of the `at`th chunk of the generating sequences, which were not known when it was added.
    pub fn renew(&mut self, at: usize, view: View<'_>) {
        let batch = &mut self.generate.batch;
        let Span { start, len, kv_len, .. } = batch.spans[at];
        batch.tokens[start..start + len].copy_from_slice(&view.tokens[kv_len - len..kv_len]);
    }

    /// Adds a chunk of a sequence that is scored. Returns how many log-probabilities it gives: one for the token after
    /// each of its tokens.
    pub fn score(&mut self, chunk: Chunk, view: View<'_>) -> usize {
        append(&mut self.score, &mut self.rope, self.page_size, chunk, view);
        let batch = &mut self.score.batch;
        let end = chunk.start + chunk.len;
        let targets = &view.tokens[chunk.start + 1..view.tokens.len().min(end + 1)];
        let first = (batch.tokens.len() - chunk.len) as u32;
        batch.logit_rows.extend(first..first + targets.len() as u32);
        batch.targets.extend_from_slice(targets);
        targets.len()
    }

    /// The batch of sequences that generate.
    pub fn generated(&self) -> &Batch {
        &self.generate.batch
    }

    /// The batch of sequences that are scored.
    pub fn scored(&self) -> &Batch {
        &self.score.batch
    }
}

/// Adds a chunk. For rope kinds that depend on the length, a prompt token counts the whole prompt, and a generated one
/// the tokens up to it: so the angles do not depend on how and when chunks are computed.
fn append(part: &mut Part, rope: &mut Rope, page_size: usize, chunk: Chunk, view: View<'_>) {
    let Part { batch, rows } = part;
    let (start, end) = (batch.tokens.len(), chunk.start + chunk.len);
    batch.tokens.extend_from_slice(&view.tokens[chunk.start..end]);
    for position in chunk.start..end {
        let page = view.blocks[position / page_size] as usize;
        batch.slots.push((page * page_size + position % page_size) as u32);
        let len = view.prompt_len.max(position + 1);
        rope.append(position, len, view.longest, &mut batch.rope_rows, &mut batch.rope);
    }
    let pages = rows.place(&mut batch.page_table, chunk.sequence, view, end.div_ceil(page_size));
    batch.spans.push(Span { start, len: chunk.len, kv_len: end, pages });
}
