//! Results of a step: commits its tokens, handles failures and ends sequences.

use std::collections::BTreeSet;
use std::time::Duration;

use super::sequence::{Pair, Retry, Sequence, State};
use super::{Chunk, End, Ended, Outcome, Plan, Scheduler, SequenceId};

/// A step that is running.
pub(super) struct UnderWay {
    chunks: Vec<Chunk>,
    /// Whether it moves or copies blocks.
    moves: bool,
}

impl Scheduler {
    /// The planned step runs now: the next one can be planned.
    pub fn begin(&mut self) {
        self.stats.steps += u64::from(!self.plan.chunks.is_empty());
        self.stats.stored_blocks += self.plan.moves.to_host.len() as u64;
        self.stats.fetched_blocks += self.plan.moves.from_host.len() as u64;
        let under_way = self.take_plan();
        for chunk in &under_way.chunks {
            self.reserve(chunk);
        }
        self.under_way = Some(under_way);
    }

    /// Empties the plan. Its moves and copies are made before those of any later plan.
    fn take_plan(&mut self) -> UnderWay {
        let Plan { moves, copies, chunks, .. } = std::mem::take(&mut self.plan);
        self.blocks.commit();
        UnderWay { chunks, moves: !moves.is_empty() || !copies.is_empty() }
    }

