//! The pool of blocks.
//!
//! A block is free, held (by one table or several), or idle: held by nobody, but known by name, and given up only when
//! no free one is left. Which idle block goes first follows GreedyDual (Young, "The k-server dual and loose
//! competitiveness for paging", 1994): each is worth what it would cost to compute again, above a floor that rises with
//! every block given up. Blocks of equal worth go in order of their last use, and the end of a prefix before its start.
//!
//! Taking and giving back are O(1), giving up an idle block O(log idle).

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::hash::BlockHash;
use super::host::Host;
use crate::ops::PageMoves;

/// The fixed point of worths: what a block costs whose tokens see next to nothing before them.
const ONE: u64 = 1024;

/// How many blocks there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub free: usize,
    /// Held by nobody, known by name.
    pub idle: usize,
    pub held: usize,
    /// In the host's memory, known by name.
    pub host: usize,
    /// Blocks whose tokens' log-probabilities are known: four bytes a token, on the host.
    pub scored: usize,
}

#[derive(Clone, Debug, Default)]
struct Block {
    holders: u32,
    name: Option<BlockHash>,
    rank: Rank,
    /// Log-probability of each of its tokens given those before it; 0 for a sequence's first token.
    scores: Option<Box<[f32]>>,
}

/// The order in which idle blocks are given up, lowest first. A block's holders hold what is before it too, and the
/// worth of a block only rises: so the start of a prefix never ranks below its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    worth: u64,
    /// Counts the tables given back so far.
    used: u64,
    /// Blocks before it in its sequence.
    depth: Reverse<usize>,
}

/// All blocks of a cache.
pub struct Blocks {
    block_size: usize,
    /// Tokens before a block at which attention costs as much as everything else.
    balance: usize,
    blocks: Vec<Block>,
    free: Vec<u32>,
    idle: BTreeSet<(Rank, u32)>,
    names: HashMap<BlockHash, u32>,
    /// GreedyDual's: the worth of the last block that was given up.
    floor: u64,
    used: u64,
    /// Sources of copies that the step under way makes.
    copied: Vec<u32>,
    /// Numbers that tables were given.
    tables: u64,
    /// Blocks that have scores.
    scored: usize,
    /// Where idle blocks go that are given up.
    host: Host,
}

