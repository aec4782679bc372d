//! Admission: which waiting sequences begin.
//!
//! Few long prompts are computed at a time, so that each gets a good share of the step. Short ones, of which no more
//! than `min_chunk` tokens are left to compute, do not wait for these: they are begun as long as all of them fit into
//! one step beside `min_chunk` tokens for the long ones.

use std::time::Duration;

use super::sequence::{QueueKey, Sequence, State};
use super::{Mechanisms, Preemption, Scheduler, SequenceId};
use crate::engine::kv::BlockHash;

/// What the prompts under way leave of the next step.
struct PromptLoad {
    /// Tokens that the step has for prompts.
    budget: usize,
    /// Long prompts under way, and how many there may be.
    long: usize,
    most_long: usize,
    /// Tokens left of all prompts, and of the short ones among them.
    tokens: usize,
    short_tokens: usize,
    min_chunk: usize,
}

impl PromptLoad {
    fn is_short(&self, remaining: usize) -> bool {
        remaining <= self.min_chunk
    }

    fn add(&mut self, remaining: usize) {
        // A single token is part of every step.
        if remaining <= 1 {
            return;
        }
        self.tokens += remaining;
        if self.is_short(remaining) {
            self.short_tokens += remaining;
        } else {
            self.long += 1;
        }
    }

    /// Whether one more long prompt may begin.
    fn admits_long(&self) -> bool {
        self.long < self.most_long || self.tokens < self.budget
    }

    /// Whether a prompt of which so much is to be computed may begin.
    fn admits(&self, remaining: usize) -> bool {
        if !self.is_short(remaining) {
            return self.admits_long();
        }
        // Without long ones to fill the step, the last short one may go on in the next.
        let last = if self.long > 0 { self.short_tokens + remaining + self.min_chunk } else { self.short_tokens + 1 };
        self.short_tokens == 0 || last <= self.budget
    }
}

impl Scheduler {
    /// Adds a sequence to the queue.
    pub(super) fn enqueue(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get(id) else { return };
        let negative = self.sequences.other(sequence).map_or(0, |(_, negative)| negative.tokens.len());
        let is_short = sequence.tokens.len() + negative <= self.policy.min_chunk;
        self.waiting.insert((sequence.order, id), is_short);
    }

    /// Begins waiting sequences while there is room for them, where a step has `budget` tokens for prompts.
    pub(super) fn admit(&mut self, now: Duration, budget: usize) {
        if self.waiting.is_empty() {
            return;
        }
        let Self { running, sequences, policy, .. } = &*self;
        let min_chunk = policy.min_chunk.max(1);
        let most_long = match policy.mechanisms.bounded_prompts {
            true => (policy.step_tokens / min_chunk).max(1),
            false => usize::MAX,
        };
        let mut load = PromptLoad { budget, long: 0, most_long, tokens: 0, short_tokens: 0, min_chunk };
        let mut branches = 0;
        for sequence in running.iter().filter_map(|&id| sequences.get(id)) {
            load.add(sequence.remaining());
            // Not of those that end with the step under way.
            branches += usize::from(sequence.remaining() > 0) + sequence.branches.len();
        }
        while budget > 0 && !self.waiting.is_empty() {
            let Some(id) = self.next_that_fits(&load, branches) else { return };
            // A negative prompt first: so the two stay, in the order of the plan.
            let negative = self.sequences.get(id).and_then(|sequence| self.sequences.other(sequence)).map(|(id, _)| id);
            for id in negative.into_iter().chain([id]) {
                let Some(sequence) = self.start(now, id) else { return };
                load.add(sequence.remaining());
                branches += 1 + sequence.branches.len();
            }
        }
    }

