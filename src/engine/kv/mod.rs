//! KV blocks: the block pool, block tables, prefix hashes and the host tier.
//!
//! A block is one page of the device's KV cache. Nothing here touches the device: it decides which page is used for
//! what.

mod blocks;
mod hash;
mod host;
mod table;

pub use blocks::{Blocks, Counts};
pub use hash::{BlockHash, BlockHasher};
pub use table::Table;
