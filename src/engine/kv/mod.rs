//! KV blocks: which pages of the cache are free, which belong to whom, and what is remembered of those that nobody
//! holds. A block is one page of the device's cache; nothing here touches the device.

mod blocks;
mod hash;
mod host;
mod table;

pub use blocks::{Blocks, Counts};
pub use hash::{BlockHash, BlockHasher};
pub use table::Table;
