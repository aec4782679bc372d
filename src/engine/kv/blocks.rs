//! The block pool: reference counts, the prefix cache and its eviction.
//!
//! A block is free, held (by one block table or several), or idle: held by none, but still cached under its prefix
//! hash. Idle blocks are evicted only when no free one is left, in the order of GreedyDual (Young, "The k-server dual
//! and loose competitiveness for paging", 1994): a block's worth is what it would cost to compute again, plus a floor
//! that rises with every eviction. Blocks of equal worth go in order of last use, and the end of a prefix before its
//! start.
//!
//! Allocation and release are O(1), eviction is O(log idle).

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::hash::BlockHash;
use super::host::Host;
use crate::ops::PageMoves;

/// Worths are fixed-point numbers. This is one: the cost of a token at the start of a sequence.
const ONE: u64 = 1024;

/// Numbers of blocks by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub free: usize,
    /// Held by no table, cached under their hash.
    pub idle: usize,
    pub held: usize,
    /// In host memory, cached under their hash.
    pub host: usize,
    /// Blocks with cached log-probabilities of their tokens: four bytes a token, in host memory.
    pub scored: usize,
}

#[derive(Clone, Debug, Default)]
struct Block {
    ref_count: u32,
    hash: Option<BlockHash>,
    rank: Rank,
    /// Log-probability of each of its tokens given those before it; 0 for a sequence's first token.
    scores: Option<Box<[f32]>>,
}

/// Eviction order, lowest first. Who holds a block holds those before it too, and the worth of a block only rises, so
/// the start of a prefix never ranks below its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    worth: u64,
    /// The time of the last use, in releases so far.
    used: u64,
    /// Blocks before it in its sequence.
    depth: Reverse<usize>,
}

/// The block pool of a KV cache.
pub struct Blocks {
    block_size: usize,
    /// The position at which attention costs a token as much as the rest of the model.
    balance: usize,
    blocks: Vec<Block>,
    free: Vec<u32>,
    idle: BTreeSet<(Rank, u32)>,
    by_hash: HashMap<BlockHash, u32>,
    /// The floor of GreedyDual: the worth of the last block that was evicted.
    floor: u64,
    used: u64,
    /// Sources of the copies that are planned; they are held until [`commit`](Self::commit).
    copied: Vec<u32>,
    /// Table numbers given out so far.
    tables: u64,
    /// Number of blocks that have scores.
    scored: usize,
    /// Where evicted blocks go.
    host: Host,
}

