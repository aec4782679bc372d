//! The scheduler: decides which tokens of which sequences each step computes. It is a state machine without a clock and
//! without a device.
//!
//! A driver (the engine's step loop, or a simulation under a virtual clock) tells it what happened and what time it is.
//! It calls [`submit`](Scheduler::submit) and [`cancel`](Scheduler::cancel) at any time and, for each step,
//! [`schedule`](Scheduler::schedule); runs the [`plan`](Scheduler::plan); and calls [`complete`](Scheduler::complete)
//! with the sampled tokens, or [`fail`](Scheduler::fail). [`take_ended`](Scheduler::take_ended) returns each sequence
//! that ended exactly once. After [`begin`](Scheduler::begin) the next step can be scheduled while the last one runs:
//! as if its tokens were known and no sequence ended with them. Sequences that do end are taken out of the plan.
//!
//! A step has one budget of tokens. Each sequence that decodes takes one of them. The rest goes to the prompts under
//! way (chunked prefill): short ones first, then the long ones in equal parts, of which only a few are begun at a time
//! so that each gets a good share. A prompt is admitted when all of it fits into the cache, less its prefix hits,
//! beside the expected growth of the running sequences. Where these grow by more, the last one is preempted: it
//! releases its blocks and is computed again later. That happens at most once, as it is then admitted only with room
//! for all that it may still need. With a host tier, its cached blocks are moved to host memory, and fetched from there
//! where that is faster than computing them, or as the policy says.
//!
//! After a failed step that one of its sequences may have caused, each of them runs alone until it has passed the point
//! of the failure. Only the one that fails again ends.

mod admission;
mod outcome;
mod policy;
mod queue;
mod sequence;
mod step;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::engine::kv::{BlockHasher, Blocks, Counts};
use crate::ops::PageMoves;
use outcome::UnderWay;
pub use policy::{Mechanisms, Policy, Preemption};
use queue::Queue;
use sequence::{Pair, Sequence, Sequences, State};
pub use sequence::{Receipt, SequenceId};

/// The size of the KV cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheSize {
    pub blocks: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// The widest sliding window of any layer; `None` where one layer sees all positions.
    pub window: Option<usize>,
    /// Length of a sequence, in tokens, at which attention costs a token as much as the rest of the model.
    pub balance: usize,
}

/// A request as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct Submission {
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; with 0 only the prompt is computed.
    pub max_tokens: usize,
    /// Continuations of the prompt, which is computed once.
    pub branches: usize,
    /// For classifier-free guidance. Such a request has one branch and is not scored.
    pub negative: Option<NegativePrompt>,
    /// Higher ones go first.
    pub priority: i32,
    /// When it ends, finished or not.
    pub deadline: Option<Duration>,
    /// Blocks are shared among equal salts only.
    pub salt: u64,
    /// Whether the prompt's start may be taken from the cache.
    pub reuse: bool,
    /// Whether the log-probability of each prompt token is wanted. Then only blocks with cached scores are reused: see
    /// [`known_scores`](Scheduler::known_scores).
    pub scored: bool,
}

/// A negative prompt for classifier-free guidance: a second prompt, continued by the same tokens. Each token is sampled
/// in a step that computes both.
#[derive(Clone, Debug)]
pub struct NegativePrompt {
    pub prompt: Vec<u32>,
    /// As [`Submission::salt`].
    pub salt: u64,
}

impl Submission {
    /// One continuation, which may reuse cached blocks, with defaults for the rest.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            branches: 1,
            negative: None,
            priority: 0,
            deadline: None,
            salt: 0,
            reuse: true,
            scored: false,
        }
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no prompt or no branch, or the negative prompt is empty.
    Empty,
    /// Prompt and output exceed the cache.
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
    /// Whether the next token is sampled after it: for the sequence and each of its [`branches`](Scheduler::branches).
    pub sample: bool,
}

/// What one step does.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Counts the plans. Chunks may be removed from a plan, but are never added.
    pub number: u64,
    /// Blocks to move to host memory and from it, first of all.
    pub moves: PageMoves,
    /// Blocks to copy next, `[from, to]`. Moves and copies of consecutive steps must be made in order: a block that one
    /// step uses may belong to another sequence in the next.
    pub copies: Vec<[u32; 2]>,
    /// Decodes, then prompts; a negative prompt before the sequence that it guides.
    pub chunks: Vec<Chunk>,
}

impl Plan {
    pub fn tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len).sum()
    }
}

/// A sampled token.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub sequence: SequenceId,
    pub token: u32,
    /// Whether the sequence ends with it. At `max_tokens` it ends in any case.
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

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub steps: u64,
    /// Tokens whose keys and values were computed.
    pub computed_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u64,
    /// Blocks that were moved to host memory.
    pub stored_blocks: u64,
    /// Blocks that were fetched from there.
    pub fetched_blocks: u64,
    pub preemptions: u64,
    /// Time from each preemption until the sequence had caught up, or ended; the sum over all.
    pub stalled: Duration,
    /// Tokens that were computed again after a preemption or a failure.
    pub recomputed_tokens: u64,
    /// Sequences that were run again, alone, after a failed step.
    pub retries: u64,
}

