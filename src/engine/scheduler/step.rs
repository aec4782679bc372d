//! The next step.

use std::collections::HashSet;
use std::time::Duration;

use super::sequence::{Pair, Sequence, State, Trial};
use super::{Chunk, End, Scheduler, SequenceId};

impl Scheduler {
    /// Plans the next step. A plan without chunks: there is nothing to do; or, while a step is under way, what there is to
    /// do depends on what comes of it.
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
        // Of a plan that came to nothing.
        self.blocks.forgo_copies(&mut self.plan.copies);
        let on_trial = self.running.iter().copied().find(|&id| self.is_on_trial(id));
        if self.under_way.is_some() && on_trial.is_some() || !self.secure_all(now) {
            return;
        }
        let of_one = |id: &&SequenceId| self.sequences.get(**id).is_some_and(|sequence| sequence.remaining() == 1);
        let decodes = self.running.iter().filter(of_one).count();
        self.admit(now, self.policy.step_tokens.saturating_sub(decodes));
        if let Some(id) = self.running.iter().copied().find(|&id| self.is_on_trial(id)) {
            self.plan_alone(id);
            return;
        }
        // Those that generate, and prompts of which no more is left.
        for &id in &self.running {
            if let Some(sequence) = self.sequences.get(id).filter(|s| self.generates(s)) {
                let (start, sample) = (sequence.computed, sequence.max_tokens > 0);
                self.plan.chunks.push(Chunk { sequence: id, start, len: 1, sample });
            }
        }
        self.share(self.policy.step_tokens.saturating_sub(self.plan.chunks.len()));
    }

    fn is_on_trial(&self, id: SequenceId) -> bool {
        self.sequences.get(id).is_some_and(|sequence| sequence.trial == Trial::Due)
    }

    /// Whether the next token of a sequence can be chosen in a step that gives it one: with a contrast, that of both.
    fn generates(&self, sequence: &Sequence) -> bool {
        let other = self.sequences.other(sequence);
        sequence.remaining() == 1 && other.is_none_or(|(_, other)| other.remaining() == 1)
    }

    /// A step of one sequence, and of its contrast.
    fn plan_alone(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get(id) else { return };
        let contrast = self.sequences.other(sequence).map(|(id, contrast)| (contrast.remaining(), id));
        let all = contrast.into_iter().chain([(sequence.remaining(), id)]).collect();
        self.plan_shares(all, self.policy.step_tokens, true);
    }

    /// Sees to it that every running sequence has the blocks for its part of the step, those in front first; where there
    /// are none, the last gives its own up; unless a step is under way, which may set some free. False then.
    fn secure_all(&mut self, now: Duration) -> bool {
        let mut at = 0;
        while let Some(&id) = self.running.get(at) {
            if self.secure(id) {
                at += 1;
            } else if self.under_way.is_some() {
                return false;
            } else {
                self.preempt_last(now);
            }
        }
        true
    }

    /// Blocks for what one step may add to a sequence, of its own. False where they are short.
    fn secure(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.get_mut(id) else { return true };
        let tokens = sequence.computed + sequence.remaining().min(self.policy.step_tokens);
        self.blocks.extend(&mut sequence.table, sequence.computed, tokens, &mut self.plan.copies)
    }

    /// The last running sequence gives its blocks up and waits, where it arrived, to be computed again.
    fn preempt_last(&mut self, now: Duration) {
        let Some(id) = self.running.pop() else { return };
        self.put_back(id);
        let lead = self.sequences.lead(id);
        if let Some(sequence) = self.sequences.get_mut(lead) {
            sequence.preempted.get_or_insert(now);
        }
        self.stats.preemptions += 1;
    }

    /// A sequence that was among the running gives its blocks up and waits, and the other one of a pair with it.
    pub(super) fn put_back(&mut self, id: SequenceId) {
        let lead = self.sequences.lead(id);
        for id in self.sequences.both(id) {
            let Some(sequence) = self.sequences.get_mut(id) else { continue };
            self.blocks.release(&mut sequence.table);
            sequence.give_up_token();
            sequence.lost = sequence.settled;
            (sequence.computed, sequence.settled) = (0, 0);
            sequence.receipt.preemptions += 1;
            if id == lead {
                sequence.state = State::Waiting;
                self.waiting.insert((sequence.order, id));
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
            Some((sequence.remaining(), *id)).filter(|(remaining, _)| *remaining > 0)
        };
        let prompts: Vec<_> = self.running.iter().filter_map(prompt).collect();
        let mechanisms = self.policy.mechanisms;
        if !mechanisms.mixed_steps && !prompts.is_empty() {
            self.plan.chunks.clear();
            left = self.policy.step_tokens;
        }
        self.plan_shares(prompts, left, mechanisms.chunks);
    }

    /// Chunks of sequences, each with what remains of it: equal parts of `left` tokens, and what a short one does not need
    /// goes to the others. Without `cut`, all that remains of each.
    fn plan_shares(&mut self, mut prompts: Vec<(usize, SequenceId)>, mut left: usize, cut: bool) {
        prompts.sort_by_key(|(remaining, _)| *remaining);
        let (first, count) = (self.plan.chunks.len(), prompts.len());
        for (i, (remaining, id)) in prompts.into_iter().enumerate() {
            let len = if cut { remaining.min(left / (count - i)) } else { remaining };
            let Some(sequence) = self.sequences.get(id).filter(|_| len > 0) else { continue };
            left = left.saturating_sub(len);
            let sample = len == remaining && sequence.max_tokens > 0;
            self.plan.chunks.push(Chunk { sequence: id, start: sequence.computed, len, sample });
        }
        self.keep_in_step(first);
    }

    /// Of a pair among the chunks from `first` on, one that would be done before the other leaves its last token for the
    /// step in which both are; and contrasts go in front.
    fn keep_in_step(&mut self, first: usize) {
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
        chunks.sort_by_key(|chunk| self.contrast_of(chunk.sequence).is_none());
        self.plan.chunks.truncate(first);
        self.plan.chunks.extend(chunks);
    }
}
