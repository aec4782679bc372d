//! What came of a step.

use std::collections::BTreeSet;
use std::time::Duration;

use super::sequence::{Pair, Sequence, State, Trial};
use super::{Chunk, End, Ended, Outcome, Scheduler, SequenceId};

impl Scheduler {
    /// The step is done: one outcome for every sequence that was to be sampled.
    pub fn complete(&mut self, now: Duration, outcomes: &[Outcome]) {
        for chunk in std::mem::take(&mut self.plan.chunks) {
            self.advance(now, chunk);
        }
        for &Outcome { sequence: id, token, last } in outcomes {
            for id in self.sequences.both(id) {
                let Some(sequence) = self.sequences.get_mut(id) else { continue };
                sequence.tokens.push(token);
                sequence.name_blocks(&self.hasher, self.blocks.block_size());
            }
            let Some(sequence) = self.sequences.get_mut(id) else { continue };
            if sequence.first_token.is_none() {
                sequence.first_token = Some(now);
                sequence.receipt.prefill = now.saturating_sub(sequence.admitted.unwrap_or(now));
            }
            sequence.receipt.decode = now.saturating_sub(sequence.first_token.unwrap_or(now));
            if last || sequence.generated() >= sequence.max_tokens {
                self.end(now, id, End::Finished);
            }
        }
    }

    /// Log-probabilities that the step gave of a sequence: `scores` of all its tokens after the first, as far as they are
    /// known by now. To be said before [`complete`](Self::complete).
    pub fn scored(&mut self, id: SequenceId, scores: &[f32]) {
        let block_size = self.blocks.block_size();
        let Some(chunk) = self.plan.chunks.iter().find(|chunk| chunk.sequence == id) else { return };
        let Some(sequence) = self.sequences.get(id).filter(|sequence| sequence.scored) else { return };
        for block in chunk.start / block_size..(chunk.start + chunk.len) / block_size {
            // Token `i` is the one whose score is `scores[i - 1]`.
            let first = block * block_size;
            let of = |token: usize| if token == 0 { Some(0.0) } else { scores.get(token - 1).copied() };
            let scores: Option<Box<[f32]>> = (first..first + block_size).map(of).collect();
            if let (Some(scores), Some(&name)) = (scores, sequence.names.get(block)) {
                self.blocks.set_scores(sequence.table.blocks()[block], name, scores);
            }
        }
    }

    /// The step failed, and what it was to write is not kept. Its sequences end; or, where one of them may be to blame and
    /// the others may not, they are computed `again`, each in steps of its own, once in its life.
    pub fn fail(&mut self, now: Duration, again: bool) {
        let chunks = std::mem::take(&mut self.plan.chunks);
        let failed: BTreeSet<SequenceId> = chunks.iter().map(|chunk| self.sequences.lead(chunk.sequence)).collect();
        for id in failed {
            let first = self.sequences.get_mut(id).filter(|sequence| again && sequence.trial == Trial::None);
            if let Some(sequence) = first {
                sequence.trial = Trial::Due;
                self.stats.retries += 1;
                self.put_back(id);
                continue;
            }
            for branch in self.branches(id).to_vec() {
                self.end(now, branch, End::Failed);
            }
            self.end(now, id, End::Failed);
        }
        if !self.plan.copies.is_empty() || !self.plan.moves.is_empty() {
            // Nobody knows which of them were made, and not only the step's sequences need them.
            self.forget();
        }
    }

    /// What the device's memory held is lost, or is another model's: running sequences are computed again, and nothing is
    /// known of any prompt.
    pub fn forget(&mut self) {
        self.blocks.settle();
        while let Some(id) = self.running.pop() {
            self.put_back(id);
        }
        self.blocks.forget();
    }

    /// Ends a sequence before it is done. Between steps only; one that has ended already is left alone.
    pub fn cancel(&mut self, now: Duration, id: SequenceId) {
        self.end(now, id, End::Cancelled);
    }

    /// A chunk's keys and values are in the cache.
    fn advance(&mut self, now: Duration, chunk: Chunk) {
        let block_size = self.blocks.block_size();
        let Some(sequence) = self.sequences.get_mut(chunk.sequence) else { return };
        let full = sequence.computed / block_size;
        sequence.computed += chunk.len;
        self.stats.computed_tokens += chunk.len as u64;
        let filled = full..sequence.computed / block_size;
        for (&block, &name) in sequence.table.blocks()[filled.clone()].iter().zip(&sequence.names[filled]) {
            self.blocks.publish(block, name);
        }
        if let Some(window) = self.window {
            self.blocks.slide(&mut sequence.table, (sequence.computed + 1).saturating_sub(window));
        }
        if sequence.remaining() > 0 {
            return;
        }
        if sequence.trial == Trial::Due {
            sequence.trial = Trial::Passed;
        }
        if sequence.max_tokens == 0 {
            self.end(now, chunk.sequence, End::Finished);
            return;
        }
        for branch in std::mem::take(&mut sequence.branches) {
            self.begin_branch(chunk.sequence, branch);
        }
    }

    /// A parked sequence goes on from where the prompt ends, on the same blocks.
    fn begin_branch(&mut self, leader: SequenceId, branch: SequenceId) {
        let Some(leader) = self.sequences.get(leader) else { return };
        let table = self.blocks.fork(&leader.table);
        let (computed, admitted, receipt) = (leader.computed, leader.admitted, leader.receipt);
        let Some(sequence) = self.sequences.get_mut(branch) else { return };
        sequence.table = table;
        sequence.computed = computed;
        sequence.admitted = admitted;
        sequence.receipt = receipt;
        sequence.state = State::Running;
        self.enlist(branch);
    }

    /// Ends a sequence, and gives back what it has; a contrast ends with it, and is not spoken of.
    pub(super) fn end(&mut self, now: Duration, id: SequenceId, end: End) {
        let Some(sequence) = self.remove(id) else { return };
        if let Some(Pair::With(contrast)) = sequence.pair {
            self.remove(contrast);
        }
        let mut receipt = sequence.receipt;
        if sequence.admitted.is_none() {
            receipt.queue = now.saturating_sub(sequence.submitted);
        }
        self.ended.push(Ended { sequence: id, end, receipt });
    }

    /// Takes a sequence out of all lists, and its blocks from it.
    fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let mut sequence = self.sequences.remove(id)?;
        match sequence.state {
            State::Waiting => {
                self.waiting.remove(&(sequence.order, id));
            }
            State::Running => self.running.retain(|&other| other != id),
            State::Parked { leader } => {
                if let Some(leader) = self.sequences.get_mut(leader) {
                    leader.branches.retain(|&other| other != id);
                }
            }
        }
        self.blocks.release(&mut sequence.table);
        self.hand_over(&sequence.branches);
        if let Some(deadline) = sequence.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(sequence)
    }

    /// Branches whose leader is gone wait for themselves: the first leads the others.
    fn hand_over(&mut self, branches: &[SequenceId]) {
        let Some((&heir, others)) = branches.split_first() else { return };
        for &other in others {
            if let Some(sequence) = self.sequences.get_mut(other) {
                sequence.state = State::Parked { leader: heir };
            }
        }
        if let Some(sequence) = self.sequences.get_mut(heir) {
            sequence.state = State::Waiting;
            sequence.branches = others.to_vec();
            self.waiting.insert((sequence.order, heir));
        }
    }
}
