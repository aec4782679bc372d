//! The scheduler's record of one sequence.

use std::time::Duration;

use crate::engine::kv::{BlockHash, BlockHasher, Table};

/// Identifies a sequence; ids are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId {
    slot: u32,
    turn: u32,
}

impl SequenceId {
    /// A small number, unique among the sequences that have not ended: an index for the driver's own tables.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// A request's place in the queue: arrival time brought forward by priority, then order of arrival. As all age alike,
/// the order of two requests never changes.
pub(super) type QueueKey = ((i128, u64), SequenceId);

/// Timings and counters of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// From submission until it was first scheduled.
    pub queue: Duration,
    /// From there to its first token.
    pub prefill: Duration,
    /// From its first token to its last so far.
    pub decode: Duration,
    /// Prompt tokens found in the prefix cache when it was first scheduled.
    pub cached_tokens: usize,
    /// How often it was requeued: preempted, or retried after a failed step.
    pub preemptions: usize,
    /// Tokens that were computed again after preemptions.
    pub recomputed_tokens: usize,
    /// From each preemption until it had caught up.
    pub stalled: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Running,
    /// Waits for its leader: a branch for the prompt, a negative prompt for admission.
    Parked {
        leader: SequenceId,
    },
}

/// The partner of a sequence in classifier-free guidance: both have the same generated tokens after different prompts.
/// They are admitted, preempted and ended together. Outside the scheduler only the guided one is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pair {
    /// This negative prompt guides it.
    GuidedBy(SequenceId),
    /// It is the negative prompt of this sequence.
    NegativeOf(SequenceId),
}

impl Pair {
    pub fn other(self) -> SequenceId {
        match self {
            Self::GuidedBy(id) | Self::NegativeOf(id) => id,
        }
    }
}

/// Whether a sequence is retried after a failed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    None,
    /// It has to be computed again, in steps of its own.
    Due,
    /// It was computed again without a failure. If its next step fails too, it ends.
    Passed,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    pub max_tokens: usize,
    pub reuse: bool,
    /// Whether log-probabilities of its tokens are wanted.
    pub scored: bool,
    /// Cached ones, of its tokens from the second on.
    pub known_scores: Vec<f32>,
    pub priority: i32,
    /// See [`QueueKey`].
    pub order: (i128, u64),
    pub deadline: Option<Duration>,
    pub state: State,
    pub pair: Option<Pair>,
    pub retry: Retry,
    /// It is left out of steps until [`resume`](super::Scheduler::resume).
    pub is_held: bool,
    /// Names of the full blocks of `tokens`.
    pub hashes: Vec<BlockHash>,
    /// The last of `hashes`, or the root.
    pub last_hash: BlockHash,
    pub table: Table,
    /// Its last token is a placeholder for the one that the step under way samples.
    pub awaited: bool,
    /// Tokens whose keys and values are in the cache once the step under way is done.
    pub computed: usize,
    /// Tokens whose keys and values are in the cache.
    pub committed: usize,
    /// What `computed` was when it was preempted.
    pub lost: usize,
    /// When it was preempted; `None` once it has caught up.
    pub preempted: Option<Duration>,
    /// Parked sequences that continue its prompt.
    pub branches: Vec<SequenceId>,
    /// How often others were admitted while it was first in the queue.
    pub times_skipped: usize,
    pub submitted: Duration,
    pub admitted: Option<Duration>,
    pub first_token: Option<Duration>,
    pub receipt: Receipt,
}

impl Sequence {
    pub fn new(prompt: Vec<u32>, max_tokens: usize, priority: i32, order: (i128, u64), submitted: Duration) -> Self {
        Self {
            prompt_len: prompt.len(),
            tokens: prompt,
            max_tokens,
            reuse: true,
            scored: false,
            known_scores: Vec::new(),
            priority,
            order,
            deadline: None,
            state: State::Waiting,
            pair: None,
            retry: Retry::None,
            is_held: false,
            hashes: Vec::new(),
            last_hash: BlockHash::default(),
            table: Table::default(),
            awaited: false,
            computed: 0,
            committed: 0,
            lost: 0,
            preempted: None,
            branches: Vec::new(),
            times_skipped: 0,
            submitted,
            admitted: None,
            first_token: None,
            receipt: Receipt::default(),
        }
    }

