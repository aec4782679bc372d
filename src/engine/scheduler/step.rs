//! Plans a step: decodes first, then the prompts share what is left of the token budget.

use std::collections::HashSet;
use std::time::Duration;

use super::sequence::{Pair, Retry, Sequence, State};
use super::{Chunk, End, Scheduler, SequenceId};

impl Scheduler {
    /// Plans the next step. The plan has no chunks where there is nothing to do or, while a step is under way, where
    /// what to do depends on its results.
    pub fn schedule(&mut self, now: Duration) {
        self.plans += 1;
        self.plan.number = self.plans;
        self.plan_chunks(now);
        self.plan.moves.clone_from(self.blocks.moves());
    }

    fn plan_chunks(&mut self, now: Duration) {
        self.plan.chunks.clear();
        while let Some(&(_, id)) = self.deadlines.first().filter(|(deadline, _)| *deadline <= now) {
            self.end(now, id, End::Expired);
        }
        // Copies of an earlier plan that was not run.
        self.blocks.drop_unused_copies(&mut self.plan.copies);
        let retried = self.running.iter().copied().find(|&id| self.is_retried(id));
        if self.under_way.is_some() && retried.is_some() || !self.allocate_all(now) {
            return;
        }
        let of_one = |id: &&SequenceId| self.sequences.get(**id).is_some_and(|sequence| sequence.remaining() == 1);
        let decodes = self.running.iter().filter(of_one).count();
        self.admit(now, self.policy.step_tokens.saturating_sub(decodes));
        if let Some(id) = self.running.iter().copied().find(|&id| self.is_retried(id)) {
            self.plan_alone(id);
            return;
        }
        // Decodes, and prompts with a single token left.
        for &id in &self.running {
            if let Some(sequence) = self.sequences.get(id).filter(|s| self.generates(s) && !self.is_held(id)) {
                let (start, sample) = (sequence.computed, sequence.max_tokens > 0);
                self.plan.chunks.push(Chunk { sequence: id, start, len: 1, sample });
            }
        }
        self.share(self.policy.step_tokens.saturating_sub(self.plan.chunks.len()));
    }

    fn is_retried(&self, id: SequenceId) -> bool {
        self.sequences.get(id).is_some_and(|sequence| sequence.retry == Retry::Due) && !self.is_held(id)
    }

    /// Of a pair, both are held where one is.
    pub(super) fn is_held(&self, id: SequenceId) -> bool {
        self.sequences.get(self.sequences.lead(id)).is_some_and(|sequence| sequence.is_held)
    }

    /// Whether the next token of a sequence can be sampled after one more token; of a pair, both must be that far.
    fn generates(&self, sequence: &Sequence) -> bool {
        let other = self.sequences.other(sequence);
        sequence.remaining() == 1 && other.is_none_or(|(_, other)| other.remaining() == 1)
    }

    /// Plans a step for one sequence and its negative prompt.
    fn plan_alone(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get(id) else { return };
        let negative = self.sequences.other(sequence).map(|(id, negative)| (negative.remaining(), id));
        let all = negative.into_iter().chain([(sequence.remaining(), id)]).collect();
        self.plan_shares(all, self.policy.step_tokens, true);
    }

    /// Allocates the blocks that the running sequences may need for the step, those in front first. Where there are too
    /// few, the last sequence is preempted; but while a step is under way, which may free some, it returns false
    /// instead.
    fn allocate_all(&mut self, now: Duration) -> bool {
        let mut at = 0;
        while let Some(&id) = self.running.get(at) {
            if self.allocate(id) {
                at += 1;
            } else if self.under_way.is_some() {
                return false;
            } else {
                self.preempt_last(now);
            }
        }
        true
    }

    /// Allocates blocks for the tokens that one step may add to a sequence. False where there are too few.
    fn allocate(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.get_mut(id) else { return true };
        let tokens = sequence.computed + sequence.remaining().min(self.policy.step_tokens);
        self.blocks.extend(&mut sequence.table, sequence.computed, tokens, &mut self.plan.copies)
    }