    /// Among the first of the queue, by what the cache has of each, the first that there is room for.
    fn next_that_fits(&mut self, load: &PromptLoad, branches: usize) -> Option<SequenceId> {
        let &(_, first) = self.waiting.first()?;
        let head = self.sequences.get(first)?;
        let is_admitted = |sequence: &Sequence, known: usize| load.admits(self.remaining_after(sequence, known));
        // A long prompt that waits for other long ones to end does not wait for room: others may pass it.
        let head_is_next = is_admitted(head, self.known(head));
        // One that was preempted, or passed by too often, has the next turn, whatever that takes.
        let in_order = head_is_next && (head.receipt.preemptions > 0 || head.times_skipped >= self.policy.patience);
        let count = if in_order { 1 } else { self.policy.candidates.max(1) };
        // Where no long one may begin, short ones are looked for after any number of long ones.
        let short = self.waiting.short().take(if in_order || load.admits_long() { 0 } else { count });
        let candidates = self.waiting.iter().take(count).chain(short).filter_map(|&(_, id)| {
            let sequence = self.sequences.get(id)?;
            let known = self.known(sequence);
            is_admitted(sequence, known).then_some((known, id))
        });
        let mut candidates: Vec<(usize, SequenceId)> = candidates.collect();
        if self.policy.mechanisms.affinity {
            // Stable: equals stay in the queue's order.
            candidates.sort_by_key(|(known, _)| std::cmp::Reverse(*known));
        }
        let reserved = self.reserved_blocks();
        let fits = |&&(known, id): &&(usize, SequenceId)| {
            let sequence = self.sequences.get(id);
            sequence.is_some_and(|sequence| self.fits(sequence, known, reserved, branches))
        };
        let &(_, chosen) = candidates.iter().find(fits)?;
        if chosen != first && head_is_next {
            self.sequences.get_mut(first)?.times_skipped += 1;
        }
        Some(chosen)
    }

    /// Tokens that a waiting sequence computes first, of which the cache has about `known` blocks: its negative
    /// prompt's included.
    fn remaining_after(&self, sequence: &Sequence, known: usize) -> usize {
        let block_size = self.blocks.block_size();
        let of = |sequence: &Sequence, known: usize| sequence.tokens.len().saturating_sub(known * block_size);
        let negative = self.sequences.other(sequence).map_or(0, |(_, negative)| of(negative, self.known(negative)));
        of(sequence, known) + negative
    }

    /// Blocks that the running sequences are expected to allocate yet.
    fn reserved_blocks(&self) -> usize {
        let running = self.running.iter().filter_map(|&id| self.sequences.get(id));
        running.map(|sequence| self.expected_blocks(sequence).saturating_sub(sequence.table.blocks().len())).sum()
    }

    /// Blocks that a sequence and its branches are expected to hold.
    fn expected_blocks(&self, sequence: &Sequence) -> usize {
        let now = self.blocks.blocks_for(sequence.tokens.len());
        if !self.policy.mechanisms.hysteresis {
            return now;
        }
        let to_come = sequence.max_tokens - sequence.generated();
        let expected = if sequence.receipt.preemptions > 0 { to_come } else { to_come.min(self.policy.reserve) };
        let later = self.blocks.blocks_for(sequence.tokens.len() + expected.saturating_sub(1));
        // Each branch has a copy of the prompt's last block, and blocks for what it generates.
        later + sequence.branches.len() * (later - now + 1)
    }

    /// Whether a waiting sequence with about `known` prefix hits can begin: there is room, and no running sequence is
    /// computing its next block.
    fn fits(&self, sequence: &Sequence, known: usize, reserved: usize, branches: usize) -> bool {
        let Mechanisms { whole_prompt, count_hits, share_in_flight, .. } = self.policy.mechanisms;
        let available = self.blocks.available().saturating_sub(if whole_prompt { reserved } else { 0 });
        let needed = |sequence: &Sequence, hits: usize| {
            let first = self.blocks.blocks_for(self.first_tokens(sequence, hits));
            // Alone, it has the whole cache to grow into.
            let all = if self.running.is_empty() || !whole_prompt {
                first
            } else {
                first.max(self.expected_blocks(sequence))
            };
            if count_hits { all.saturating_sub(hits) } else { all }
        };
        let negative = self.sequences.other(sequence).map(|(_, negative)| negative);
        let of_negative = negative.map_or(0, |negative| needed(negative, self.known(negative)));
        let slots = 1 + sequence.branches.len() + usize::from(negative.is_some());
        if branches + slots > self.policy.max_running || needed(sequence, known) + of_negative > available {
            return false;
        }
        let block_size = self.blocks.block_size();
        let hashes = self.reusable(sequence);
        let computing = |next| {
            let mut running = self.running.iter().filter_map(|&id| self.sequences.get(id));
            // It is unknown when a held one goes on.
            running.any(|other| {
                !other.is_held && {
                    let end = other.computed / block_size + usize::from(other.remaining() > 1);
                    let hashes = other.hashes.get(other.committed / block_size..end.min(other.hashes.len()));
                    hashes.is_some_and(|hashes| hashes.contains(next))
                }
            })
        };
        if share_in_flight && hashes.get(known).is_some_and(computing) {
            return false;
        }
        // Idle blocks that it reuses are not available any more.
        let taken = |sequence: &Sequence| {
            let (hits, idle) = self.blocks.peek(self.reusable(sequence), self.fetch_of(sequence));
            needed(sequence, hits) + if count_hits { idle } else { 0 }
        };
        taken(sequence) + negative.map_or(0, taken) <= available
    }

