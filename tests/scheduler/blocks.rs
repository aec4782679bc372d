//! Checks `Blocks` against a model that counts references, and against a memory that must still hold what each table
//! wrote.

use burrstone::kv::{BlockHash, BlockHasher, Blocks, Table};

use crate::device::Device;

const SIZE: usize = 4;
const BLOCKS: usize = 24;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

#[derive(Default)]
struct Sequence {
    tokens: Vec<u32>,
    table: Table,
    /// The first position inside the window.
    first: usize,
}

struct Lab {
    blocks: Blocks,
    hasher: BlockHasher,
    device: Device,
    sequences: Vec<Sequence>,
    random: Random,
    operations: usize,
}

impl Lab {
    fn new(seed: u64) -> Self {
        Self {
            blocks: Blocks::new(BLOCKS, SIZE, 64),
            hasher: BlockHasher::default(),
            device: Device::new(BLOCKS, SIZE, None),
            sequences: Vec::new(),
            random: Random(seed),
            operations: 0,
        }
    }

    fn names(&self, tokens: &[u32]) -> Vec<BlockHash> {
        let mut last = self.hasher.root(0);
        let name = |block: &[u32]| {
            last = self.hasher.next(last, block);
            last
        };
        tokens.chunks_exact(SIZE).map(name).collect()
    }

    /// A sequence with a random prompt, as far as the prefix cache has it.
    fn begin(&mut self) {
        // Prompts consist of one of two tokens, so that prefix hits are common.
        let letter = self.random.below(2) as u32;
        let tokens = vec![letter; self.random.below(5 * SIZE)];
        let names = self.names(&tokens);
        let (hits, idle) = self.blocks.peek(&names, 0);
        let before = self.blocks.counts();
        let table = self.blocks.table_of(&names, 0);
        assert_eq!(table.blocks().len(), hits);
        assert_eq!(self.blocks.counts().idle, before.idle - idle);
        let tokens = tokens[..hits * SIZE].to_vec();
        assert_eq!(self.device.read(table.blocks(), tokens.len()), tokens, "a hash leads to other tokens");
        self.sequences.push(Sequence { tokens, table, first: 0 });
    }

    /// Writes some tokens, mostly the same as other sequences.
    fn extend(&mut self, which: usize) {
        let more = 1 + self.random.below(6);
        let token = self.random.below(3) as u32;
        let sequence = &mut self.sequences[which];
        let tokens = sequence.tokens.len() + more;
        let (before, from) = (self.blocks.counts(), sequence.tokens.len());
        let blocks = sequence.table.blocks();
        let shared = blocks.get(from / SIZE).is_some_and(|&block| self.blocks.ref_count(block) > 1);
        let needed = tokens.div_ceil(SIZE) - blocks.len() + usize::from(shared);
        let mut copies = Vec::new();
        let fits = self.blocks.extend(&mut sequence.table, from, tokens, &mut copies);
        assert_eq!(fits, needed <= before.free + before.idle);
        assert_eq!(copies.len(), usize::from(fits && shared));
        if !fits {
            assert_eq!(self.blocks.counts(), before);
            return;
        }
        self.device.copy(&copies);
        for _ in 0..more {
            let position = sequence.tokens.len();
            assert_eq!(
                self.blocks.ref_count(sequence.table.blocks()[position / SIZE]),
                1,
                "a shared block would be written"
            );
            self.device.write(sequence.table.blocks(), position, token);
            sequence.tokens.push(token);
        }
        let tokens = sequence.tokens.clone();
        let sequence = &self.sequences[which];
        for (i, name) in self.names(&tokens).into_iter().enumerate() {
            if (i + 1) * SIZE > sequence.first {
                self.blocks.publish(sequence.table.blocks()[i], name);
            }
        }
    }

    fn fork(&mut self, which: usize) {
        let of = &self.sequences[which];
        let (table, tokens, first) = (self.blocks.fork(&of.table), of.tokens.clone(), of.first);
        self.sequences.push(Sequence { tokens, table, first });
    }

    fn slide(&mut self, which: usize) {
        let sequence = &mut self.sequences[which];
        let first = self.random.below(sequence.tokens.len() + 1);
        sequence.first = sequence.first.max(first / SIZE * SIZE);
        self.blocks.slide(&mut sequence.table, first);
    }

    fn step(&mut self) {
        let count = self.sequences.len();
        match self.random.below(12) {
            0..2 => self.begin(),
            _ if count == 0 => self.begin(),
            2..8 => self.extend(self.operations % count),
            8 => self.fork(self.operations % count),
            9 => self.slide(self.operations % count),
            10 => self.blocks.commit(),
            _ => {
                let mut gone = self.sequences.swap_remove(self.operations % count);
                self.blocks.release(&mut gone.table);
                assert!(gone.table.blocks().is_empty());
            }
        }
        self.operations += 1;
        // With more sequences at a time the cache would always be full.
        if self.sequences.len() > 8 {
            let mut gone = self.sequences.swap_remove(0);
            self.blocks.release(&mut gone.table);
        }
    }

    fn check(&mut self) {
        let mut holders = [0; BLOCKS];
        for sequence in &self.sequences {
            let (blocks, first) = (sequence.table.blocks(), sequence.first);
            for &block in &blocks[first / SIZE..] {
                holders[block as usize] += 1;
            }
            for position in first..sequence.tokens.len() {
                assert_eq!(self.device.at(blocks, position), Some(sequence.tokens[position]), "position {position}");
            }
        }
        // Sources of copies keep a reference until the copies are done.
        self.blocks.commit();
        let counts = self.blocks.counts();
        assert_eq!(counts.held, holders.iter().filter(|&&n| n > 0).count());
        assert_eq!(counts.free + counts.idle + counts.held, BLOCKS);
        assert!((0..).zip(holders).all(|(block, n)| self.blocks.ref_count(block) == n));
    }
}

