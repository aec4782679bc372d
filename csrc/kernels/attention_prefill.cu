// Attention of many queries of each sequence. Blocks [tiles of queries and key heads, rows of a tile in batches].
#ifndef BURRSTONE_KERNELS_ATTENTION_PREFILL_CU
#define BURRSTONE_KERNELS_ATTENTION_PREFILL_CU

#include "abi/attention_prefill.h"
#include "kernels/attention_tile.cuh"

namespace burrstone {

template <class V> struct attention_prefill_shared : AttentionShared<V, V::share> {};

template <class V>
BURRSTONE_DEVICE void attention_prefill(const attention_prefill_args &args, attention_prefill_shared<V> &shared) {
    const auto tile = load(pointer<const attention_tile>(args.tiles) + block_index_x() / args.kv_heads);
    const auto span = load(pointer<const attention_span>(args.spans) + tile.span);
    if (tile.first >= span.len) return;
    const uint32_t left = span.len - tile.first, queries = left < args.tile_queries ? left : args.tile_queries;
    const uint32_t group = args.heads / args.kv_heads, last = (tile.first + queries) * group;
    constexpr uint32_t ROWS = attention_prefill_shared<V>::ROWS;
    for (uint32_t begin = tile.first * group + block_index_y() * ROWS; begin < last; begin += grid_size_y() * ROWS) {
        const AttentionPart part{span, block_index_x() % args.kv_heads, begin,
            begin + ROWS < last ? begin + ROWS : last};
        AttentionBlock<V, V::share, attention_prefill_args> block(args, part, shared);
        const AttentionRows<attention_prefill_args> rows(args, span, part.kv_head);
        block.run(0, ALL_POSITIONS, [&](uint32_t row, uint32_t column, const AttentionSum &sums,
            const float (&out)[2]) {
            rows.template write<typename V::dtype>(row, column, sums, out);
        });
    }
}

} // namespace burrstone

#endif