    /// The number of prefix hits of a sequence, estimated in O(log blocks).
    fn known(&self, sequence: &Sequence) -> usize {
        if !sequence.scored {
            return self.blocks.known(sequence.reusable(self.blocks.block_size()));
        }
        sequence.hashes.partition_point(|&hash| self.blocks.scores(hash).is_some()).saturating_sub(1)
    }

    /// Hashes of the blocks that a sequence may reuse. For one that is scored: blocks with cached scores, less the last
    /// of them, which has the score of the first token that is computed.
    fn reusable<'a>(&self, sequence: &'a Sequence) -> &'a [BlockHash] {
        if !sequence.scored {
            return sequence.reusable(self.blocks.block_size());
        }
        let hashes: &[BlockHash] = if sequence.reuse { &sequence.hashes } else { &[] };
        let scored = hashes.iter().take_while(|&&hash| self.blocks.scores(hash).is_some()).count();
        &hashes[..scored.saturating_sub(1)]
    }

    /// The cost of fetching a block from host memory, in tokens: see [`Scheduler::with_host`].
    fn fetch_of(&self, sequence: &Sequence) -> usize {
        match self.policy.preemption {
            Preemption::Recompute if sequence.receipt.preemptions > 0 => usize::MAX,
            Preemption::Swap if sequence.receipt.preemptions > 0 => 0,
            _ => self.fetch,
        }
    }

    /// Cached scores of the tokens from the second up to the first one after `blocks` blocks.
    fn scores_before(&self, sequence: &Sequence, blocks: usize) -> Vec<f32> {
        if blocks == 0 {
            return Vec::new();
        }
        let scores = sequence.hashes[..=blocks].iter().filter_map(|&hash| self.blocks.scores(hash)).flatten();
        scores.skip(1).take(blocks * self.blocks.block_size()).copied().collect()
    }

    /// Tokens that a sequence with `hits` prefix hits needs room for to begin.
    fn first_tokens(&self, sequence: &Sequence, hits: usize) -> usize {
        let tokens = sequence.tokens.len();
        match self.policy.mechanisms.whole_prompt {
            true => tokens,
            false => tokens.min(hits * self.blocks.block_size() + self.policy.step_tokens),
        }
    }

    /// Starts a waiting sequence, or its negative prompt: reuses its prefix hits and allocates the other blocks.
    fn start(&mut self, now: Duration, id: SequenceId) -> Option<&Sequence> {
        let block_size = self.blocks.block_size();
        let sequence = self.sequences.get(id)?;
        let hashes = self.reusable(sequence).to_vec();
        let known_scores = if sequence.scored { self.scores_before(sequence, hashes.len()) } else { Vec::new() };
        let fetch = self.fetch_of(sequence);
        let hits = self.blocks.table_of(&hashes, fetch);
        let tokens = self.first_tokens(self.sequences.get(id)?, hits.blocks().len());
        let sequence = self.sequences.get_mut(id)?;
        let key: QueueKey = (sequence.order, id);
        self.waiting.remove(&key);
        sequence.computed = hits.blocks().len() * block_size;
        sequence.committed = sequence.computed;
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
        self.add_running(id);
        self.sequences.get(id)
    }

    /// Adds a sequence to the running ones: those that were preempted first, then by priority, then in order of
    /// admission.
    pub(super) fn add_running(&mut self, id: SequenceId) {
        let rank = |id: SequenceId| {
            let sequence = self.sequences.get(id);
            sequence.map(|s| std::cmp::Reverse((s.receipt.preemptions > 0, s.priority)))
        };
        let own = rank(id);
        let at = self.running.partition_point(|&other| rank(other) <= own);
        self.running.insert(at, id);
    }
}
