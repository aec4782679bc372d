// Work items of attention, and the shared memory of a block.
#ifndef BURRSTONE_KERNELS_ATTENTION_SHARED_CUH
#define BURRSTONE_KERNELS_ATTENTION_SHARED_CUH

#include "common/wgmma.cuh"
#include "kernels/attention_fragments.cuh"
#include "kernels/attention_rows.cuh"

namespace burrstone {

// Positions of a split. Short enough to give every SM work when sequences are few; long enough that merging costs
// almost nothing.
constexpr uint32_t KV_SPLIT = 512;
// Positions of a KV tile: up to 16 KiB of keys, and of values, at 16 bits; 32 in the wgmma form.
template <class V> constexpr int KV_TILE = V::head_dim <= 128 || BY_WARPGROUP<typename V::instruction> ? 64 : 32;
// Larger than every position.
constexpr uint32_t ALL_POSITIONS = 0xffffffffu;

// Rows begin..end of a span: the heads of the first query that share kv_head, then those of the next.
struct AttentionPart {
    attention_span span;
    uint32_t kv_head;
    uint32_t begin;
    uint32_t end;
};

// The KV range that a block walks for its part: tiles of begin..end, within positions from..until. Only positions
// low..high are visible to some row.
template <uint32_t TILE> struct AttentionRange {
    uint32_t low;
    uint32_t high;
    uint32_t begin;
    uint32_t end;

    template <class Rows>
    BURRSTONE_DEVICE AttentionRange(const Rows &rows, const AttentionPart &part, uint32_t from, uint32_t until)
        : low(rows.bounds(part.begin).least_from),
          high(min_of(rows.bounds(part.end - 1).most_to, part.span.kv_len)), begin(max_of(from, low / TILE * TILE)),
          end(min_of(until, high)) {}
};

// SHARE of the block's warps work on one row tile: each takes part of the keys in the first product, and part of the
// columns in the second.
template <class V, int SHARE, bool GROUP = BY_WARPGROUP<typename V::instruction>> struct AttentionShared {
    static constexpr int TILE = KV_TILE<V>;
    static constexpr int BLOCKS = TILE / BLOCK_SIDE;
    static constexpr int ROW_TILES = V::threads / int(WARP) / SHARE;
    static constexpr int ROWS = ROW_TILES * BLOCK_SIDE;
    // All threads hold rows. Nothing carries over between walks.
    static constexpr int WORKERS = V::threads;
    static constexpr bool COPIES = false;
    struct Place {};
    BURRSTONE_DEVICE Place begin() { return {}; }
    static BURRSTONE_DEVICE void sync() { sync_block(); }

    // Elements of the rows' results per lane.
    static constexpr bool IN_REGISTERS = true;
    template <int OUT_BLOCKS> struct Totals {
        float out[OUT_BLOCKS][8] = {};

        BURRSTONE_DEVICE Totals(AttentionShared &) {}
        BURRSTONE_DEVICE float get(int block, int i) const { return out[block][i]; }
        BURRSTONE_DEVICE void set(int block, int i, float value) { out[block][i] = value; }
    };

    SwizzledRows<typename V::dtype, ROWS, V::head_dim> query;
    SwizzledRows<typename V::cache, TILE, V::head_dim> keys;
    SwizzledRows<typename V::cache, TILE, V::head_dim> values;
    // Cache entries of the tile's positions, and of the next tile's.
    Shared<uint32_t, TILE> entries[2];
    // Per position: the scale of its scores, that of its weight, and the latter's logarithm. One element if unused.
    Shared<float, HAS_SCALES<typename V::cache> ? TILE : 1> key_scales;
    Shared<float, HAS_SCALES<typename V::cache> ? TILE : 1> value_scales;
    Shared<float, HAS_SCALES<typename V::cache> ? TILE : 1> value_logs;
    // Scores exchanged between the warps that share a row tile: by row tile, block, half of the lane's elements, lane.
    Shared<float, (SHARE > 1 ? ROW_TILES * BLOCKS * int(WARP) * 8 : 1)> scores;
};

} // namespace burrstone

#endif
