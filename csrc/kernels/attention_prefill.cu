// Attention of many queries of each sequence. One block a tile of queries and key head.
#ifndef BURRSTONE_KERNELS_ATTENTION_PREFILL_CU
#define BURRSTONE_KERNELS_ATTENTION_PREFILL_CU

#include "abi/attention_prefill.h"
#include "kernels/attention_row.cuh"

namespace burrstone {

// Rows of a warp: each key that is read from shared memory and converted serves four. Eight would halve the warps that
// a multiprocessor has registers for.
constexpr int PREFILL_ROWS = 4;

template <class V> struct attention_prefill_shared : AttentionShared<V, PREFILL_ROWS> {};

template <class V>
BURRSTONE_DEVICE void attention_prefill(const attention_prefill_args &args, attention_prefill_shared<V> &shared) {
    const auto tile = load(pointer<const attention_tile>(args.tiles) + block_index_x() / args.kv_heads);
    const auto span = load(pointer<const attention_span>(args.spans) + tile.span);
    if (tile.first >= span.len) return;
    const uint32_t left = span.len - tile.first;
    const uint32_t queries = left < args.tile_queries ? left : args.tile_queries;
    const AttentionPart part{span, tile.first, queries, block_index_x() % args.kv_heads};
    AttentionBlock<V, PREFILL_ROWS, attention_prefill_args>(args, part, shared).run();
}

} // namespace burrstone

#endif
