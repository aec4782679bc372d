//! Block tables: which blocks hold the positions of one sequence.

use super::blocks::Blocks;
use super::hash::BlockHash;

/// The blocks of one sequence, in order. Dropping it releases nothing: see [`Blocks::release`].
#[derive(Debug, Default)]
pub struct Table {
    blocks: Vec<u32>,
    /// This many at the start lie outside the sliding window and are released.
    gone: usize,
    number: u64,
}

impl Table {
    /// Entry `p / block_size` holds position `p`. Entries outside the window are stale: their blocks may have other
    /// users.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// A version: with the same number, the table has the same blocks within the window, and perhaps more at the end.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Blocks {
    /// Blocks that hold `tokens` tokens.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size())
    }

    /// How many blocks of a prefix would be reused, and how many available blocks that takes: idle ones, and one for
    /// each that is fetched from the host. For `fetch` see `reusable_prefix_len`.
    pub fn peek(&self, hashes: &[BlockHash], fetch: usize) -> (usize, usize) {
        let hits = self.reusable_prefix_len(hashes, fetch);
        let is_taken = |&&hash: &&BlockHash| self.find(hash).is_none_or(|block| self.ref_count(block) == 0);
        (hits, hashes[..hits].iter().filter(is_taken).count())
    }

    /// A table of the reused blocks of a prefix. Those in host memory are fetched with the next step. `fetch` as for
    /// [`peek`](Self::peek).
    pub fn table_of(&mut self, hashes: &[BlockHash], fetch: usize) -> Table {
        let known = hashes[..self.reusable_prefix_len(hashes, fetch)].iter().map(|&hash| self.find(hash));
        let known: Vec<Option<u32>> = known.collect();
        // First, so that fetching does not evict them.
        known.iter().flatten().for_each(|&block| self.hold(block));
        let mut blocks = Vec::with_capacity(known.len());
        for (i, block) in known.iter().enumerate() {
            let Some(block) = block.or_else(|| self.fetch(hashes[i])) else {
                for (i, &block) in known.iter().enumerate().skip(i).filter_map(|(i, block)| Some((i, block.as_ref()?)))
                {
                    self.give_back(&[block], i, known.len());
                }
                break;
            };
            blocks.push(block);
        }
        Table { blocks, gone: 0, number: self.number() }
    }

    /// Allocates blocks for writing positions `from..to`. Where the block of `from` is shared, a copy replaces it (copy
    /// on write): the pair `[from, to]` is added to `copies`. False, with nothing changed, where there are too few
    /// blocks.
    pub fn extend(&mut self, table: &mut Table, from: usize, to: usize, copies: &mut Vec<[u32; 2]>) -> bool {
        let more = self.blocks_for(to).saturating_sub(table.blocks.len());
        let written = table.blocks.get_mut(from / self.block_size());
        let shared = written.filter(|block| from < to && self.ref_count(**block) > 1);
        if more + usize::from(shared.is_some()) > self.available() {
            return false;
        }
        if let Some(block) = shared
            && let Some(fresh) = self.take()
        {
            let old = std::mem::replace(block, fresh);
            self.keep_copied(old);
            table.number = self.number();
            copies.push([old, fresh]);
        }
        table.blocks.extend((0..more).map_while(|_| self.take()));
        if table.number == 0 {
            table.number = self.number();
        }
        true
    }

    /// A second table of the same blocks.
    pub fn fork(&mut self, table: &Table) -> Table {
        table.blocks[table.gone..].iter().for_each(|&block| self.hold(block));
        Table { blocks: table.blocks.clone(), gone: table.gone, number: self.number() }
    }

    /// Releases the blocks that hold only positions before `first`.
    pub fn slide(&mut self, table: &mut Table, first: usize) {
        let gone = (first / self.block_size()).min(table.blocks.len());
        if gone > table.gone {
            self.give_back(&table.blocks[table.gone..gone], table.gone, table.blocks.len());
            table.gone = gone;
        }
    }

    /// Releases all blocks.
    pub fn release(&mut self, table: &mut Table) {
        self.give_back(&table.blocks[table.gone..], table.gone, table.blocks.len());
        *table = Table::default();
    }
}