/// What a batch needs of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Prompt and generated tokens. The last is a placeholder while the step that samples it is under way.
    pub tokens: &'a [u32],
    pub prompt_len: usize,
    /// Tokens that it may have at most.
    pub longest: usize,
    /// Entry `p / block_size` holds position `p`, for positions within the window.
    pub blocks: &'a [u32],
    /// The block table's version: with the same number the blocks are the same, and perhaps more at the end.
    pub table: u64,
}

pub struct Scheduler {
    policy: Policy,
    window: Option<usize>,
    blocks: Blocks,
    /// How many tokens at the start of a sequence are computed in the time that fetching a block from host memory
    /// takes.
    fetch: usize,
    hasher: BlockHasher,
    sequences: Sequences,
    waiting: Queue,
    deadlines: BTreeSet<(Duration, SequenceId)>,
    /// Sequences that have blocks. The last is preempted first.
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
            waiting: Queue::default(),
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

    /// Adds a host tier with room for this many evicted blocks. Fetching one takes as long as computing `fetch` tokens
    /// at the start of a sequence.
    pub fn with_host(self, blocks: usize, fetch: usize) -> Self {
        Self { blocks: self.blocks.with_host(blocks), fetch, ..self }
    }

    /// Adds a request to the queue. Returns a sequence for each branch; the first one computes the prompt for all.
    ///
    /// # Errors
    /// It could never run, or the queue is full.
    pub fn submit(&mut self, now: Duration, submission: Submission) -> Result<Vec<SequenceId>, Refused> {
        let Submission { prompt, max_tokens, branches, negative, priority, deadline, salt, reuse, scored } = submission;
        // Guidance needs a token to sample.
        let negative = negative.filter(|_| max_tokens > 0);
        if prompt.is_empty() || branches == 0 || negative.as_ref().is_some_and(|negative| negative.prompt.is_empty()) {
            return Err(Refused::Empty);
        }
        let side_by_side = branches + usize::from(negative.is_some());
        if side_by_side > self.policy.max_running {
            return Err(Refused::TooManyBranches { branches: side_by_side, limit: self.policy.max_running });
        }
        // The last token is never fed back.
        let with_output = |prompt: &Vec<u32>| prompt.len().saturating_add(max_tokens.saturating_sub(1));
        let block_size = self.blocks.block_size();
        let beside = negative.as_ref().map_or(0, |negative| with_output(&negative.prompt).div_ceil(block_size));
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
        let hashed = |prompt, salt| {
            let mut sequence = Sequence::new(prompt, max_tokens, priority, order, now);
            (sequence.reuse, sequence.scored) = (reuse, scored);
            sequence.last_hash = self.hasher.root(salt);
            sequence.hash_blocks(&self.hasher, self.blocks.block_size());
            sequence
        };
        let sequence = Sequence { deadline, ..hashed(prompt, salt) };
        let negative = negative.map(|NegativePrompt { prompt, salt }| hashed(prompt, salt));
        let parked: Vec<Sequence> = (1..branches).map(|_| sequence.parked()).collect();
        let leader = self.sequences.insert(sequence);
        let negative = negative.map(|negative| {
            let state = State::Parked { leader };
            self.sequences.insert(Sequence { state, pair: Some(Pair::NegativeOf(leader)), ..negative })
        });
        let mut ids = vec![leader];
        for sequence in parked {
            ids.push(self.sequences.insert(Sequence { state: State::Parked { leader }, ..sequence }));
        }
        if let Some(leader) = self.sequences.get_mut(leader) {
            leader.branches = ids[1..].to_vec();
            leader.pair = negative.map(Pair::GuidedBy);
        }
        self.deadlines.extend(deadline.iter().flat_map(|&deadline| ids.iter().map(move |&id| (deadline, id))));
        self.enqueue(leader);
        Ok(ids)
    }

    /// The step to run; empty once it has begun.
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

    /// Sequences that will continue this one's prompt; none once they run.
    pub fn branches(&self, id: SequenceId) -> &[SequenceId] {
        self.sequences.get(id).map_or(&[], |sequence| &sequence.branches)
    }

    /// The sequence that a negative prompt guides; `None` for any other sequence.
    pub fn guides(&self, id: SequenceId) -> Option<SequenceId> {
        match self.sequences.get(id)?.pair {
            Some(Pair::NegativeOf(lead)) => Some(lead),
            Some(Pair::GuidedBy(_)) | None => None,
        }
    }

    /// A sequence's timings and counters so far.
    pub fn receipt(&self, id: SequenceId) -> Option<Receipt> {
        self.sequences.get(id).map(|sequence| sequence.receipt)
    }

    /// Cached log-probabilities that were found when the sequence was last begun: of its tokens from the second up to
    /// the first one that is computed.
    pub fn known_scores(&self, id: SequenceId) -> &[f32] {
        self.sequences.get(id).map_or(&[], |sequence| &sequence.known_scores)
    }

    /// Sequences that ended since the last call.
    pub fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// Whether no sequence runs or waits.
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
