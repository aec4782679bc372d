// Attention of the newest queries of each sequence. A fixed number of blocks divides the work among itself on the
// device, so that one recorded launch serves sequences of any length: an item is a row tile of a key head, and one
// split of its sequence where that has several. The block that is the last to finish a row tile's splits merges them,
// in their order.
#ifndef BURRSTONE_KERNELS_ATTENTION_DECODE_CU
#define BURRSTONE_KERNELS_ATTENTION_DECODE_CU

#include "abi/attention_decode.h"
#include "kernels/attention_tile.cuh"
#include "kernels/attention_warpgroup.cuh"

namespace burrstone {

// All warps share a row tile: a group's heads are seldom more than 16, and an item ends the sooner. A warpgroup has 64
// rows at the least: those that are not there cost less than their keys and values take to come.
template <class V>
constexpr int DECODE_SHARE = BY_WARPGROUP<typename V::instruction> ? 1 : V::threads / int(WARP);

template <class V> struct attention_decode_shared : AttentionShared<V, DECODE_SHARE<V>> {
    // Whether this block finished the row tile's last split.
    Shared<uint32_t, 1> last;
};

// What is to be done for a span.
struct DecodeWork {
    attention_span span;
    uint32_t rows;
    uint32_t row_tiles;
    uint32_t first_split;
    uint32_t splits;

    BURRSTONE_DEVICE DecodeWork(const attention_decode_args &args, const attention_span &span, uint32_t tile_rows)
        : span(span) {
        const AttentionRows<attention_decode_args> all(args, span, 0);
        rows = span.len * all.group;
        row_tiles = (rows + tile_rows - 1) / tile_rows;
        first_split = rows > 0 ? all.bounds(0).least_from / KV_SPLIT : 0;
        splits = rows > 0 ? (span.kv_len + KV_SPLIT - 1) / KV_SPLIT - first_split : 0;
    }

