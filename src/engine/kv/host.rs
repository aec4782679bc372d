//! The host's tier: blocks that the device gave up, by name, until their places are needed for others. The least
//! recently used goes first.

use std::collections::{BTreeSet, HashMap};

use super::hash::BlockHash;
use crate::ops::PageMoves;

/// Places in the host's memory, each for a block.
pub(super) struct Host {
    capacity: usize,
    places: Vec<Place>,
    names: HashMap<BlockHash, u32>,
    /// Places by their last use.
    order: BTreeSet<(u64, u32)>,
    uses: u64,
    /// Uses before the step that is planned: its own moves need their places.
    before: u64,
    moves: PageMoves,
}

struct Place {
    name: BlockHash,
    used: u64,
}

impl Host {
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.min(u32::MAX as usize);
        let (places, names, order) = (Vec::new(), HashMap::new(), BTreeSet::new());
        Self { capacity, places, names, order, uses: 0, before: 0, moves: PageMoves::default() }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Blocks that are here.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn moves(&self) -> &PageMoves {
        &self.moves
    }

    /// The moves so far are done; others will be planned.
    pub fn settle(&mut self) {
        self.moves.to_host.clear();
        self.moves.from_host.clear();
        self.before = self.uses;
    }

    pub fn find(&self, name: BlockHash) -> Option<u32> {
        self.names.get(&name).copied()
    }

    /// The place of this name is in use: it is not given up in this step.
    pub fn touch(&mut self, name: BlockHash) -> Option<u32> {
        let at = self.find(name)?;
        let place = &mut self.places[at as usize];
        self.order.remove(&(place.used, at));
        self.uses += 1;
        place.used = self.uses;
        self.order.insert((self.uses, at));
        Some(at)
    }

    /// Takes a block in that the device gives up, if there is a place for it.
    pub fn keep(&mut self, name: BlockHash, block: u32) {
        if self.touch(name).is_some() {
            return;
        }
        let used = self.uses + 1;
        let at = if self.places.len() < self.capacity {
            self.places.push(Place { name, used });
            self.places.len() as u32 - 1
        } else {
            let Some(&(last, at)) = self.order.first().filter(|(last, _)| *last <= self.before) else { return };
            self.order.remove(&(last, at));
            let old = std::mem::replace(&mut self.places[at as usize], Place { name, used });
            self.names.remove(&old.name);
            at
        };
        self.uses = used;
        self.order.insert((used, at));
        self.names.insert(name, at);
        self.moves.to_host.push([block, at]);
    }

    /// What is here comes to this block.
    pub fn fetch(&mut self, name: BlockHash, block: u32) {
        if let Some(at) = self.touch(name) {
            self.moves.from_host.push([at, block]);
        }
    }
}