    /// Preempts the last running sequence.
    fn preempt_last(&mut self, now: Duration) {
        let Some(id) = self.running.pop() else { return };
        self.requeue(id);
        let lead = self.sequences.lead(id);
        if let Some(sequence) = self.sequences.get_mut(lead) {
            sequence.preempted.get_or_insert(now);
        }
        self.stats.preemptions += 1;
    }

    /// Releases the blocks of a running sequence and puts it back into the queue at its old place; both of a pair.
    pub(super) fn requeue(&mut self, id: SequenceId) {
        let lead = self.sequences.lead(id);
        for id in self.sequences.both(id) {
            let Some(sequence) = self.sequences.get_mut(id) else { continue };
            self.blocks.release(&mut sequence.table);
            sequence.give_up_token();
            sequence.lost = sequence.committed;
            (sequence.computed, sequence.committed) = (0, 0);
            sequence.receipt.preemptions += 1;
            if id == lead {
                sequence.state = State::Waiting;
                self.enqueue(id);
            } else {
                sequence.state = State::Parked { leader: lead };
            }
            self.running.retain(|&other| other != id);
        }
    }

    /// Shares `left` tokens among the prompts under way.
    fn share(&mut self, mut left: usize) {
        let prompt = |id: &SequenceId| {
            let sequence = self.sequences.get(*id).filter(|sequence| !self.generates(sequence))?;
            Some((sequence.remaining(), *id)).filter(|(remaining, id)| *remaining > 0 && !self.is_held(*id))
        };
        let prompts: Vec<_> = self.running.iter().filter_map(prompt).collect();
        let mechanisms = self.policy.mechanisms;
        if !mechanisms.mixed_steps && !prompts.is_empty() {
            self.plan.chunks.clear();
            left = self.policy.step_tokens;
        }
        self.plan_shares(prompts, left, mechanisms.chunks);
    }

    /// Plans chunks for sequences, each given with its remaining tokens. Short prompts go first, with all of their
    /// tokens, as long as `min_chunk` of the `left` tokens remain for long ones. These get equal parts, where what one
    /// does not need goes to the others. Without `cut`, each gets all of its tokens.
    fn plan_shares(&mut self, mut prompts: Vec<(usize, SequenceId)>, mut left: usize, cut: bool) {
        prompts.sort_by_key(|(remaining, _)| *remaining);
        let first = self.plan.chunks.len();
        let min_chunk = self.policy.min_chunk;
        let mut long = prompts.iter().filter(|(remaining, _)| *remaining > min_chunk).count();
        // Where decodes leave little, half of it.
        let for_long = if long > 0 { min_chunk.min(left / 2) } else { 0 };
        for (remaining, id) in prompts {
            let len = if !cut {
                remaining
            } else if remaining <= min_chunk {
                remaining.min(left.saturating_sub(for_long))
            } else {
                long -= 1;
                remaining.min(left / (long + 1))
            };
            let Some(sequence) = self.sequences.get(id).filter(|_| len > 0) else { continue };
            left = left.saturating_sub(len);
            let sample = len == remaining && sequence.max_tokens > 0;
            self.plan.chunks.push(Chunk { sequence: id, start: sequence.computed, len, sample });
        }
        self.align_pairs(first);
    }

    /// Aligns the pairs among the chunks from `first` on: one that would be done before the other leaves its last token
    /// for a later step, in which both are sampled. Negative prompts go in front.
    fn align_pairs(&mut self, first: usize) {
        let chunks = &self.plan.chunks[first..];
        let other = |chunk: &Chunk| self.sequences.get(chunk.sequence)?.pair.map(Pair::other);
        if !chunks.iter().any(|chunk| other(chunk).is_some()) {
            return;
        }
        let sampled: HashSet<SequenceId> = chunks.iter().filter(|c| c.sample).map(|c| c.sequence).collect();
        let in_step = |chunk: &Chunk| {
            let early = chunk.sample && other(chunk).is_some_and(|other| !sampled.contains(&other));
            if early { Chunk { len: chunk.len - 1, sample: false, ..*chunk } } else { *chunk }
        };
        let mut chunks: Vec<Chunk> = chunks.iter().map(in_step).filter(|chunk| chunk.len > 0).collect();
        chunks.sort_by_key(|chunk| self.guides(chunk.sequence).is_none());
        self.plan.chunks.truncate(first);
        self.plan.chunks.extend(chunks);
    }
}
