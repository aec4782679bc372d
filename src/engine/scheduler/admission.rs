//! Who is begun next.

use std::time::Duration;

use super::sequence::{QueueKey, Sequence, State};
use super::{Mechanisms, Preemption, Scheduler, SequenceId};
use crate::engine::kv::BlockHash;

impl Scheduler {
    /// Begins waiting sequences while there is room for them, where a step has `left` tokens for prompts.
    pub(super) fn admit(&mut self, now: Duration, left: usize) {
        if self.waiting.is_empty() {
            return;
        }
        let Self { running, sequences, policy, .. } = &*self;
        let (mut prompts, mut tokens, mut branches) = (0, 0, 0);
        for sequence in running.iter().filter_map(|&id| sequences.get(id)) {
            if sequence.remaining() > 1 {
                prompts += 1;
                tokens += sequence.remaining();
            }
            // Not of those that end with the step under way.
            branches += usize::from(sequence.remaining() > 0) + sequence.branches.len();
        }
        let at_once = match policy.mechanisms.bounded_prompts {
            true => (policy.step_tokens / policy.min_chunk.max(1)).max(1),
            false => usize::MAX,
        };
        while left > 0 && (prompts < at_once || tokens < left) && !self.waiting.is_empty() {
            let Some(id) = self.next_that_fits(branches) else { return };
            // A contrast first: so the two stay, in the order of the plan.
            let contrast = self.sequences.get(id).and_then(|sequence| self.sequences.other(sequence)).map(|(id, _)| id);
            for id in contrast.into_iter().chain([id]) {
                let Some(sequence) = self.start(now, id) else { return };
                prompts += 1;
                tokens += sequence.remaining();
                branches += 1 + sequence.branches.len();
            }
        }
    }

    /// Among the first of the queue, by what the cache has of each, the first that there is room for.
    fn next_that_fits(&mut self, branches: usize) -> Option<SequenceId> {
        let &(_, first) = self.waiting.first()?;
        let head = self.sequences.get(first)?;
        // One that was preempted, or passed by too often, has the next turn, whatever that takes.
        let in_order = head.receipt.preemptions > 0 || head.passed_by >= self.policy.patience;
        let count = if in_order { 1 } else { self.policy.candidates.max(1) };
        let candidates = self.waiting.iter().take(count).filter_map(|&(_, id)| {
            let sequence = self.sequences.get(id)?;
            Some((self.known(sequence), id))
        });
        let mut candidates: Vec<(usize, SequenceId)> = candidates.collect();
        if self.policy.mechanisms.affinity {
            // Stable: equals stay in the queue's order.
            candidates.sort_by_key(|(known, _)| std::cmp::Reverse(*known));
        }
        let reserved = self.reserved();
        let fits = |&&(known, id): &&(usize, SequenceId)| {
            let sequence = self.sequences.get(id);
            sequence.is_some_and(|sequence| self.fits(sequence, known, reserved, branches))
        };
        let &(_, chosen) = candidates.iter().find(fits)?;
        if chosen != first {
            self.sequences.get_mut(first)?.passed_by += 1;
        }
        Some(chosen)
    }

    /// Blocks that running sequences are expected to take yet.
    fn reserved(&self) -> usize {
        let running = self.running.iter().filter_map(|&id| self.sequences.get(id));
        running.map(|sequence| self.reserve(sequence).saturating_sub(sequence.table.blocks().len())).sum()
    }

    /// Blocks that a sequence is expected to hold, its branches' included.
    fn reserve(&self, sequence: &Sequence) -> usize {
        let now = self.blocks.blocks_for(sequence.tokens.len());
        if !self.policy.mechanisms.hysteresis {
            return now;
        }
        let to_come = sequence.max_tokens - sequence.generated();
        let expected = if sequence.receipt.preemptions > 0 { to_come } else { to_come.min(self.policy.reserve) };
        let later = self.blocks.blocks_for(sequence.tokens.len() + expected.saturating_sub(1));
        // Each branch gets a copy of the prompt's last block, and what it generates.
        later + sequence.branches.len() * (later - now + 1)
    }

    /// Whether a waiting sequence can begin, of which the cache has about `known` blocks: there is room, and what it
    /// would compute first nobody computes already.
    fn fits(&self, sequence: &Sequence, known: usize, reserved: usize, branches: usize) -> bool {
        let Mechanisms { whole_prompt, count_hits, share_in_flight, .. } = self.policy.mechanisms;
        let available = self.blocks.available().saturating_sub(if whole_prompt { reserved } else { 0 });
        let needed = |sequence: &Sequence, hits: usize| {
            let first = self.blocks.blocks_for(self.first_tokens(sequence, hits));
            // Alone, it has all there is, and may grow into it.
            let all = if self.running.is_empty() || !whole_prompt { first } else { first.max(self.reserve(sequence)) };
            if count_hits { all.saturating_sub(hits) } else { all }
        };
        let contrast = self.sequences.other(sequence).map(|(_, contrast)| contrast);
        let of_contrast = contrast.map_or(0, |contrast| needed(contrast, self.known(contrast)));
        let slots = 1 + sequence.branches.len() + usize::from(contrast.is_some());
        if branches + slots > self.policy.max_running || needed(sequence, known) + of_contrast > available {
            return false;
        }
        let block_size = self.blocks.block_size();
        let names = self.reusable(sequence);
        let computing = |next| {
            let mut running = self.running.iter().filter_map(|&id| self.sequences.get(id));
            running.any(|other| {
                let end = other.computed / block_size + usize::from(other.remaining() > 1);
                let names = other.names.get(other.settled / block_size..end.min(other.names.len()));
                names.is_some_and(|names| names.contains(next))
            })
        };
        if share_in_flight && names.get(known).is_some_and(computing) {
            return false;
        }
        // Idle blocks that it takes are available no more.
        let taken = |sequence: &Sequence| {
            let (hits, idle) = self.blocks.peek(self.reusable(sequence), self.fetch_of(sequence));
            needed(sequence, hits) + if count_hits { idle } else { 0 }
        };
        taken(sequence) + contrast.map_or(0, taken) <= available
    }

