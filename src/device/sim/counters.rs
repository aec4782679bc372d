//! Memory cost of each call site on a GPU: wavefronts of shared memory, sectors of global memory.
//!
//! Here lanes run one after the other, so the accesses that are one instruction on a GPU must be put together again:
//! the n-th access of each lane of a warp at a call site belongs to the n-th instruction there.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::fault::Place;
use super::shadow::Access;
use super::sites::{SiteId, Sites};

const LANES: usize = 32;
/// Shared memory: 32 banks of one word of 4 bytes.
const BANKS: usize = 32;
const WORD: u64 = 4;
/// Global memory moves in sectors of 32 bytes.
const SECTOR: u64 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    Shared,
    Global,
}

/// The cost of a call site over a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteStats {
    pub place: Place,
    pub space: Space,
    /// Whether the site writes.
    pub store: bool,
    /// Warp instructions.
    pub instructions: u64,
    /// Wavefronts (shared) or sectors (global).
    pub cost: u64,
    /// The cost without bank conflicts, or with every byte of each sector used.
    pub ideal: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    site: SiteId,
    space: Space,
    store: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    instructions: u64,
    cost: u64,
    ideal: u64,
}

/// A warp instruction that some lanes have run.
#[derive(Debug, Clone)]
struct Instruction {
    addresses: [u64; LANES],
    active: u32,
    bytes: u32,
}

/// The instructions of a warp at a site that some lanes have not run yet.
#[derive(Debug, Default)]
struct Open {
    /// The number of the first open instruction.
    first: u64,
    /// Instructions that each lane has run.
    seen: [u64; LANES],
    instructions: VecDeque<Instruction>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    totals: HashMap<Key, Totals>,
    open: HashMap<(Key, usize), Open>,
}

impl Counters {
    pub(super) fn access(
        &mut self,
        space: Space,
        site: SiteId,
        access: Access,
        thread: usize,
        address: u64,
        bytes: u32,
    ) {
        let key = Key { site, space, store: matches!(access, Access::Store | Access::Atomic) };
        let lane = thread % LANES;
        let open = self.open.entry((key, thread / LANES)).or_default();
        let index = (open.seen[lane] - open.first) as usize;
        open.seen[lane] += 1;
        if index == open.instructions.len() {
            open.instructions.push_back(Instruction { addresses: [0; LANES], active: 0, bytes });
        }
        let instruction = &mut open.instructions[index];
        instruction.addresses[lane] = address;
        instruction.active |= 1 << lane;
        while open.instructions.front().is_some_and(|i| i.active == u32::MAX) {
            if let Some(done) = open.instructions.pop_front() {
                open.first += 1;
                add(&mut self.totals, key, &done);
            }
        }
    }

    /// Ends a block: instructions that some lanes did not run are counted without those.
    pub(super) fn end_block(&mut self) {
        for ((key, _), open) in self.open.drain() {
            for instruction in &open.instructions {
                add(&mut self.totals, key, instruction);
            }
        }
    }

    /// Statistics by source line.
    pub(super) fn report(&self, sites: &Sites) -> Vec<SiteStats> {
        let mut merged: BTreeMap<(String, u32, Space, bool), Totals> = BTreeMap::new();
        for (key, totals) in &self.totals {
            let Place { file, line } = sites.place(key.site);
            let into = merged.entry((file, line, key.space, key.store)).or_default();
            into.instructions += totals.instructions;
            into.cost += totals.cost;
            into.ideal += totals.ideal;
        }
        merged
            .into_iter()
            .map(|((file, line, space, store), t)| SiteStats {
                place: Place { file, line },
                space,
                store,
                instructions: t.instructions,
                cost: t.cost,
                ideal: t.ideal,
            })
            .collect()
    }
}

fn add(totals: &mut HashMap<Key, Totals>, key: Key, instruction: &Instruction) {
    let (cost, ideal) = match key.space {
        Space::Shared => wavefronts(instruction),
        Space::Global => sectors(instruction),
    };
    let totals = totals.entry(key).or_default();
    totals.instructions += 1;
    totals.cost += cost;
    totals.ideal += ideal;
}

/// Wavefronts of an instruction, and without bank conflicts. Lanes are served together while their words fill the banks
/// once: all 32 with 4 bytes each, half of them with 8, a quarter with 16. Lanes that read the same word share it.
fn wavefronts(instruction: &Instruction) -> (u64, u64) {
    let words = u64::from(instruction.bytes).div_ceil(WORD);
    let together = LANES / words as usize;
    let (mut cost, mut ideal) = (0, 0);
    for first in (0..LANES).step_by(together) {
        let mut banks: [Vec<u64>; BANKS] = Default::default();
        for lane in (first..first + together).filter(|lane| instruction.active >> lane & 1 == 1) {
            let start = instruction.addresses[lane] / WORD;
            for word in start..start + words {
                let bank = &mut banks[word as usize % BANKS];
                if !bank.contains(&word) {
                    bank.push(word);
                }
            }
        }
        let most = banks.iter().map(Vec::len).max().unwrap_or(0) as u64;
        cost += most;
        ideal += most.min(1);
    }
    (cost, ideal)
}

/// Sectors touched, and sectors that the distinct bytes would fill.
fn sectors(instruction: &Instruction) -> (u64, u64) {
    let mut touched: Vec<u64> = Vec::with_capacity(2 * LANES);
    let mut starts: Vec<u64> =
        (0..LANES).filter(|lane| instruction.active >> lane & 1 == 1).map(|lane| instruction.addresses[lane]).collect();
    starts.sort_unstable();
    let (mut covered, mut distinct) = (0, 0);
    for start in starts {
        let end = start + u64::from(instruction.bytes);
        distinct += end.saturating_sub(start.max(covered));
        covered = covered.max(end);
        for sector in start / SECTOR..=(end - 1) / SECTOR {
            if touched.last() != Some(&sector) {
                touched.push(sector);
            }
        }
    }
    (touched.len() as u64, distinct.div_ceil(SECTOR))
}