    /// Another branch of the same prompt.
    pub fn parked(&self) -> Self {
        Self {
            tokens: self.tokens.clone(),
            hashes: self.hashes.clone(),
            table: Table::default(),
            branches: Vec::new(),
            known_scores: Vec::new(),
            ..*self
        }
    }

    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens to compute before the next one can be sampled: 0 for a sequence that ends with the step under way.
    pub fn remaining(&self) -> usize {
        let is_last = self.awaited && self.generated() >= self.max_tokens;
        if is_last { 0 } else { self.tokens.len() - self.computed }
    }

    /// Appends a placeholder for the token that a step samples.
    pub fn await_token(&mut self) {
        const UNKNOWN: u32 = 0;
        self.tokens.push(UNKNOWN);
        self.awaited = true;
    }

    /// Removes the placeholder.
    pub fn give_up_token(&mut self) {
        if std::mem::take(&mut self.awaited) {
            self.tokens.pop();
        }
    }

    /// Ends the time since a preemption: the sequence has caught up, or ends. Returns how long that took.
    pub fn end_stall(&mut self, now: Duration) -> Duration {
        let stalled = self.preempted.take().map_or(Duration::ZERO, |since| now.saturating_sub(since));
        self.receipt.stalled += stalled;
        stalled
    }

    /// Hashes the blocks that `tokens` has filled by now.
    pub fn hash_blocks(&mut self, hasher: &BlockHasher, block_size: usize) {
        for block in self.tokens.chunks_exact(block_size).skip(self.hashes.len()) {
            self.last_hash = hasher.next(self.last_hash, block);
            self.hashes.push(self.last_hash);
        }
    }

    /// Hashes of the blocks that may be reused: not the last token's, whose logits are needed.
    pub fn reusable(&self, block_size: usize) -> &[BlockHash] {
        let blocks = if self.reuse { (self.tokens.len() - 1) / block_size } else { 0 };
        &self.hashes[..blocks.min(self.hashes.len())]
    }
}

/// All sequences that have not ended, in slots that are used again.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    slots: Vec<(u32, Option<Sequence>)>,
    free: Vec<u32>,
}

impl Sequences {
    /// The other one of a pair.
    pub fn other(&self, sequence: &Sequence) -> Option<(SequenceId, &Sequence)> {
        let id = sequence.pair?.other();
        Some((id, self.get(id)?))
    }

    /// A sequence and, of a pair, the other one.
    pub fn both(&self, id: SequenceId) -> impl Iterator<Item = SequenceId> + use<> {
        let other = self.get(id).and_then(|sequence| sequence.pair).map(Pair::other);
        [id].into_iter().chain(other)
    }

    /// The sequence that a negative prompt guides; any other sequence itself.
    pub fn lead(&self, id: SequenceId) -> SequenceId {
        match self.get(id).and_then(|sequence| sequence.pair) {
            Some(Pair::NegativeOf(lead)) => lead,
            Some(Pair::GuidedBy(_)) | None => id,
        }
    }

    pub fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let (turn, place) = &mut self.slots[slot as usize];
        *place = Some(sequence);
        SequenceId { slot, turn: *turn }
    }

    pub fn get(&self, id: SequenceId) -> Option<&Sequence> {
        let (turn, sequence) = self.slots.get(id.slot())?;
        sequence.as_ref().filter(|_| *turn == id.turn)
    }

    pub fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        let (turn, sequence) = self.slots.get_mut(id.slot())?;
        sequence.as_mut().filter(|_| *turn == id.turn)
    }

    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let (turn, place) = self.slots.get_mut(id.slot())?;
        if *turn != id.turn {
            return None;
        }
        let sequence = place.take()?;
        *turn = turn.wrapping_add(1);
        self.free.push(id.slot);
        Some(sequence)
    }
}
