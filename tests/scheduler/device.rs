//! A fake device: its memory holds tokens instead of keys and values, and its model is a hash of all visible tokens.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use burrstone::scheduler::{Outcome, Scheduler};

/// Memory in blocks of `block_size` tokens.
pub struct Device {
    block_size: usize,
    slots: Vec<Option<u32>>,
    host: HashMap<u32, Vec<Option<u32>>>,
    window: usize,
}

/// A hash of the argument.
pub fn mixed(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The model's next token for branch number `branch` of a request.
pub fn next_token(tokens: &[u32], window: usize, branch: usize) -> u32 {
    let seen = &tokens[tokens.len().saturating_sub(window)..];
    (mixed((seen, branch)) % 1000) as u32
}

/// The token of a guided sequence, from its own next token and its negative prompt's.
pub fn guided(own: u32, negative: u32) -> u32 {
    (mixed((own, negative)) % 1000) as u32
}

impl Device {
    pub fn new(blocks: usize, block_size: usize, window: Option<usize>) -> Self {
        Self {
            block_size,
            slots: vec![None; blocks * block_size],
            host: HashMap::new(),
            window: window.unwrap_or(usize::MAX),
        }
    }

    /// Clears the memory.
    pub fn lose(&mut self) {
        self.slots.fill(None);
        self.host.clear();
    }

    pub fn copy(&mut self, copies: &[[u32; 2]]) {
        let mut written = HashSet::new();
        for &[from, to] in copies {
            assert!(written.insert(to) && !copies.iter().any(|&[from, _]| from == to), "{copies:?}");
            let [from, to] = [from, to].map(|block| block as usize * self.block_size);
            self.slots.copy_within(from..from + self.block_size, to);
        }
    }

    fn slot(&self, blocks: &[u32], position: usize) -> usize {
        blocks[position / self.block_size] as usize * self.block_size + position % self.block_size
    }

    pub fn write(&mut self, blocks: &[u32], position: usize, token: u32) {
        let slot = self.slot(blocks, position);
        self.slots[slot] = Some(token);
    }

    pub fn at(&self, blocks: &[u32], position: usize) -> Option<u32> {
        self.slots[self.slot(blocks, position)]
    }

    /// The tokens that a query at the last of `len` positions sees.
    pub fn read(&self, blocks: &[u32], len: usize) -> Vec<u32> {
        let seen = len.saturating_sub(self.window)..len;
        seen.map(|position| self.at(blocks, position).expect("reads only written positions")).collect()
    }

    /// Executes the plan. Tokens are computed from the memory's contents.
    pub fn run(&mut self, scheduler: &Scheduler, mut last: impl FnMut(usize, u32) -> bool) -> Vec<Outcome> {
        let plan = scheduler.plan();
        let span = |block: u32| block as usize * self.block_size..(block as usize + 1) * self.block_size;
        for &[block, place] in &plan.moves.to_host {
            self.host.insert(place, self.slots[span(block)].to_vec());
        }
        for &[place, block] in &plan.moves.from_host {
            self.slots[span(block)].copy_from_slice(&self.host[&place]);
        }
        self.copy(&plan.copies);
        let mut written = HashSet::new();
        for chunk in &plan.chunks {
            let view = scheduler.view(chunk.sequence).unwrap();
            for position in chunk.start..chunk.start + chunk.len {
                assert!(written.insert(self.slot(view.blocks, position)), "two tokens in one slot");
                self.write(view.blocks, position, view.tokens[position]);
            }
        }
        let mut outcomes = Vec::new();
        let mut negatives = HashMap::new();
        for chunk in &plan.chunks {
            let view = scheduler.view(chunk.sequence).unwrap();
            for len in chunk.start + 1..=chunk.start + chunk.len {
                let seen = self.read(view.blocks, len);
                assert_eq!(seen, view.tokens[len.saturating_sub(self.window)..len], "{chunk:?} at {len}");
            }
            assert!(!chunk.sample || chunk.start + chunk.len == view.tokens.len());
            if chunk.sample {
                let seen = self.read(view.blocks, view.tokens.len());
                if let Some(lead) = scheduler.guides(chunk.sequence) {
                    negatives.insert(lead, next_token(&seen, usize::MAX, 0));
                    continue;
                }
                for &sequence in std::iter::once(&chunk.sequence).chain(scheduler.branches(chunk.sequence)) {
                    let own = next_token(&seen, usize::MAX, sequence.slot());
                    let token = negatives.remove(&sequence).map_or(own, |negative| guided(own, negative));
                    outcomes.push(Outcome { sequence, token, last: last(sequence.slot(), token) });
                }
            }
        }
        assert!(negatives.is_empty(), "a negative sequence runs without its sequence");
        outcomes
    }
}
