//! The blocks of one sequence.

use super::blocks::Blocks;
use super::hash::BlockHash;

/// The blocks of one sequence, in order. Does not give itself back: see [`Blocks::release`].
#[derive(Debug, Default)]
pub struct Table {
    blocks: Vec<u32>,
    /// So many in front lie behind the window, and are no longer held.
    gone: usize,
    number: u64,
}

impl Table {
    /// Entry `p / block_size` holds position `p`. Entries behind the window are those of blocks that may be anyone's.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// A number that goes with the blocks: another one means other blocks, the same one the same, but for more at the end
    /// and those behind the window.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Blocks {
    /// Blocks that `tokens` tokens fill, the last perhaps in part.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size())
    }

    /// The known blocks of a prefix, from its start, as far as that saves time, and how many of those that can be taken they
    /// take: idle ones, and one for each that the host has. While one comes from there, `fetch` tokens at the start of a
    /// sequence could be computed.
    pub fn peek(&self, names: &[BlockHash], fetch: usize) -> (usize, usize) {
        let hits = self.worthwhile(names, fetch);
        let is_taken = |&&name: &&BlockHash| self.find(name).is_none_or(|block| self.holders(block) == 0);
        (hits, names[..hits].iter().filter(is_taken).count())
    }

    /// A table of the known blocks of a prefix, from its start, as far as that saves time. Those that the host has come back
    /// with the next step. `fetch` as for [`peek`](Self::peek).
    pub fn table_of(&mut self, names: &[BlockHash], fetch: usize) -> Table {
        let known = names[..self.worthwhile(names, fetch)].iter().map(|&name| self.find(name));
        let known: Vec<Option<u32>> = known.collect();
        // Before any is taken for others.
        known.iter().flatten().for_each(|&block| self.hold(block));
        let mut blocks = Vec::with_capacity(known.len());
        for (i, block) in known.iter().enumerate() {
            let Some(block) = block.or_else(|| self.fetch(names[i])) else {
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

    /// Makes room for positions `from..to` to be written. Where others hold the block of `from` too, a fresh one takes its
    /// place, and the pair `[from, to]` to copy before that is added to `copies`. False where blocks are short; nothing
    /// has changed then.
    pub fn extend(&mut self, table: &mut Table, from: usize, to: usize, copies: &mut Vec<[u32; 2]>) -> bool {
        let more = self.blocks_for(to).saturating_sub(table.blocks.len());
        let written = table.blocks.get_mut(from / self.block_size());
        let shared = written.filter(|block| from < to && self.holders(**block) > 1);
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

    /// Another table of the same blocks.
    pub fn fork(&mut self, table: &Table) -> Table {
        table.blocks[table.gone..].iter().for_each(|&block| self.hold(block));
        Table { blocks: table.blocks.clone(), gone: table.gone, number: self.number() }
    }

    /// Gives back the blocks that hold no position from `first` on.
    pub fn slide(&mut self, table: &mut Table, first: usize) {
        let gone = (first / self.block_size()).min(table.blocks.len());
        if gone > table.gone {
            self.give_back(&table.blocks[table.gone..gone], table.gone, table.blocks.len());
            table.gone = gone;
        }
    }

    /// Gives all blocks back.
    pub fn release(&mut self, table: &mut Table) {
        self.give_back(&table.blocks[table.gone..], table.gone, table.blocks.len());
        *table = Table::default();
    }
}
