//! The next step.

use std::time::Duration;

use super::sequence::{State, Trial};
use super::{Chunk, End, Scheduler, SequenceId};

impl Scheduler {
    /// Plans the next step. A plan without chunks: there is nothing to do.
    pub fn schedule(&mut self, now: Duration) {
        self.blocks.settle();
        self.plan_chunks(now);
        self.plan.moves.clone_from(self.blocks.moves());
        self.stats.fetched_blocks += self.plan.moves.from_host.len() as u64;
    }

    fn plan_chunks(&mut self, now: Duration) {
        self.plan.copies.clear();
        self.plan.chunks.clear();
        while let Some(&(_, id)) = self.deadlines.first().filter(|(deadline, _)| *deadline <= now) {
            self.end(now, id, End::Expired);
        }
        self.secure_all();
        let of_one = |id: &&SequenceId| self.sequences.get(**id).is_some_and(|sequence| sequence.remaining() == 1);
        let decodes = self.running.iter().filter(of_one).count();
        self.admit(now, self.policy.step_tokens.saturating_sub(decodes));
        let on_trial = |id: &SequenceId| self.sequences.get(*id).is_some_and(|sequence| sequence.trial == Trial::Due);
        if let Some(id) = self.running.iter().copied().find(on_trial) {
            self.plan_alone(id);
            return;
        }
        // Those that generate, and prompts of which no more is left.
        for &id in &self.running {
            if let Some(sequence) = self.sequences.get(id).filter(|s| s.remaining() == 1) {
                let (start, sample) = (sequence.computed, sequence.max_tokens > 0);
                self.plan.chunks.push(Chunk { sequence: id, start, len: 1, sample });
            }
        }
        self.share(self.policy.step_tokens.saturating_sub(self.plan.chunks.len()));
        if !self.plan.chunks.is_empty() {
            self.stats.steps += 1;
        }
    }

    /// A step of one sequence.
    fn plan_alone(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get(id) else { return };
        let len = sequence.remaining().min(self.policy.step_tokens);
        let sample = len == sequence.remaining() && sequence.max_tokens > 0;
        self.plan.chunks.push(Chunk { sequence: id, start: sequence.computed, len, sample });
        self.stats.steps += 1;
    }

    /// Sees to it that every running sequence has the blocks for its part of the step, those in front first; where there
    /// are none, the last gives its own up.
    fn secure_all(&mut self) {
        let mut at = 0;
        while let Some(&id) = self.running.get(at) {
            if self.secure(id) {
                at += 1;
            } else {
                self.preempt_last();
            }
        }
    }

    /// Blocks for what one step may add to a sequence, of its own. False where they are short.
    fn secure(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.get_mut(id) else { return true };
        let tokens = sequence.tokens.len().min(sequence.computed + self.policy.step_tokens);
        self.blocks.extend(&mut sequence.table, sequence.computed, tokens, &mut self.plan.copies)
    }

    /// The last running sequence gives its blocks up and waits, where it arrived, to be computed again.
    fn preempt_last(&mut self) {
        let Some(id) = self.running.pop() else { return };
        self.put_back(id);
        self.stats.preemptions += 1;
    }

    /// A sequence that was among the running gives its blocks up and waits.
    pub(super) fn put_back(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(id) else { return };
        self.blocks.release(&mut sequence.table);
        sequence.lost = sequence.computed;
        sequence.computed = 0;
        sequence.state = State::Waiting;
        sequence.receipt.preemptions += 1;
        self.waiting.insert((sequence.order, id));
    }

    /// Shares `left` tokens among the prompts under way: equal parts, and what a short one does not need goes to the
    /// others.
    fn share(&mut self, mut left: usize) {
        let remaining = |id: &SequenceId| self.sequences.get(*id).map(|s| (s.remaining(), *id));
        let mut prompts: Vec<_> = self.running.iter().filter_map(remaining).filter(|(n, _)| *n > 1).collect();
        prompts.sort_by_key(|(remaining, _)| *remaining);
        let mechanisms = self.policy.mechanisms;
        if !mechanisms.mixed_steps && !prompts.is_empty() {
            self.plan.chunks.clear();
            left = self.policy.step_tokens;
        }
        let count = prompts.len();
        for (i, (remaining, id)) in prompts.into_iter().enumerate() {
            let len = if mechanisms.chunks { remaining.min(left / (count - i)) } else { remaining };
            let Some(sequence) = self.sequences.get(id).filter(|_| len > 0) else { continue };
            left = left.saturating_sub(len);
            let sample = len == remaining && sequence.max_tokens > 0;
            self.plan.chunks.push(Chunk { sequence: id, start: sequence.computed, len, sample });
        }
    }
}
