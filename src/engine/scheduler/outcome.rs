//! What came of a step.

use std::collections::BTreeSet;
use std::time::Duration;

use super::sequence::{Pair, Sequence, State, Trial};
use super::{Chunk, End, Ended, Outcome, Plan, Scheduler, SequenceId};

/// A step that is being carried out.
pub(super) struct UnderWay {
    chunks: Vec<Chunk>,
    /// Whether it moves or copies blocks.
    moves: bool,
}

impl Scheduler {
    /// The plan is being carried out, and the next one can be made.
    pub fn begin(&mut self) {
        self.stats.steps += u64::from(!self.plan.chunks.is_empty());
        self.stats.stored_blocks += self.plan.moves.to_host.len() as u64;
        self.stats.fetched_blocks += self.plan.moves.from_host.len() as u64;
        let under_way = self.take_plan();
        for chunk in &under_way.chunks {
            self.book(chunk);
        }
        self.under_way = Some(under_way);
    }

    /// What the plan moves and copies is done in the order of steps: others may be planned.
    fn take_plan(&mut self) -> UnderWay {
        let Plan { moves, copies, chunks, .. } = std::mem::take(&mut self.plan);
        self.blocks.settle();
        UnderWay { chunks, moves: !moves.is_empty() || !copies.is_empty() }
    }

    /// A chunk's keys and values will be in the cache, and the token behind will be known.
    fn book(&mut self, chunk: &Chunk) {
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

    /// The step is done: one outcome for every sequence that was to be sampled. Of the next one, where it is planned
    /// already, that is dropped which has ended.
    pub fn complete(&mut self, now: Duration, outcomes: &[Outcome]) {
        if self.under_way.is_none() {
            self.begin();
        }
        for chunk in self.under_way.take().into_iter().flat_map(|step| step.chunks) {
            self.settle(now, chunk);
        }
        for &Outcome { sequence: id, token, last } in outcomes {
            for id in self.sequences.both(id) {
                let Some(sequence) = self.sequences.get_mut(id) else { continue };
                sequence.give_up_token();
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
        self.blocks.forgo_copies(&mut self.plan.copies);
    }

    /// Log-probabilities that the step gave of a sequence: `scores` of all its tokens after the first, as far as they are
    /// known by now. To be said before [`complete`](Self::complete).
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
            if let (Some(scores), Some(&name)) = (scores, sequence.names.get(block)) {
                self.blocks.set_scores(sequence.table.blocks()[block], name, scores);
            }
        }
    }

    /// The step failed, and what it was to write is not kept. Its sequences end; or, where one of them may be to blame and
    /// the others may not, they are computed `again`, each in steps of its own, once in its life. A step that is planned
    /// behind it is not carried out.
    pub fn fail(&mut self, now: Duration, again: bool) {
        let planned = self.take_plan();
        let UnderWay { chunks, moves } = match self.under_way.take() {
            Some(step) => UnderWay { moves: step.moves || planned.moves, ..step },
            None => planned,
        };
        let awaited = |id: &SequenceId| self.sequences.get(*id).is_some_and(|sequence| sequence.awaited);
        let begun = self.running.iter().copied().filter(awaited);
        let failed: BTreeSet<SequenceId> =
            chunks.iter().map(|chunk| chunk.sequence).chain(begun).map(|id| self.sequences.lead(id)).collect();
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
        if moves {
            // Nobody knows which of them were made, and not only the step's sequences need them.
            self.forget();
        }
    }

    /// What the device's memory held is lost, or is another model's: running sequences are computed again, and nothing is
    /// known of any prompt.
    pub fn forget(&mut self) {
        self.take_plan();
        self.under_way = None;
        while let Some(id) = self.running.pop() {
            self.put_back(id);
        }
        self.blocks.forget();
    }

    /// Ends a sequence before it is done; one that has ended already is left alone. A step under way may go on writing to its
    /// blocks, as whatever they are used for next comes after that.
    pub fn cancel(&mut self, now: Duration, id: SequenceId) {
        self.end(now, id, End::Cancelled);
    }

    /// A chunk's keys and values are in the cache.
    fn settle(&mut self, now: Duration, chunk: Chunk) {
        let block_size = self.blocks.block_size();
        self.stats.computed_tokens += chunk.len as u64;
        let Some(sequence) = self.sequences.get_mut(chunk.sequence) else { return };
        let full = sequence.settled / block_size;
        sequence.settled = chunk.start + chunk.len;
        let filled = full..sequence.settled / block_size;
        for (&block, &name) in sequence.table.blocks()[filled.clone()].iter().zip(&sequence.names[filled]) {
            self.blocks.publish(block, name);
        }
        if let Some(window) = self.window {
            self.blocks.slide(&mut sequence.table, (sequence.settled + 1).saturating_sub(window));
        }
        if sequence.settled >= sequence.lost {
            self.stats.stalled += sequence.resume(now);
        }
        if sequence.settled + usize::from(sequence.awaited) < sequence.tokens.len() {
            return;
        }
        if sequence.trial == Trial::Due {
            sequence.trial = Trial::Passed;
        }
        if sequence.max_tokens == 0 {
            self.end(now, chunk.sequence, End::Finished);
        }
    }

    /// A parked sequence goes on from where the prompt ends, on the same blocks.
    fn begin_branch(&mut self, leader: SequenceId, branch: SequenceId) {
        let Some(leader) = self.sequences.get(leader) else { return };
        let table = self.blocks.fork(&leader.table);
        let (computed, admitted, receipt) = (leader.computed, leader.admitted, leader.receipt);
        // What the two have in common settles with the leader.
        let settled = computed;
        let Some(sequence) = self.sequences.get_mut(branch) else { return };
        sequence.table = table;
        (sequence.computed, sequence.settled) = (computed, settled);
        sequence.admitted = admitted;
        sequence.receipt = receipt;
        sequence.state = State::Running;
        self.enlist(branch);
    }

    /// Ends a sequence, and gives back what it has; a contrast ends with it, and is not spoken of.
    pub(super) fn end(&mut self, now: Duration, id: SequenceId, end: End) {
        let Some(mut sequence) = self.remove(id) else { return };
        self.stats.stalled += sequence.resume(now);
        if let Some(Pair::With(contrast)) = sequence.pair {
            self.remove(contrast);
        }
        self.plan.chunks.retain(|chunk| self.sequences.get(chunk.sequence).is_some());
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
