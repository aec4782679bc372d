//! Prefix hashes: a full block's hash covers its tokens and the hash of the block before it, so equal hashes mean equal
//! prefixes.

use std::hash::{BuildHasher, RandomState};

/// The hash of a full block and of everything before it, 128 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockHash(u64, u64);

/// Hashes blocks. Its keys are random, so that nobody outside the process can construct a collision.
#[derive(Clone, Debug)]
pub struct BlockHasher(RandomState, RandomState);

impl Default for BlockHasher {
    fn default() -> Self {
        Self(RandomState::new(), RandomState::new())
    }
}

impl BlockHasher {
    /// The parent of a sequence's first block. Sequences with different salts never share a block.
    pub fn root(&self, salt: u64) -> BlockHash {
        BlockHash(self.0.hash_one(salt), self.1.hash_one(salt))
    }

    /// The hash of a block of `tokens` that follows `parent`.
    pub fn next(&self, parent: BlockHash, tokens: &[u32]) -> BlockHash {
        BlockHash(self.0.hash_one((parent, tokens)), self.1.hash_one((parent, tokens)))
    }
}