    // Records of the workspace that its splits want: one a row, key head and split.
    BURRSTONE_DEVICE uint64_t records(const attention_decode_args &args) const {
        return splits > 1 ? uint64_t(args.kv_heads) * splits * rows : 0;
    }
};

// The sum of the lanes' values up to the lane's own.
template <class T> BURRSTONE_DEVICE T scan_warp(T value) {
    BURRSTONE_UNROLL
    for (unsigned delta = 1; delta < WARP; delta *= 2) {
        const T below = shfl_up(value, delta);
        if (lane_index() >= delta) value += below;
    }
    return value;
}

constexpr uint32_t NO_RECORD = 0xffffffffu;

// Floats of a record: outputs, in pairs, then maximum and sum.
BURRSTONE_DEVICE uint32_t record_sums(const attention_decode_args &args) { return (args.head_dim + 1) / 2 * 2; }

// States that a thread has on their way at a time: it would wait for each.
constexpr uint32_t MERGED = 8;

// Merges the states of a row tile's splits, whose records begin at `records`, and writes the results.
template <class V>
BURRSTONE_DEVICE void merge_splits(const attention_decode_args &args, const DecodeWork &work, const AttentionPart &part,
                                   const float *records) {
    constexpr uint32_t WORKERS = attention_decode_shared<V>::WORKERS;
    const AttentionRows<attention_decode_args> rows(args, part.span, part.kv_head);
    const uint32_t sums_at = record_sums(args), stride = sums_at + 2, pairs = sums_at / 2;
    BURRSTONE_ROLLED
    for (uint32_t i = thread_index(); i < (part.end - part.begin) * pairs; i += WORKERS) {
        const uint32_t row = part.begin + i / pairs, column = i % pairs * 2;
        AttentionSum total{LOWEST_SCORE, 0.0f};
        float out[2] = {};
        BURRSTONE_ROLLED
        for (uint32_t first = 0; first < work.splits; first += MERGED) {
            vec<float, 2> sums[MERGED] = {}, more[MERGED] = {};
            BURRSTONE_UNROLL
            for (uint32_t i = 0; i < MERGED; ++i) {
                if (first + i >= work.splits) continue;
                const float *record = records + (uint64_t(first + i) * work.rows + row) * stride;
                sums[i] = load(reinterpret_cast<const vec<float, 2> *>(record + sums_at));
                more[i] = load(reinterpret_cast<const vec<float, 2> *>(record + column));
            }
            BURRSTONE_UNROLL
            for (uint32_t i = 0; i < MERGED; ++i) {
                if (first + i >= work.splits) continue;
                const AttentionMerge merge(total, {sums[i].v[0], sums[i].v[1]});
                BURRSTONE_UNROLL
                for (int e = 0; e < 2; ++e) out[e] = merge(out[e], more[i].v[e]);
            }
        }
        rows.template write<typename V::dtype>(row, column, total, out);
    }
}

// `first_record` is the span's in the workspace, or NO_RECORD where it has none: then one block does all splits.
template <class V>
BURRSTONE_DEVICE void decode_item(const attention_decode_args &args, attention_decode_shared<V> &shared,
                                  typename attention_decode_shared<V>::Place &place, const DecodeWork &work,
                                  uint32_t item, uint32_t first_record) {
    constexpr uint32_t ROWS = attention_decode_shared<V>::ROWS;
    const bool shared_out = first_record != NO_RECORD;
    const uint32_t splits = shared_out ? work.splits : 1;
    const uint32_t row_tile = item % work.row_tiles, split = item / work.row_tiles % splits;
    const uint32_t kv_head = item / work.row_tiles / splits;
    const uint32_t begin = row_tile * ROWS, end = begin + ROWS;
    const AttentionPart part{work.span, kv_head, begin, end < work.rows ? end : work.rows};

    const uint32_t sums_at = record_sums(args), stride = sums_at + 2;
    // Those of this key head.
    const uint64_t first = first_record + uint64_t(kv_head) * splits * work.rows;
    float *records = pointer<float>(args.partials) + first * stride;
    const uint32_t from = shared_out ? (work.first_split + split) * KV_SPLIT : 0;
    const uint32_t until = shared_out ? from + KV_SPLIT : ALL_POSITIONS;
    if constexpr (attention_decode_shared<V>::COPIES) {
        if (shared.has_no_rows()) {
            AttentionCopies<V, DECODE_SHARE<V>, attention_decode_args>(args, part, shared, from, until).run(place);
            return;
        }
    }
    const AttentionRows<attention_decode_args> rows(args, work.span, kv_head);
    AttentionBlock<V, DECODE_SHARE<V>, attention_decode_args> block(args, part, shared);
    block.run(place, from, until, [&](uint32_t row, uint32_t column, const AttentionSum &sums, const float (&out)[2]) {
        if (!shared_out) return rows.template write<typename V::dtype>(row, column, sums, out);
        float *record = records + (uint64_t(split) * work.rows + row) * stride;
        const vec<float, 2> pair{{out[0], out[1]}}, both{{sums.max, sums.sum}};
        if (column < sums_at) store(reinterpret_cast<vec<float, 2> *>(record + column), pair);
        if (column == 0) store(reinterpret_cast<vec<float, 2> *>(record + sums_at), both);
    });
    if (!shared_out) return;

    shared.sync();
    if (thread_index() == 0) {
        uint32_t *arrived = pointer<uint32_t>(args.counters) + first + begin;
        const bool last = atomic_add_ordered(arrived, 1u) + 1 == splits;
        // Ready for the next launch.
        if (last) store(arrived, 0u);
        shared.last.store(0, last);
    }
    shared.sync();
    if (!shared.last.load(0)) return;
    merge_splits<V>(args, work, part, records);
}

template <class V>
BURRSTONE_DEVICE void attention_decode(const attention_decode_args &args, attention_decode_shared<V> &shared) {
    constexpr uint32_t ROWS = attention_decode_shared<V>::ROWS;
    auto place = shared.begin();
    uint32_t item = block_index_x(), items = 0;
    uint64_t records = 0;
    // Every warp finds the same: a lane looks at a span, and scans tell what the spans before it have.
    for (uint32_t first = 0; first < args.spans_len; first += WARP) {
        const uint32_t index = first + lane_index();
        attention_span span = {};
        if (index < args.spans_len) span = load(pointer<const attention_span>(args.spans) + index);
        const DecodeWork work(args, span, ROWS);
        const uint64_t wanted = work.records(args), records_end = records + scan_warp(wanted);
        // What finds no room is done by one block: with the same bits, but later.
        const bool shared_out = wanted > 0 && records_end <= args.records;
        const uint32_t first_record = shared_out ? uint32_t(records_end - wanted) : NO_RECORD;
        const uint32_t own_items = args.kv_heads * work.row_tiles * (shared_out ? work.splits : 1);
        const uint32_t items_end = items + scan_warp(own_items), items_begin = items_end - own_items;
        const uint32_t all_end = shfl(items_end, WARP - 1);
        for (; item < all_end; item += grid_size_x()) {
            const unsigned lane = find_first_set(ballot(item < items_end)) - 1;
            decode_item<V>(args, shared, place, DecodeWork(args, shfl(span, lane), ROWS),
                           item - shfl(items_begin, lane), shfl(first_record, lane));
        }
        items = all_end;
        records = shfl(records_end, WARP - 1);
    }
}

} // namespace burrstone

#endif
