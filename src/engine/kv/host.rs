//! The host tier: evicted blocks in host memory, by hash. The least recently used is dropped first.

use std::collections::{BTreeSet, HashMap};

use super::hash::BlockHash;
use crate::ops::PageMoves;

/// Places in host memory, one block each.
pub(super) struct Host {
    capacity: usize,
    places: Vec<Place>,
    by_hash: HashMap<BlockHash, u32>,
    /// Places in order of last use.
    order: BTreeSet<(u64, u32)>,
    uses: u64,
    /// `uses` before the step that is planned. Places used since are needed by its moves.
    before: u64,
    moves: PageMoves,
}

struct Place {
    hash: BlockHash,
    used: u64,
}

impl Host {
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.min(u32::MAX as usize);
        let (places, by_hash, order) = (Vec::new(), HashMap::new(), BTreeSet::new());
        Self { capacity, places, by_hash, order, uses: 0, before: 0, moves: PageMoves::default() }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Blocks in the tier.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub fn moves(&self) -> &PageMoves {
        &self.moves
    }

    /// The planned moves are enqueued on the device: others can be planned.
    pub fn commit(&mut self) {
        self.moves.to_host.clear();
        self.moves.from_host.clear();
        self.before = self.uses;
    }

    pub fn find(&self, hash: BlockHash) -> Option<u32> {
        self.by_hash.get(&hash).copied()
    }

    /// Marks a block as used: it is not dropped in this step.
    pub fn touch(&mut self, hash: BlockHash) -> Option<u32> {
        let at = self.find(hash)?;
        let place = &mut self.places[at as usize];
        self.order.remove(&(place.used, at));
        self.uses += 1;
        place.used = self.uses;
        self.order.insert((self.uses, at));
        Some(at)
    }

    /// Plans to store an evicted block, if there is a place for it.
    pub fn keep(&mut self, hash: BlockHash, block: u32) {
        if self.touch(hash).is_some() {
            return;
        }
        let used = self.uses + 1;
        let at = if self.places.len() < self.capacity {
            self.places.push(Place { hash, used });
            self.places.len() as u32 - 1
        } else {
            let Some(&(last, at)) = self.order.first().filter(|(last, _)| *last <= self.before) else { return };
            self.order.remove(&(last, at));
            let old = std::mem::replace(&mut self.places[at as usize], Place { hash, used });
            self.by_hash.remove(&old.hash);
            at
        };
        self.uses = used;
        self.order.insert((used, at));
        self.by_hash.insert(hash, at);
        self.moves.to_host.push([block, at]);
    }

    /// Plans to fetch a block into this block of the device.
    pub fn fetch(&mut self, hash: BlockHash, block: u32) {
        if let Some(at) = self.touch(hash) {
            self.moves.from_host.push([at, block]);
        }
    }
}
