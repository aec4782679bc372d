//! What runs in the next step: a state machine without a clock and without a device.
//!
//! Whoever drives it (the engine, or a simulation under a virtual clock) says what happened and what time it is:
//! [`submit`](Scheduler::submit) and [`cancel`](Scheduler::cancel) at any time, then [`schedule`](Scheduler::schedule),
//! the [`plan`](Scheduler::plan) is carried out, [`complete`](Scheduler::complete) with the tokens that came of it, or
//! [`fail`](Scheduler::fail). Sequences that ended are in [`take_ended`](Scheduler::take_ended), each exactly once.
//! Between [`begin`](Scheduler::begin) and one of these two a step is under way, and the next can be scheduled already:
//! as if every token were known and ended nothing. What ends all the same is taken out of the plan.
//!
//! A step is one flat budget of tokens. Every running sequence that generates has one of them; what is left is shared
//! by the prompts under way, in equal parts. A prompt is begun when the whole of it has room in the cache, what the
//! cache already holds not counted, beside what the running ones are expected to grow by. Where they grow by more, the
//! last to come gives up its blocks and is computed again later: at most once, as it then waits for all that it may
//! still need. Where the host has room, what of it is known by name waits there, and is fetched instead where that is the
//! faster of the two, or as the policy says.
//!
//! After a step that failed for what one of its sequences is, each of them runs alone until the step that failed is
//! passed: only the one to blame ends.

mod admission;
mod outcome;
mod policy;
mod sequence;
mod step;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::engine::kv::{BlockHasher, Blocks, Counts};
use crate::ops::PageMoves;
use outcome::UnderWay;
pub use policy::{Mechanisms, Policy, Preemption};
use sequence::{Pair, QueueKey, Sequence, Sequences, State};
pub use sequence::{Receipt, SequenceId};

/// The size of the KV cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheSize {
    pub blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Positions that any layer sees at most; `None` where one sees all.
    pub window: Option<usize>,
    /// Length of a sequence, in tokens, at which attention costs a token as much as the rest of the model.
    pub balance: usize,
}

/// A request, as far as scheduling goes.
#[derive(Clone, Debug)]
pub struct Submission {
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; with 0 the prompt is computed, and that is all.
    pub max_tokens: usize,
    /// Continuations of the one prompt.
    pub branches: usize,
    /// A request with one has no other branches, and is no scored one.
    pub contrast: Option<Contrast>,
    /// Higher ones go first.
    pub priority: i32,
    /// When it ends without being done.
    pub deadline: Option<Duration>,
    /// Blocks are shared among equal salts only.
    pub salt: u64,
    /// Whether the prompt's start may be taken from the cache.
    pub reuse: bool,
    /// Whether the log-probability of each token of the prompt is wanted: then no more is taken from the cache than it has
    /// these of, see [`known_scores`](Scheduler::known_scores).
    pub scored: bool,
}

/// Another prompt, which is continued by the same tokens: the token after both is chosen when both are computed, in one
/// step.
#[derive(Clone, Debug)]
pub struct Contrast {
    pub prompt: Vec<u32>,
    /// As [`Submission::salt`].
    pub salt: u64,
}

impl Submission {
    /// One continuation, which may begin with what the cache has; nothing else is asked for.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            branches: 1,
            contrast: None,
            priority: 0,
            deadline: None,
            salt: 0,
            reuse: true,
            scored: false,
        }
    }
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no prompt, no branch, or nothing in the contrast.
    Empty,
    /// Prompt and output are more than the cache holds.
    TooLarge {
        tokens: usize,
        capacity: usize,
    },
    TooManyBranches {
        branches: usize,
        limit: usize,
    },
    QueueFull {
        waiting: usize,
    },
}

/// A sequence's share of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub sequence: SequenceId,
    /// First of the sequence's tokens in the step.
    pub start: usize,
    pub len: usize,
    /// Whether the token behind is wanted: for the sequence and each of its [`branches`](Scheduler::branches).
    pub sample: bool,
}

