//! One sequence's books.

use std::time::Duration;

use crate::engine::kv::{BlockHash, BlockHasher, Table};

/// Names a sequence, and no later one in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId {
    slot: u32,
    turn: u32,
}

impl SequenceId {
    /// A small number that no other living sequence has: an index for tables beside the scheduler's.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Where a request stands in the queue, and who it is: arrival brought forward by priority, then order of arrival. As
/// all grow older alike, the order of two never changes.
pub(super) type QueueKey = ((i128, u64), SequenceId);

/// What a sequence went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// From submission until it was first scheduled.
    pub queue: Duration,
    /// From there to its first token.
    pub prefill: Duration,
    /// From its first token to its last so far.
    pub decode: Duration,
    /// Prompt tokens that the cache had when it was first scheduled.
    pub cached_tokens: usize,
    /// How often it gave its place up: to others, or after a failed step.
    pub preemptions: usize,
    /// Tokens that were computed again after preemptions.
    pub recomputed_tokens: usize,
    /// From each time that it gave its place up to others until it had again what it had then.
    pub stalled: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Running,
    /// Begins where the prompt of another one ends.
    Parked {
        leader: SequenceId,
    },
}

/// The other one of two sequences that go in step: the same tokens behind different prompts. They begin, give their
/// blocks up and end together; what is known outside of the two is the one that has a contrast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pair {
    /// It has this contrast.
    With(SequenceId),
    /// It is the contrast of this one.
    ContrastOf(SequenceId),
}

impl Pair {
    pub fn other(self) -> SequenceId {
        match self {
            Self::With(id) | Self::ContrastOf(id) => id,
        }
    }
}

/// Where a sequence stands whose step failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    None,
    /// It is computed again, in steps of its own.
    Due,
    /// It was not to blame. Another failure ends it.
    Passed,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    pub max_tokens: usize,
    pub reuse: bool,
    /// Log-probabilities of its tokens are wanted.
    pub scored: bool,
    /// Those of the tokens after its first one that the cache had.
    pub known_scores: Vec<f32>,
    pub priority: i32,
    /// See [`QueueKey`].
    pub order: (i128, u64),
    pub deadline: Option<Duration>,
    pub state: State,
    pub pair: Option<Pair>,
    pub trial: Trial,
    /// Names of the full blocks of `tokens`.
    pub names: Vec<BlockHash>,
    /// The last of `names`, or the root.
    pub last_name: BlockHash,
    pub table: Table,
    /// Its last token is the one that the step under way chooses.
    pub awaited: bool,
    /// Tokens whose keys and values are in the cache, or will be after the step under way.
    pub computed: usize,
    /// Those that are in the cache.
    pub settled: usize,
    /// What `computed` was when it was preempted.
    pub lost: usize,
    /// When that was, until it has as much again.
    pub preempted: Option<Duration>,
    /// Parked sequences that wait for its prompt.
    pub branches: Vec<SequenceId>,
    /// How often others went first though it was the queue's first.
    pub passed_by: usize,
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
            trial: Trial::None,
            names: Vec::new(),
            last_name: BlockHash::default(),
            table: Table::default(),
            awaited: false,
            computed: 0,
            settled: 0,
            lost: 0,
            preempted: None,
            branches: Vec::new(),
            passed_by: 0,
            submitted,
            admitted: None,
            first_token: None,
            receipt: Receipt::default(),
        }
    }

    /// Another continuation of the same prompt, which has computed nothing.
    pub fn parked(&self) -> Self {
        Self {
            tokens: self.tokens.clone(),
            names: self.names.clone(),
            table: Table::default(),
            branches: Vec::new(),
            known_scores: Vec::new(),
            ..*self
        }
    }

    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens to compute before the next one can be chosen: none of a sequence that ends with the step under way.
    pub fn remaining(&self) -> usize {
        let is_last = self.awaited && self.generated() >= self.max_tokens;
        if is_last { 0 } else { self.tokens.len() - self.computed }
    }

    /// A step chooses its next token.
    pub fn await_token(&mut self) {
        const UNKNOWN: u32 = 0;
        self.tokens.push(UNKNOWN);
        self.awaited = true;
    }

    /// No step chooses its next token any more.
    pub fn give_up_token(&mut self) {
        if std::mem::take(&mut self.awaited) {
            self.tokens.pop();
        }
    }

    /// It has again what it had when it was preempted, or needs it no more. Returns how long that took.
    pub fn resume(&mut self, now: Duration) -> Duration {
        let stalled = self.preempted.take().map_or(Duration::ZERO, |since| now.saturating_sub(since));
        self.receipt.stalled += stalled;
        stalled
    }

    /// Names the blocks that `tokens` has filled by now.
    pub fn name_blocks(&mut self, hasher: &BlockHasher, block_size: usize) {
        for block in self.tokens.chunks_exact(block_size).skip(self.names.len()) {
            self.last_name = hasher.next(self.last_name, block);
            self.names.push(self.last_name);
        }
    }

    /// Names of the blocks that may be taken from the cache: not the last token's, whose logits are wanted.
    pub fn reusable(&self, block_size: usize) -> &[BlockHash] {
        let blocks = if self.reuse { (self.tokens.len() - 1) / block_size } else { 0 };
        &self.names[..blocks.min(self.names.len())]
    }
}

/// All sequences that have not ended.
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

    /// The one of a pair that is known outside of it; of no pair, the sequence itself.
    pub fn lead(&self, id: SequenceId) -> SequenceId {
        match self.get(id).and_then(|sequence| sequence.pair) {
            Some(Pair::ContrastOf(lead)) => lead,
            Some(Pair::With(_)) | None => id,
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
