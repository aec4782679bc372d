//! Names of full blocks: a block is named by its tokens and by the name of the block before it, so equal names mean
//! equal prefixes.

use std::hash::{BuildHasher, RandomState};

/// The name of a full block and of everything before it, 128 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockHash(u64, u64);

/// Names blocks. Its keys are drawn at random: nobody outside of the process can make two prefixes meet.
#[derive(Clone, Debug)]
pub struct BlockHasher(RandomState, RandomState);

impl Default for BlockHasher {
    fn default() -> Self {
        Self(RandomState::new(), RandomState::new())
    }
}

impl BlockHasher {
    /// What stands before a sequence's first block. Sequences with different salts never share a block.
    pub fn root(&self, salt: u64) -> BlockHash {
        BlockHash(self.0.hash_one(salt), self.1.hash_one(salt))
    }

    /// The name of a block of `tokens` behind `parent`.
    pub fn next(&self, parent: BlockHash, tokens: &[u32]) -> BlockHash {
        BlockHash(self.0.hash_one((parent, tokens)), self.1.hash_one((parent, tokens)))
    }
}