/// One step.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Counts the plans: of one number, chunks may only become fewer.
    pub number: u64,
    /// Blocks that go to the host's memory, and that come from there, before all else.
    pub moves: PageMoves,
    /// Blocks to be copied before it, `[from, to]`. Moves and copies are made in the order of steps: a block that one step
    /// reads or writes may be another's in the next.
    pub copies: Vec<[u32; 2]>,
    /// Sequences that generate, then prompts; a contrast before the sequence that it belongs to.
    pub chunks: Vec<Chunk>,
}

impl Plan {
    pub fn tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len).sum()
    }
}

/// A token that a step gave.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub sequence: SequenceId,
    pub token: u32,
    /// Whether the sequence ends with it; at its `max_tokens` it ends in any case.
    pub last: bool,
}

/// How a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Finished,
    Cancelled,
    /// Its deadline passed.
    Expired,
    /// Its step failed.
    Failed,
}

#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub sequence: SequenceId,
    pub end: End,
    pub receipt: Receipt,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub steps: u64,
    /// Tokens whose keys and values were computed.
    pub computed_tokens: u64,
    /// Prompt tokens that the cache had.
    pub cached_tokens: u64,
    /// Blocks that went to the host's memory.
    pub stored_blocks: u64,
    /// Blocks that came back from there.
    pub fetched_blocks: u64,
    pub preemptions: u64,
    /// From each preemption until the sequence had again what it had then, or ended.
    pub stalled: Duration,
    /// Tokens that were computed again after a preemption or a failure.
    pub recomputed_tokens: u64,
    /// Sequences that were given a second chance after a failed step.
    pub retries: u64,
}

/// What a device needs to know of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Prompt and generated tokens; the last is no token yet where a step under way is to choose it.
    pub tokens: &'a [u32],
    pub prompt_len: usize,
    /// Tokens that it may hold at the most.
    pub longest: usize,
    /// Entry `p / block_size` holds position `p`, for positions within the window.
    pub blocks: &'a [u32],
    /// Another number means other blocks; the same one means the same, but for more at the end.
    pub table: u64,
}

pub struct Scheduler {
    policy: Policy,
    window: Option<usize>,
    blocks: Blocks,
    /// Tokens at the start of a sequence that are computed while a block comes back from the host's memory.
    fetch: usize,
    hasher: BlockHasher,
    sequences: Sequences,
    waiting: BTreeSet<QueueKey>,
    deadlines: BTreeSet<(Duration, SequenceId)>,
    /// Who has blocks. The last is the first to give them up.
    running: Vec<SequenceId>,
    submitted: u64,
    plans: u64,
    plan: Plan,
    under_way: Option<UnderWay>,
    ended: Vec<Ended>,
    stats: Stats,
}

impl Scheduler {
    pub fn new(policy: Policy, cache: CacheSize) -> Self {
        Self {
            policy,
            window: cache.window,
            blocks: Blocks::new(cache.blocks, cache.block_size, cache.balance),
            fetch: 0,
            hasher: BlockHasher::default(),
            sequences: Sequences::default(),
            waiting: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            running: Vec::new(),
            submitted: 0,
            plans: 0,
            plan: Plan::default(),
            under_way: None,
            ended: Vec::new(),
            stats: Stats::default(),
        }
    }

    /// With room for so many blocks in the host's memory, for those that the cache gives up. While one comes back, `fetch`
    /// tokens at the start of a sequence could be computed.
    pub fn with_host(self, blocks: usize, fetch: usize) -> Self {
        Self { blocks: self.blocks.with_host(blocks), fetch, ..self }
    }

