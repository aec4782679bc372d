//! What fits and how fast it runs: memory budgets, the size of the KV cache, the time of a step on a GPU.

mod budget;
mod estimate;
mod gpu;
pub(super) mod memory;

use super::scheduler::CacheSize;
use crate::model::ArchSpec;

pub(super) use budget::KvBudget;
pub use budget::KvLimit;
pub use estimate::Capacity;
#[cfg(test)]
pub(super) use gpu::tests::llama_8b;
pub use gpu::{GpuModel, head_product, layer_products};

/// Tokens of one KV page.
pub const PAGE_SIZE: usize = 32;

/// The KV cache as the scheduler sees it.
pub fn cache_size(spec: &ArchSpec, blocks: usize) -> CacheSize {
    // What no layer sees any more is given back: one that sees all keeps all.
    let windows: Option<Vec<usize>> = spec.windows.iter().copied().collect();
    let window = windows.and_then(|windows| windows.into_iter().max());
    let parameters: usize = spec.products().iter().map(|[n, k]| n * k).sum();
    // A multiply-add for each parameter, and two for each element of a query and position that it sees.
    let balance = parameters / (2 * spec.heads * spec.head_dim).max(1);
    CacheSize { blocks, block_size: PAGE_SIZE, window, balance }
}

/// Tokens of a typical request, prompt and output: 1024 together, or half of a shorter context, a quarter of them output.
pub fn typical_request(context: usize) -> [usize; 2] {
    let tokens = 1024.min(context.div_ceil(2));
    let output = tokens.div_ceil(4);
    [tokens - output, output]
}