    /// About how many blocks the cache has of a sequence: O(log blocks).
    fn known(&self, sequence: &Sequence) -> usize {
        if !sequence.scored {
            return self.blocks.known(sequence.reusable(self.blocks.block_size()));
        }
        sequence.names.partition_point(|&name| self.blocks.scores(name).is_some()).saturating_sub(1)
    }

    /// Names of the blocks that a sequence may take from the cache. Of one that is scored, blocks of known scores, of which
    /// the last is computed once more: the score of the first token that is computed lies in it.
    fn reusable<'a>(&self, sequence: &'a Sequence) -> &'a [BlockHash] {
        if !sequence.scored {
            return sequence.reusable(self.blocks.block_size());
        }
        let names: &[BlockHash] = if sequence.reuse { &sequence.names } else { &[] };
        let scored = names.iter().take_while(|&&name| self.blocks.scores(name).is_some()).count();
        &names[..scored.saturating_sub(1)]
    }

    /// Tokens that a block in the host's memory is taken to cost.
    fn fetch_of(&self, sequence: &Sequence) -> usize {
        match self.policy.preemption {
            Preemption::Recompute if sequence.receipt.preemptions > 0 => usize::MAX,
            Preemption::Swap if sequence.receipt.preemptions > 0 => 0,
            _ => self.fetch,
        }
    }

    /// Scores of the tokens after the first, up to that of the first one behind so many blocks.
    fn scores_before(&self, sequence: &Sequence, blocks: usize) -> Vec<f32> {
        if blocks == 0 {
            return Vec::new();
        }
        let scores = sequence.names[..=blocks].iter().filter_map(|&name| self.blocks.scores(name)).flatten();
        scores.skip(1).take(blocks * self.blocks.block_size()).copied().collect()
    }

    /// Tokens that a sequence needs room for to begin, of which the cache has `hits` blocks.
    fn first_tokens(&self, sequence: &Sequence, hits: usize) -> usize {
        let tokens = sequence.tokens.len();
        match self.policy.mechanisms.whole_prompt {
            true => tokens,
            false => tokens.min(hits * self.blocks.block_size() + self.policy.step_tokens),
        }
    }

    /// Gives a waiting sequence, or the contrast of one, what the cache has of it, and blocks for what it computes.
    fn start(&mut self, now: Duration, id: SequenceId) -> Option<&Sequence> {
        let block_size = self.blocks.block_size();
        let sequence = self.sequences.get(id)?;
        let names = self.reusable(sequence).to_vec();
        let known_scores = if sequence.scored { self.scores_before(sequence, names.len()) } else { Vec::new() };
        let fetch = self.fetch_of(sequence);
        let hits = self.blocks.table_of(&names, fetch);
        let tokens = self.first_tokens(self.sequences.get(id)?, hits.blocks().len());
        let sequence = self.sequences.get_mut(id)?;
        let key: QueueKey = (sequence.order, id);
        self.waiting.remove(&key);
        sequence.computed = hits.blocks().len() * block_size;
        sequence.settled = sequence.computed;
        sequence.table = hits;
        sequence.known_scores = known_scores;
        self.blocks.extend(&mut sequence.table, sequence.computed, tokens, &mut self.plan.copies);
        sequence.state = State::Running;
        let again = sequence.lost.saturating_sub(sequence.computed);
        sequence.receipt.recomputed_tokens += again;
        self.stats.recomputed_tokens += again as u64;
        if sequence.admitted.is_none() {
            sequence.admitted = Some(now);
            sequence.receipt.queue = now.saturating_sub(sequence.submitted);
            sequence.receipt.cached_tokens = sequence.computed;
            self.stats.cached_tokens += sequence.computed as u64;
        }
        self.enlist(id);
        self.sequences.get(id)
    }

    /// Takes a sequence among the running: those that were preempted once in front, then by priority, then in order of
    /// their coming.
    pub(super) fn enlist(&mut self, id: SequenceId) {
        let rank = |id: SequenceId| {
            let sequence = self.sequences.get(id);
            sequence.map(|s| std::cmp::Reverse((s.receipt.preemptions > 0, s.priority)))
        };
        let own = rank(id);
        let at = self.running.partition_point(|&other| rank(other) <= own);
        self.running.insert(at, id);
    }
}
