// Attention of the newest queries of each sequence. One block a sequence and key head.
#ifndef BURRSTONE_KERNELS_ATTENTION_DECODE_CU
#define BURRSTONE_KERNELS_ATTENTION_DECODE_CU

#include "abi/attention_decode.h"
#include "kernels/attention_row.cuh"

namespace burrstone {

// Rows of a warp: 128 threads walk the cache once for a group of eight heads. More would idle where groups are small.
constexpr int DECODE_ROWS = 2;

template <class V> struct attention_decode_shared : AttentionShared<V, DECODE_ROWS> {};

template <class V>
BURRSTONE_DEVICE void attention_decode(const attention_decode_args &args, attention_decode_shared<V> &shared) {
    const auto span = load(pointer<const attention_span>(args.spans) + block_index_x() / args.kv_heads);
    if (span.len == 0) return;
    const AttentionPart part{span, 0, span.len, block_index_x() % args.kv_heads};
    AttentionBlock<V, DECODE_ROWS, attention_decode_args>(args, part, shared).run();
}

} // namespace burrstone

#endif
