//! The one who drives the model: cuts prompts into steps and keeps track of pages.

use crate::error::Result;
use crate::model::{Forward, Rope};
use crate::ops::{Batch, SampleRow, Sampled, Span};

use super::pages::{PagePool, Sequence};

/// What is wanted of a step.
enum Wanted<'a> {
    /// That its keys and values are written.
    Nothing,
    /// The token after its last one.
    Sample(SampleRow),
    /// The log-probability of each of these after the token before it.
    Targets(&'a [u32]),
}

pub(super) struct Runner {
    pub forward: Box<dyn Forward>,
    pub pool: PagePool,
    rope: Rope,
    /// Tokens of one step at most; longer prompts are cut.
    batch_tokens: usize,
    batch: Batch,
}

impl Runner {
    pub fn new(forward: Box<dyn Forward>, pool: PagePool, rope: Rope, batch_tokens: usize) -> Self {
        Self { forward, pool, rope, batch_tokens, batch: Batch::default() }
    }

    /// Appends `tokens` (at least one) to the sequence and chooses the token after the last.
    pub fn extend(&mut self, sequence: &mut Sequence, tokens: &[u32], row: SampleRow) -> Result<Sampled> {
        self.pool.reserve(sequence, tokens.len())?;
        let total = sequence.len + tokens.len();
        // The last step has at least one token: chunks are cut from the front.
        let last = (tokens.len() - 1) / self.batch_tokens * self.batch_tokens;
        for chunk in tokens[..last].chunks(self.batch_tokens) {
            self.prepare(sequence, chunk, total, Wanted::Nothing);
            self.forward.run(&self.batch)?;
        }
        self.prepare(sequence, &tokens[last..], total, Wanted::Sample(row));
        let sampled = self.forward.sample(&self.batch)?;
        Ok(sampled[0])
    }

    /// Log-probability of each of `tokens` after those before it: one fewer than tokens.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut sequence = Sequence::default();
        let scored = self.score_in(&mut sequence, tokens);
        self.pool.release(&mut sequence);
        scored
    }

    fn score_in(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
        self.pool.reserve(sequence, tokens.len())?;
        let mut logprobs = Vec::with_capacity(tokens.len());
        for start in (0..tokens.len()).step_by(self.batch_tokens) {
            let end = tokens.len().min(start + self.batch_tokens);
            let targets = &tokens[start + 1..tokens.len().min(end + 1)];
            self.prepare(sequence, &tokens[start..end], tokens.len(), Wanted::Targets(targets));
            logprobs.extend(self.forward.target_logprobs(&self.batch)?);
        }
        Ok(logprobs)
    }

    /// The batch of one step of one sequence, whose pages are reserved. `total` is the length the sequence grows to in
    /// this call: rope kinds that depend on the length see the whole prompt's, however it is cut.
    fn prepare(&mut self, sequence: &mut Sequence, tokens: &[u32], total: usize, wanted: Wanted<'_>) {
        let page_size = self.pool.page_size();
        let batch = &mut self.batch;
        batch.tokens.clear();
        batch.tokens.extend_from_slice(tokens);
        batch.positions.clear();
        batch.slots.clear();
        batch.rope.clear();
        for position in sequence.len..sequence.len + tokens.len() {
            let page = sequence.pages[position / page_size] as usize;
            batch.positions.push(position as u32);
            batch.slots.push((page * page_size + position % page_size) as u32);
            self.rope.append(position as u32, total, &mut batch.rope);
        }
        sequence.len += tokens.len();
        batch.page_table.clear();
        batch.page_table.extend_from_slice(&sequence.pages);
        batch.spans.clear();
        batch.spans.push(Span { start: 0, len: tokens.len(), kv_len: sequence.len, pages: 0 });
        let last = tokens.len() as u32;
        batch.logit_rows.clear();
        batch.samples.clear();
        batch.targets.clear();
        match wanted {
            Wanted::Nothing => {}
            Wanted::Sample(row) => {
                batch.logit_rows.push(last - 1);
                batch.samples.push(row);
            }
            Wanted::Targets(targets) => {
                batch.logit_rows.extend(0..targets.len() as u32);
                batch.targets.extend_from_slice(targets);
            }
        }
    }
}
