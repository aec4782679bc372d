// Prefill attention: many queries per sequence. Grid [query tiles x key heads, blocks per tile].
#ifndef BURRSTONE_KERNELS_ATTENTION_PREFILL_CU
#define BURRSTONE_KERNELS_ATTENTION_PREFILL_CU

#include "abi/attention_prefill.h"
#include "kernels/attention_tile.cuh"
#include "kernels/attention_warpgroup.cuh"

namespace burrstone {

template <class V> struct attention_prefill_shared : AttentionShared<V, V::share> {};

// Calls f(part) for each part of the block's.
template <class V, class F> BURRSTONE_DEVICE void each_part(const attention_prefill_args &args, F f) {
    const auto tile = load(pointer<const attention_tile>(args.tiles) + block_index_x() / args.kv_heads);
    const auto span = load(pointer<const attention_span>(args.spans) + tile.span);
    // If blocks handle several tiles, the block of the first one does.
    if (tile.first >= span.len || tile.first % args.tile_queries != 0) return;
    const uint32_t left = span.len - tile.first, queries = left < args.tile_queries ? left : args.tile_queries;
    const uint32_t group = args.heads / args.kv_heads, last = (tile.first + queries) * group;
    constexpr uint32_t ROWS = attention_prefill_shared<V>::ROWS;
    for (uint32_t begin = tile.first * group + block_index_y() * ROWS; begin < last; begin += grid_size_y() * ROWS)
        f(AttentionPart{span, block_index_x() % args.kv_heads, begin, min_of(begin + ROWS, last)});
}

template <class V>
BURRSTONE_DEVICE void attention_prefill(const attention_prefill_args &args, attention_prefill_shared<V> &shared) {
    auto place = shared.begin();
    if constexpr (attention_prefill_shared<V>::COPIES) {
        shared.share_registers();
        if (shared.has_no_rows()) {
            if (!shared.copies()) return;
            each_part<V>(args, [&](const AttentionPart &part) {
                AttentionCopies<V, V::share, attention_prefill_args>(args, part, shared, 0, ALL_POSITIONS).run(place);
            });
            return;
        }
    }
    each_part<V>(args, [&](const AttentionPart &part) {
        AttentionBlock<V, V::share, attention_prefill_args> block(args, part, shared);
        const AttentionRows<attention_prefill_args> rows(args, part.span, part.kv_head);
        block.run(place, 0, ALL_POSITIONS,
                  [&](uint32_t row, uint32_t column, const AttentionSum &sums, const float (&out)[2]) {
                      rows.template write<typename V::dtype>(row, column, sums, out);
                  });
    });
}

} // namespace burrstone

#endif