    /// Reserves what the running step will produce: the chunk's keys and values, and the token after it.
    fn reserve(&mut self, chunk: &Chunk) {
        let Some(sequence) = self.sequences.get_mut(chunk.sequence) else { return };
        sequence.computed += chunk.len;
        if !chunk.sample {
            return;
        }
        let branches = std::mem::take(&mut sequence.branches);
        for &branch in &branches {
            self.begin_branch(chunk.sequence, branch);
        }
        for id in [chunk.sequence].into_iter().chain(branches) {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.await_token();
            }
        }
    }

    /// The step is done: takes one outcome for each sequence that was sampled. Sequences that end are removed from the
    /// next step, where that is planned already. A sequence whose outcome is not known yet has to be
    /// [held](Self::hold) until [`complete_late`](Self::complete_late).
    pub fn complete(&mut self, now: Duration, outcomes: &[Outcome]) {
        if self.under_way.is_none() {
            self.begin();
        }
        for chunk in self.under_way.take().into_iter().flat_map(|step| step.chunks) {
            self.commit(now, chunk);
        }
        for &outcome in outcomes {
            self.complete_late(now, outcome);
        }
        self.blocks.drop_unused_copies(&mut self.plan.copies);
    }

    /// Takes an outcome that was not known when its step was done. The sequence stays held.
    pub fn complete_late(&mut self, now: Duration, outcome: Outcome) {
        let Outcome { sequence: id, token, last } = outcome;
        for id in self.sequences.both(id) {
            let Some(sequence) = self.sequences.get_mut(id) else { continue };
            sequence.give_up_token();
            sequence.tokens.push(token);
            sequence.hash_blocks(&self.hasher, self.blocks.block_size());
        }
        let Some(sequence) = self.sequences.get_mut(id) else { return };
        if sequence.first_token.is_none() {
            sequence.first_token = Some(now);
            sequence.receipt.prefill = now.saturating_sub(sequence.admitted.unwrap_or(now));
        }
        sequence.receipt.decode = now.saturating_sub(sequence.first_token.unwrap_or(now));
        if last || sequence.generated() >= sequence.max_tokens {
            self.end(now, id, End::Finished);
        }
    }

    /// Caches log-probabilities that the step gave: `scores` of a sequence's tokens from the second on, as far as they
    /// are known. To be called before [`complete`](Self::complete).
    pub fn scored(&mut self, id: SequenceId, scores: &[f32]) {
        let block_size = self.blocks.block_size();
        let chunks = self.under_way.as_ref().map_or(&self.plan.chunks, |step| &step.chunks);
        let Some(chunk) = chunks.iter().find(|chunk| chunk.sequence == id) else { return };
        let Some(sequence) = self.sequences.get(id).filter(|sequence| sequence.scored) else { return };
        for block in chunk.start / block_size..(chunk.start + chunk.len) / block_size {
            // Token `i` is the one whose score is `scores[i - 1]`.
            let first = block * block_size;
            let of = |token: usize| if token == 0 { Some(0.0) } else { scores.get(token - 1).copied() };
            let scores: Option<Box<[f32]>> = (first..first + block_size).map(of).collect();
            if let (Some(scores), Some(&hash)) = (scores, sequence.hashes.get(block)) {
                self.blocks.set_scores(sequence.table.blocks()[block], hash, scores);
            }
        }
    }

    /// The step failed, and what it wrote is lost. With `again`, where one of its sequences may have caused it, each is
    /// retried in steps of its own; a sequence that fails then, or in the step after it, ends. Without, all end. A step
    /// that is planned after it is dropped.
    pub fn fail(&mut self, now: Duration, again: bool) {
        let planned = self.take_plan();
        let UnderWay { chunks, moves } = match self.under_way.take() {
            Some(step) => UnderWay { moves: step.moves || planned.moves, ..step },
            None => planned,
        };
        // A held one awaits the token of an earlier step.
        let awaited =
            |id: &SequenceId| self.sequences.get(*id).is_some_and(|sequence| sequence.awaited) && !self.is_held(*id);
        let begun = self.running.iter().copied().filter(awaited);
        let failed: BTreeSet<SequenceId> =
            chunks.iter().map(|chunk| chunk.sequence).chain(begun).map(|id| self.sequences.lead(id)).collect();
        for id in failed {
            let first = self.sequences.get_mut(id).filter(|sequence| again && sequence.retry == Retry::None);
            if let Some(sequence) = first {
                sequence.retry = Retry::Due;
                self.stats.retries += 1;
                self.requeue(id);
                continue;
            }
            for branch in self.branches(id).to_vec() {
                self.end(now, branch, End::Failed);
            }
            self.end(now, id, End::Failed);
        }
        if moves {
            // It is unknown which of them were made, and other sequences may need them too.
            self.forget();
        }
    }

    /// The contents of the KV cache are lost or belong to another model: running sequences are requeued, and the prefix
    /// cache is emptied.
    pub fn forget(&mut self) {
        self.take_plan();
        self.under_way = None;
        while let Some(id) = self.running.pop() {
            self.requeue(id);
        }
        self.blocks.forget();
    }

    /// Ends a sequence early. A step under way may still write to its blocks: their next use comes after that step.
    /// Does nothing for a sequence that has ended.
    pub fn cancel(&mut self, now: Duration, id: SequenceId) {
        self.end(now, id, End::Cancelled);
    }

    /// Takes a sequence out of the plan and leaves it out of steps until [`resume`](Self::resume): its next token
    /// cannot be chosen yet. It keeps its blocks.
    pub fn hold(&mut self, id: SequenceId) {
        let lead = self.sequences.lead(id);
        if let Some(sequence) = self.sequences.get_mut(lead) {
            sequence.is_held = true;
        }
        let sequences = &self.sequences;
        self.plan.chunks.retain(|chunk| sequences.lead(chunk.sequence) != lead);
    }

    /// Lets a held sequence go on.
    pub fn resume(&mut self, id: SequenceId) {
        let lead = self.sequences.lead(id);
        if let Some(sequence) = self.sequences.get_mut(lead) {
            sequence.is_held = false;
        }
    }

    /// Commits a chunk: its keys and values are in the cache.
    fn commit(&mut self, now: Duration, chunk: Chunk) {
        let block_size = self.blocks.block_size();
        self.stats.computed_tokens += chunk.len as u64;
        let Some(sequence) = self.sequences.get_mut(chunk.sequence) else { return };
        let full = sequence.committed / block_size;
        sequence.committed = chunk.start + chunk.len;
        let filled = full..sequence.committed / block_size;
        for (&block, &hash) in sequence.table.blocks()[filled.clone()].iter().zip(&sequence.hashes[filled]) {
            self.blocks.publish(block, hash);
        }
        if let Some(window) = self.window {
            self.blocks.slide(&mut sequence.table, (sequence.committed + 1).saturating_sub(window));
        }
        if sequence.committed >= sequence.lost {
            self.stats.stalled += sequence.end_stall(now);
        }
        if sequence.committed + usize::from(sequence.awaited) < sequence.tokens.len() {
            return;
        }
        sequence.retry = match sequence.retry {
            Retry::Due => Retry::Passed,
            // It succeeded in a step with others: a later failure is another matter.
            Retry::Passed | Retry::None => Retry::None,
        };
        if sequence.max_tokens == 0 {
            self.end(now, chunk.sequence, End::Finished);
        }
    }

    /// Starts a branch where the prompt ends, on the same blocks.
    fn begin_branch(&mut self, leader: SequenceId, branch: SequenceId) {
        let Some(leader) = self.sequences.get(leader) else { return };
        let table = self.blocks.fork(&leader.table);
        let (computed, admitted, receipt) = (leader.computed, leader.admitted, leader.receipt);
        // The shared blocks are committed with the leader.
        let committed = computed;
        let Some(sequence) = self.sequences.get_mut(branch) else { return };
        sequence.table = table;
        (sequence.computed, sequence.committed) = (computed, committed);
        sequence.admitted = admitted;
        sequence.receipt = receipt;
        sequence.state = State::Running;
        self.add_running(branch);
    }

    /// Ends a sequence and releases its blocks. Its negative prompt ends with it and is not reported.
    pub(super) fn end(&mut self, now: Duration, id: SequenceId, end: End) {
        let Some(mut sequence) = self.remove(id) else { return };
        self.stats.stalled += sequence.end_stall(now);
        if let Some(Pair::GuidedBy(negative)) = sequence.pair {
            self.remove(negative);
        }
        self.plan.chunks.retain(|chunk| self.sequences.get(chunk.sequence).is_some());
        let mut receipt = sequence.receipt;
        if sequence.admitted.is_none() {
            receipt.queue = now.saturating_sub(sequence.submitted);
        }
        self.ended.push(Ended { sequence: id, end, receipt });
    }

    /// Removes a sequence from all lists and releases its blocks.
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
        self.promote_branch(&sequence.branches);
        if let Some(deadline) = sequence.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(sequence)
    }

    /// Branches whose leader is gone wait on their own: the first one leads the others.
    fn promote_branch(&mut self, branches: &[SequenceId]) {
        let Some((&heir, others)) = branches.split_first() else { return };
        for &other in others {
            if let Some(sequence) = self.sequences.get_mut(other) {
                sequence.state = State::Parked { leader: heir };
            }
        }
        if let Some(sequence) = self.sequences.get_mut(heir) {
            sequence.state = State::Waiting;
            sequence.branches = others.to_vec();
            self.enqueue(heir);
        }
    }
}