    /// Takes a request. Its branches follow one another in the result; the first stands for all while the prompt is
    /// computed.
    ///
    /// # Errors
    /// It could never run, or too many wait already.
    pub fn submit(&mut self, now: Duration, submission: Submission) -> Result<Vec<SequenceId>, Refused> {
        let Submission { prompt, max_tokens, branches, contrast, priority, deadline, salt, reuse, scored } = submission;
        // Where nothing is chosen, nothing guides the choice.
        let contrast = contrast.filter(|_| max_tokens > 0);
        if prompt.is_empty() || branches == 0 || contrast.as_ref().is_some_and(|contrast| contrast.prompt.is_empty()) {
            return Err(Refused::Empty);
        }
        let side_by_side = branches + usize::from(contrast.is_some());
        if side_by_side > self.policy.max_running {
            return Err(Refused::TooManyBranches { branches: side_by_side, limit: self.policy.max_running });
        }
        // The last token is never fed back.
        let with_output = |prompt: &Vec<u32>| prompt.len().saturating_add(max_tokens.saturating_sub(1));
        let block_size = self.blocks.block_size();
        let beside = contrast.as_ref().map_or(0, |contrast| with_output(&contrast.prompt).div_ceil(block_size));
        let tokens = beside.saturating_mul(block_size).saturating_add(with_output(&prompt));
        let capacity = self.blocks.total() * block_size;
        if self.policy.mechanisms.refuse_oversize && tokens > capacity {
            return Err(Refused::TooLarge { tokens, capacity });
        }
        if self.waiting.len() >= self.policy.max_waiting {
            return Err(Refused::QueueFull { waiting: self.waiting.len() });
        }
        self.submitted += 1;
        let ahead = i128::from(priority) * self.policy.aging.as_nanos() as i128;
        let order = (now.as_nanos() as i128 - ahead, self.submitted);
        let named = |prompt, salt| {
            let mut sequence = Sequence::new(prompt, max_tokens, priority, order, now);
            (sequence.reuse, sequence.scored) = (reuse, scored);
            sequence.last_name = self.hasher.root(salt);
            sequence.name_blocks(&self.hasher, self.blocks.block_size());
            sequence
        };
        let sequence = Sequence { deadline, ..named(prompt, salt) };
        let contrast = contrast.map(|Contrast { prompt, salt }| named(prompt, salt));
        let parked: Vec<Sequence> = (1..branches).map(|_| sequence.parked()).collect();
        let leader = self.sequences.insert(sequence);
        let contrast = contrast.map(|contrast| {
            let state = State::Parked { leader };
            self.sequences.insert(Sequence { state, pair: Some(Pair::ContrastOf(leader)), ..contrast })
        });
        let mut ids = vec![leader];
        for sequence in parked {
            ids.push(self.sequences.insert(Sequence { state: State::Parked { leader }, ..sequence }));
        }
        if let Some(leader) = self.sequences.get_mut(leader) {
            leader.branches = ids[1..].to_vec();
            leader.pair = contrast.map(Pair::With);
        }
        self.deadlines.extend(deadline.iter().flat_map(|&deadline| ids.iter().map(move |&id| (deadline, id))));
        self.waiting.insert((order, leader));
        Ok(ids)
    }

    /// The step to carry out; nothing once it is under way.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// A sequence that has not ended.
    pub fn view(&self, id: SequenceId) -> Option<View<'_>> {
        let sequence = self.sequences.get(id)?;
        let (blocks, table) = (sequence.table.blocks(), sequence.table.number());
        let (prompt_len, longest) = (sequence.prompt_len, sequence.prompt_len.saturating_add(sequence.max_tokens));
        Some(View { tokens: &sequence.tokens, prompt_len, longest, blocks, table })
    }

    /// Sequences that begin where this one's prompt ends; none once they have begun.
    pub fn branches(&self, id: SequenceId) -> &[SequenceId] {
        self.sequences.get(id).map_or(&[], |sequence| &sequence.branches)
    }

    /// The sequence that a contrast belongs to; `None` for one that is no contrast.
    pub fn contrast_of(&self, id: SequenceId) -> Option<SequenceId> {
        match self.sequences.get(id)?.pair {
            Some(Pair::ContrastOf(lead)) => Some(lead),
            Some(Pair::With(_)) | None => None,
        }
    }

    /// What a sequence has been through so far.
    pub fn receipt(&self, id: SequenceId) -> Option<Receipt> {
        self.sequences.get(id).map(|sequence| sequence.receipt)
    }

    /// Log-probabilities of the tokens after the first that the cache had when the sequence was last begun: up to that of
    /// the first token that is computed.
    pub fn known_scores(&self, id: SequenceId) -> &[f32] {
        self.sequences.get(id).map_or(&[], |sequence| &sequence.known_scores)
    }

    /// Sequences that ended since the last call.
    pub fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn blocks(&self) -> Counts {
        self.blocks.counts()
    }

    pub fn stats(&self) -> Stats {
        self.stats
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}