impl Blocks {
    /// `count` blocks of `block_size` tokens. `balance` is the length of a sequence, in tokens, at which attention
    /// costs a token as much as all the rest of the model.
    pub fn new(count: usize, block_size: usize, balance: usize) -> Self {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            block_size: block_size.max(1),
            balance: balance.max(1),
            blocks: vec![Block::default(); count as usize],
            // Low numbers are allocated first: memory that is not needed stays untouched.
            free: (0..count).rev().collect(),
            idle: BTreeSet::new(),
            by_hash: HashMap::new(),
            floor: 0,
            used: 0,
            copied: Vec::new(),
            tables: 0,
            scored: 0,
            host: Host::new(0),
        }
    }

    /// Adds a host tier with room for this many evicted blocks.
    pub fn with_host(self, blocks: usize) -> Self {
        Self { host: Host::new(blocks), ..self }
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be allocated.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    pub fn counts(&self) -> Counts {
        let (free, idle) = (self.free.len(), self.idle.len());
        Counts { free, idle, held: self.blocks.len() - free - idle, scored: self.scored, host: self.host.len() }
    }

    /// How many tables hold a block.
    pub fn ref_count(&self, block: u32) -> u32 {
        self.blocks[block as usize].ref_count
    }

    /// Allocates a block with a reference count of 1: a free one, or else the idle one that is worth least, which is
    /// evicted.
    pub(super) fn take(&mut self) -> Option<u32> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                let (rank, id) = self.idle.pop_first()?;
                self.floor = self.floor.max(rank.worth);
                if let Some(hash) = self.blocks[id as usize].hash.take() {
                    self.by_hash.remove(&hash);
                    self.host.keep(hash, id);
                }
                id
            }
        };
        let block = std::mem::replace(&mut self.blocks[id as usize], Block { ref_count: 1, ..Block::default() });
        self.scored -= usize::from(block.scores.is_some());
        Some(id)
    }

    /// Adds a reference to a block that is held or idle.
    pub(super) fn hold(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        if block.ref_count == 0 {
            self.idle.remove(&(block.rank, id));
        }
        block.ref_count += 1;
    }

    /// Drops a reference to each block; `blocks[i]` is number `first + i` of a sequence of `len` blocks.
    pub(super) fn give_back(&mut self, blocks: &[u32], first: usize, len: usize) {
        self.used += 1;
        let tokens = len.saturating_mul(self.block_size) as u64;
        let worth = self.floor + self.cost(tokens);
        // From the back, so that the low numbers of the front are allocated next.
        for (i, &id) in blocks.iter().enumerate().rev() {
            let block = &mut self.blocks[id as usize];
            assert!(block.ref_count > 0, "block {id} is released more often than it is held");
            block.ref_count -= 1;
            block.rank = Rank { worth: block.rank.worth.max(worth), used: self.used, depth: Reverse(first + i) };
            match (block.ref_count, block.hash) {
                (0, Some(_)) => {
                    self.idle.insert((block.rank, id));
                }
                (0, None) => self.free.push(id),
                _ => {}
            }
        }
    }

    /// The cost of computing a token at position `tokens`.
    fn cost(&self, tokens: u64) -> u64 {
        ONE + tokens.saturating_mul(ONE) / self.balance as u64
    }

    /// How many of a sequence's first blocks are reused rather than computed: all that are cached, or fewer where the
    /// last of them are in host memory and computing them is faster. Fetching one takes as long as computing `fetch`
    /// tokens at the start of a sequence; with `usize::MAX` none is fetched.
    pub(super) fn reusable_prefix_len(&self, hashes: &[BlockHash], fetch: usize) -> usize {
        let fetch = i64::try_from((fetch as u64).saturating_mul(ONE)).unwrap_or(i64::MAX);
        let of_block = |(i, &hash): (usize, &BlockHash)| {
            let fetched = match self.find(hash) {
                Some(_) => 0,
                None if self.in_host(hash) => fetch,
                None => return None,
            };
            let computed = self.block_size as u64 * self.cost((i * self.block_size) as u64);
            Some(computed as i64 - fetched)
        };
        let (mut blocks, mut saved, mut most) = (0, 0i64, 0);
        for (i, saving) in hashes.iter().enumerate().map_while(of_block).enumerate() {
            saved = saved.saturating_add(saving);
            if saved >= most {
                (blocks, most) = (i + 1, saved);
            }
        }
        blocks
    }

    /// A new table number.
    pub(super) fn number(&mut self) -> u64 {
        self.tables += 1;
        self.tables
    }

    /// Holds the source of a planned copy until [`commit`](Self::commit).
    pub(super) fn keep_copied(&mut self, id: u32) {
        self.copied.push(id);
    }

    /// Drops planned copies into blocks that are no longer held.
    pub(crate) fn drop_unused_copies(&mut self, copies: &mut Vec<[u32; 2]>) {
        copies.retain(|&[from, to]| {
            let is_wanted = self.ref_count(to) > 0;
            if !is_wanted && let Some(at) = self.copied.iter().position(|&id| id == from) {
                self.copied.swap_remove(at);
                self.give_back(&[from], 0, 1);
            }
            is_wanted
        });
    }

    /// Planned moves between device and host, to be done before the planned copies.
    pub fn moves(&self) -> &PageMoves {
        self.host.moves()
    }

    /// Plans to fetch a block from the host tier, with a reference count of 1.
    pub(super) fn fetch(&mut self, hash: BlockHash) -> Option<u32> {
        // First, so that allocating does not evict it from the host tier.
        self.host.touch(hash)?;
        let id = self.take()?;
        self.host.fetch(hash, id);
        self.publish(id, hash);
        Some(id)
    }

    /// Whether the host tier has this block.
    pub(super) fn in_host(&self, hash: BlockHash) -> bool {
        self.host.find(hash).is_some()
    }

    /// The planned moves and copies are enqueued on the device: others can be planned.
    pub fn commit(&mut self) {
        self.host.commit();
        for id in std::mem::take(&mut self.copied) {
            self.give_back(&[id], 0, 1);
        }
    }

    /// Puts a full block that is held into the prefix cache. A block that is cached under the same hash stays there.
    pub fn publish(&mut self, id: u32, hash: BlockHash) {
        let block = &mut self.blocks[id as usize];
        if block.ref_count > 0 && block.hash.is_none() && !self.by_hash.contains_key(&hash) {
            block.hash = Some(hash);
            self.by_hash.insert(hash, id);
        }
    }

    /// Empties the prefix cache: what the blocks held is lost.
    pub fn forget(&mut self) {
        self.by_hash.clear();
        self.free.extend(std::mem::take(&mut self.idle).into_iter().map(|(_, id)| id));
        self.blocks.iter_mut().for_each(|block| (block.hash, block.scores) = (None, None));
        self.scored = 0;
        self.host = Host::new(self.host.capacity());
    }

    /// Stores the log-probabilities of a full block's tokens with the block that is cached under this hash, or with
    /// `id`, which is about to be.
    pub(crate) fn set_scores(&mut self, id: u32, hash: BlockHash, scores: Box<[f32]>) {
        let id = self.find(hash).unwrap_or(id);
        let before = self.blocks[id as usize].scores.replace(scores);
        self.scored += usize::from(before.is_none());
    }

    /// The stored log-probabilities of a cached block.
    pub fn scores(&self, hash: BlockHash) -> Option<&[f32]> {
        self.blocks[self.find(hash)? as usize].scores.as_deref()
    }

    /// The cached block with this hash.
    pub fn find(&self, hash: BlockHash) -> Option<u32> {
        self.by_hash.get(&hash).copied()
    }

    /// How many blocks of a prefix, from its start, are cached. A binary search, as ends are evicted before starts; it
    /// may find too many where a prefix has a hole, which a sliding window can leave.
    pub fn known(&self, hashes: &[BlockHash]) -> usize {
        hashes.partition_point(|&hash| self.by_hash.contains_key(&hash) || self.in_host(hash))
    }
}