/// A million random operations: reference counts match the tables, a table's memory keeps what it wrote, and a hash
/// leads to the tokens it was computed from.
#[test]
fn blocks_are_never_lost_nor_given_twice() {
    for seed in 0..20 {
        let mut lab = Lab::new(seed);
        for _ in 0..50_000 {
            lab.step();
            lab.check();
        }
        for mut sequence in std::mem::take(&mut lab.sequences) {
            lab.blocks.release(&mut sequence.table);
        }
        lab.check();
        assert_eq!(lab.blocks.available(), BLOCKS);
    }
}

fn publish(blocks: &mut Blocks, hasher: &BlockHasher, root: u64, len: usize) -> Vec<BlockHash> {
    let mut table = Table::default();
    assert!(blocks.extend(&mut table, 0, len * SIZE, &mut Vec::new()));
    let mut last = hasher.root(root);
    let mut names = Vec::new();
    for &block in table.blocks() {
        last = hasher.next(last, &[0; SIZE]);
        blocks.publish(block, last);
        names.push(last);
    }
    blocks.release(&mut table);
    names
}

#[test]
fn the_end_of_a_prefix_goes_before_its_start_and_the_least_used_prefix_first() {
    let (mut blocks, hasher) = (Blocks::new(8, SIZE, 1 << 20), BlockHasher::default());
    let old = publish(&mut blocks, &hasher, 1, 4);
    let new = publish(&mut blocks, &hasher, 2, 4);
    let mut table = Table::default();
    for taken in 1..=8 {
        assert!(blocks.extend(&mut table, (taken - 1) * SIZE, taken * SIZE, &mut Vec::new()));
        assert_eq!(blocks.known(&old), 4usize.saturating_sub(taken));
        assert_eq!(blocks.known(&new), 4 - taken.saturating_sub(4));
    }
    assert!(!blocks.extend(&mut table, 8 * SIZE, 9 * SIZE, &mut Vec::new()));
}

/// A long prefix, which is expensive to compute, outlives short ones that came later, but is evicted in the end.
#[test]
fn expensive_prefixes_are_kept_longer() {
    let (mut blocks, hasher) = (Blocks::new(32, SIZE, 16), BlockHasher::default());
    let dear = publish(&mut blocks, &hasher, 0, 16);
    let mut survived = 0;
    while blocks.known(&dear) == 16 {
        publish(&mut blocks, &hasher, 1 + survived, 2);
        survived += 1;
        assert!(survived < 1000);
    }
    // Pure LRU would evict it with the ninth short prefix, when the 16 other blocks are used up.
    assert!(survived > 16, "{survived}");
}

#[test]
fn salts_keep_prefixes_apart() {
    let (mut blocks, hasher) = (Blocks::new(8, SIZE, 64), BlockHasher::default());
    publish(&mut blocks, &hasher, 1, 2);
    let other = hasher.next(hasher.root(2), &[0; SIZE]);
    assert_eq!(blocks.peek(&[other], 0), (0, 0));
    let same = hasher.next(hasher.root(1), &[0; SIZE]);
    assert_eq!(blocks.peek(&[same], 0), (1, 1));
}

/// `fetch`: tokens that the device computes while one block comes from the host. Of a text of six blocks the device still
/// holds the first `left`.
#[test]
fn blocks_are_fetched_from_the_host_if_that_is_faster() {
    let hasher = BlockHasher::default();
    let tokens: Vec<u32> = (0..6 * SIZE as u32).collect();
    let mut last = hasher.root(0);
    let names: Vec<BlockHash> = tokens
        .chunks_exact(SIZE)
        .map(|block| {
            last = hasher.next(last, block);
            last
        })
        .collect();
    // With attention a token costs twice as much at position 8: the blocks cost 4, 6, 8, 10, 12 and 14 tokens.
    for (fetch, left, expected) in [
        (0, 0, 6),
        (5, 0, 6),
        // Fetching costs 9 a block: all six cost as much as computing them.
        (9, 0, 6),
        (10, 0, 0),
        // The first two are on the device, so the saving on the later ones pays for fetching all.
        (10, 2, 6),
        (14, 2, 2),
        (100, 6, 6),
        (100, 3, 3),
        // Fetching is disabled.
        (usize::MAX, 2, 2),
    ] {
        let mut blocks = Blocks::new(6, SIZE, 8).with_host(100);
        let mut table = Table::default();
        assert!(blocks.extend(&mut table, 0, tokens.len(), &mut Vec::new()));
        table.blocks().iter().zip(&names).for_each(|(&block, &name)| blocks.publish(block, name));
        blocks.release(&mut table);
        // The last blocks of a sequence are evicted first.
        let mut others = Table::default();
        assert!(blocks.extend(&mut others, 0, (6 - left) * SIZE, &mut Vec::new()));
        blocks.release(&mut others);
        assert_eq!(blocks.counts().host, 6 - left);
        let (hits, taken) = blocks.peek(&names, fetch);
        assert_eq!((hits, taken), (expected, expected), "{fetch} {left}");
        assert_eq!(blocks.table_of(&names, fetch).blocks().len(), expected);
    }
}