impl Blocks {
    /// `count` blocks of `block_size` tokens. `balance` is the length of a sequence, in tokens, at which attention costs
    /// a token as much as all the rest of the model.
    pub fn new(count: usize, block_size: usize, balance: usize) -> Self {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            block_size: block_size.max(1),
            balance: balance.max(1),
            blocks: vec![Block::default(); count as usize],
            // Popping from the back hands out low numbers first: memory that is not needed stays untouched.
            free: (0..count).rev().collect(),
            idle: BTreeSet::new(),
            names: HashMap::new(),
            floor: 0,
            used: 0,
            copied: Vec::new(),
            tables: 0,
            scored: 0,
            host: Host::new(0),
        }
    }

    /// With room for so many blocks in the host's memory, for those that are given up.
    pub fn with_host(self, blocks: usize) -> Self {
        Self { host: Host::new(blocks), ..self }
    }

    /// Tokens of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be taken.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    pub fn counts(&self) -> Counts {
        let (free, idle) = (self.free.len(), self.idle.len());
        Counts { free, idle, held: self.blocks.len() - free - idle, scored: self.scored, host: self.host.len() }
    }

    /// How many hold a block.
    pub fn holders(&self, block: u32) -> u32 {
        self.blocks[block as usize].holders
    }

    /// Takes a block for one holder: a free one, or else the idle one that is worth least, whose name is forgotten.
    pub(super) fn take(&mut self) -> Option<u32> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                let (rank, id) = self.idle.pop_first()?;
                self.floor = self.floor.max(rank.worth);
                if let Some(name) = self.blocks[id as usize].name.take() {
                    self.names.remove(&name);
                    self.host.keep(name, id);
                }
                id
            }
        };
        let block = std::mem::replace(&mut self.blocks[id as usize], Block { holders: 1, ..Block::default() });
        self.scored -= usize::from(block.scores.is_some());
        Some(id)
    }

    /// One more holder of a block that is held or idle.
    pub(super) fn hold(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        if block.holders == 0 {
            self.idle.remove(&(block.rank, id));
        }
        block.holders += 1;
    }

    /// One holder less of each block; `blocks[i]` is number `first + i` of a sequence of `len` blocks.
    pub(super) fn give_back(&mut self, blocks: &[u32], first: usize, len: usize) {
        self.used += 1;
        let tokens = len.saturating_mul(self.block_size) as u64;
        let worth = self.floor + self.cost(tokens);
        // From the back, so that the numbers of the front are the next to be taken.
        for (i, &id) in blocks.iter().enumerate().rev() {
            let block = &mut self.blocks[id as usize];
            assert!(block.holders > 0, "block {id} is given back by one who does not hold it");
            block.holders -= 1;
            block.rank = Rank { worth: block.rank.worth.max(worth), used: self.used, depth: Reverse(first + i) };
            match (block.holders, block.name) {
                (0, Some(_)) => {
                    self.idle.insert((block.rank, id));
                }
                (0, None) => self.free.push(id),
                _ => {}
            }
        }
    }

    /// What a token costs to compute behind so many others.
    fn cost(&self, tokens: u64) -> u64 {
        ONE + tokens.saturating_mul(ONE) / self.balance as u64
    }

    /// How many of a sequence's first blocks are taken rather than computed: all that are known, or fewer where the last of
    /// them, which the host has, take longer to come from there than to compute. While one comes, `fetch` tokens at the start
    /// of a sequence could be computed; `usize::MAX` for none to come.
    pub(super) fn worthwhile(&self, names: &[BlockHash], fetch: usize) -> usize {
        let fetch = i64::try_from((fetch as u64).saturating_mul(ONE)).unwrap_or(i64::MAX);
        let of_block = |(i, &name): (usize, &BlockHash)| {
            let fetched = match self.find(name) {
                Some(_) => 0,
                None if self.in_host(name) => fetch,
                None => return None,
            };
            let computed = self.block_size as u64 * self.cost((i * self.block_size) as u64);
            Some(computed as i64 - fetched)
        };
        let (mut blocks, mut saved, mut most) = (0, 0i64, 0);
        for (i, saving) in names.iter().enumerate().map_while(of_block).enumerate() {
            saved = saved.saturating_add(saving);
            if saved >= most {
                (blocks, most) = (i + 1, saved);
            }
        }
        blocks
    }

    /// A number that no table has.
    pub(super) fn number(&mut self) -> u64 {
        self.tables += 1;
        self.tables
    }

    /// Keeps the source of a copy from being taken until [`settle`](Self::settle).
    pub(super) fn keep_copied(&mut self, id: u32) {
        self.copied.push(id);
    }

    /// Drops copies into blocks that nobody holds any more.
    pub(crate) fn forgo_copies(&mut self, copies: &mut Vec<[u32; 2]>) {
        copies.retain(|&[from, to]| {
            let is_wanted = self.holders(to) > 0;
            if !is_wanted && let Some(at) = self.copied.iter().position(|&id| id == from) {
                self.copied.swap_remove(at);
                self.give_back(&[from], 0, 1);
            }
            is_wanted
        });
    }

    /// What is to be moved between the tiers before the copies that were asked for.
    pub fn moves(&self) -> &PageMoves {
        self.host.moves()
    }

    /// A block of the host comes back, for one holder.
    pub(super) fn fetch(&mut self, name: BlockHash) -> Option<u32> {
        // First of all its place is to stay.
        self.host.touch(name)?;
        let id = self.take()?;
        self.host.fetch(name, id);
        self.publish(id, name);
        Some(id)
    }

    /// Whether the host has the block of this name.
    pub(super) fn in_host(&self, name: BlockHash) -> bool {
        self.host.find(name).is_some()
    }

    /// To be called once the moves and copies that were asked for are done.
    pub fn settle(&mut self) {
        self.host.settle();
        for id in std::mem::take(&mut self.copied) {
            self.give_back(&[id], 0, 1);
        }
    }

    /// Makes a full block that is held known by its name. Where the name is known already, the other block keeps it.
    pub fn publish(&mut self, id: u32, name: BlockHash) {
        let block = &mut self.blocks[id as usize];
        if block.holders > 0 && block.name.is_none() && !self.names.contains_key(&name) {
            block.name = Some(name);
            self.names.insert(name, id);
        }
    }

    /// What the blocks hold is lost: nothing is known by name any more.
    pub fn forget(&mut self) {
        self.names.clear();
        self.free.extend(std::mem::take(&mut self.idle).into_iter().map(|(_, id)| id));
        self.blocks.iter_mut().for_each(|block| (block.name, block.scores) = (None, None));
        self.scored = 0;
        self.host = Host::new(self.host.capacity());
    }

    /// Remembers the log-probabilities of a full block's tokens, as long as the block of this name is known: that, or the
    /// one that is about to be published under it.
    pub(crate) fn set_scores(&mut self, id: u32, name: BlockHash, scores: Box<[f32]>) {
        let id = self.find(name).unwrap_or(id);
        let before = self.blocks[id as usize].scores.replace(scores);
        self.scored += usize::from(before.is_none());
    }

    /// What is remembered of the block of this name.
    pub fn scores(&self, name: BlockHash) -> Option<&[f32]> {
        self.blocks[self.find(name)? as usize].scores.as_deref()
    }

    /// The block of this name.
    pub fn find(&self, name: BlockHash) -> Option<u32> {
        self.names.get(&name).copied()
    }

    /// How many blocks of a prefix, from its start, are known: O(log blocks), as ends are given up before starts. May be
    /// too many where a prefix has a hole, which a window's blocks can leave.
    pub fn known(&self, names: &[BlockHash]) -> usize {
        names.partition_point(|&name| self.names.contains_key(&name) || self.in_host(name))
    }
}
