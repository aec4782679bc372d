// Rows of attention: visible ranges, merging of splits, output.
#ifndef BURRSTONE_KERNELS_ATTENTION_ROWS_CUH
#define BURRSTONE_KERNELS_ATTENTION_ROWS_CUH

#include "common/kernel.cuh"

namespace burrstone {

// The running maximum before any score: finite, so that differences with it are finite too.
constexpr float LOWEST_SCORE = -1e30f;

// The sum of exp2(score - max), as merging and writing see it.
struct AttentionSum {
    float max;
    float sum;
};

// Factors of both parts when `more` is merged into `total`.
struct AttentionMerge {
    float kept;
    float added;

    BURRSTONE_DEVICE AttentionMerge(AttentionSum &total, const AttentionSum &more) {
        const float max = max_(total.max, more.max);
        kept = exp2_fast(total.max - max), added = exp2_fast(more.max - max);
        total = {max, fma_(more.sum, added, mul_(total.sum, kept))};
    }
    BURRSTONE_DEVICE float operator()(float total, float more) const { return fma_(more, added, mul_(total, kept)); }
};

// What a row sees: positions from..to, and in a tree only these nodes of the batch. No nodes: not a tree.
struct VisibleRange {
    uint32_t from;
    uint32_t to;
    uint64_t nodes;
};

// A row sees all of most_from..least_to, and nothing outside least_from..most_to. All four are monotonic in the row.
struct AttentionBounds {
    uint32_t least_from;
    uint32_t most_from;
    uint32_t least_to;
    uint32_t most_to;
};

// The union and the intersection of what several rows see.
struct AttentionExtent {
    uint32_t some_from;
    uint32_t some_to;
    uint32_t all_from;
    uint32_t all_to;

    BURRSTONE_DEVICE bool has_all(uint32_t from, uint32_t to) const { return all_from <= from && to <= all_to; }
};

BURRSTONE_DEVICE uint32_t min_of(uint32_t a, uint32_t b) { return a < b ? a : b; }
BURRSTONE_DEVICE uint32_t max_of(uint32_t a, uint32_t b) { return a < b ? b : a; }

// A row's query, head and visible range.
template <class Args> struct AttentionRows {
    const Args &args;
    const uint32_t first_token;
    const uint32_t first_position;
    const uint32_t kv_head;
    const uint32_t group;

    BURRSTONE_DEVICE AttentionRows(const Args &args, const attention_span &span, uint32_t kv_head)
        : args(args), first_token(span.start), first_position(span.kv_len - span.len), kv_head(kv_head),
          group(args.heads / args.kv_heads) {}

    // Position of the row's own key.
    BURRSTONE_DEVICE uint32_t position(uint32_t row) const { return first_position + row / group; }

    BURRSTONE_DEVICE VisibleRange visible_range(uint32_t row) const {
        const uint32_t own = position(row);
        VisibleRange visible{first_seen(own), own + 1, 0};
        if (args.masks == 0) return visible;
        const auto mask = load(pointer<const attention_mask>(args.masks) + first_token + row / group);
        if (mask.begin < mask.end) {
            if (mask.begin < visible.from) visible.from = mask.begin;
            if (visible.to < mask.end) visible.to = mask.end;
        }
        visible.nodes = uint64_t(mask.branch[1]) << 32 | mask.branch[0];
        if (visible.nodes != 0) {
            // A node's position follows from its depth: a window may be shorter than the branch.
            visible.from = first_seen(first_position + popcount(mask.branch[0]) + popcount(mask.branch[1]) - 1);
            BURRSTONE_ROLLED
            for (uint32_t hidden = first_position; hidden < visible.from; ++hidden) visible.nodes &= visible.nodes - 1;
        }
        return visible;
    }
    BURRSTONE_DEVICE AttentionBounds bounds(uint32_t row) const {
        const VisibleRange visible = this->visible_range(row);
        if (visible.nodes == 0) return {visible.from, visible.from, visible.to, visible.to};
        // A node's position lies between the first position of the batch and its own key's.
        return {first_seen(first_position), first_seen(position(row)), first_position, visible.to};
    }
    // For rows first..=last; empty if there are none.
    BURRSTONE_DEVICE AttentionExtent extent(uint32_t first, uint32_t last) const {
        const AttentionBounds top = bounds(min_of(first, last)), bottom = bounds(last);
        return {top.least_from, first <= last ? bottom.most_to : 0, bottom.most_from, top.least_to};
    }
    // Bitmask of the 16 positions from `base` on that the row sees.
    BURRSTONE_DEVICE uint32_t seen(const VisibleRange &visible, uint32_t base) const {
        const uint32_t seen = bits_below(int(visible.to) - int(base)) & ~bits_below(int(visible.from) - int(base));
        if (visible.nodes == 0) return seen;
        const int before = int(first_position) - int(base);
        const uint32_t nodes = before > 0     ? uint32_t(before < 16 ? visible.nodes << before : 0)
                               : before > -64 ? uint32_t(visible.nodes >> -before)
                                              : 0;
        return seen & (nodes | bits_below(before));
    }
    BURRSTONE_DEVICE uint32_t head(uint32_t row) const { return kv_head * group + row % group; }
    // Offset of the row in the query and in the output.
    BURRSTONE_DEVICE uint64_t place(uint32_t row) const {
        return (uint64_t(first_token + row / group) * args.heads + head(row)) * args.head_dim;
    }

    // Columns `column` and the next of a row's result.
    template <class T>
    BURRSTONE_DEVICE void write(uint32_t row, uint32_t column, AttentionSum sums, const float (&out)[2]) const {
        float factor = args.value_scale;
        if (args.sinks != 0) {
            const float sink = mul_(load(pointer<const float>(args.sinks) + head(row)), LOG2_E);
            const AttentionMerge merge(sums, {sink, 1.0f});
            factor = mul_(factor, merge.kept);
        }
        factor = mul_(factor, reciprocal_fast(sums.sum));
        vec<T, 2> pair;
        // Tiles that a row does not see may flip the sign of a zero; this removes it.
        BURRSTONE_UNROLL
        for (int e = 0; e < 2; ++e) pair.v[e] = from_float<T>(mul_(out[e], factor) + 0.0f);
        T *to = pointer<T>(args.out) + place(row) + column;
        if (args.head_dim % 2 == 0 && args.out % 4 == 0) {
            if (column < args.head_dim) store(reinterpret_cast<vec<T, 2> *>(to), pair);
        } else {
            BURRSTONE_UNROLL
            for (uint32_t e = 0; e < 2; ++e)
                if (column + e < args.head_dim) store(to + e, pair.v[e]);
        }
    }

  private:
    // The lowest `count` of 16 bits.
    static BURRSTONE_DEVICE uint32_t bits_below(int count) {
        return (1u << (count < 0 ? 0 : count > 16 ? 16 : count)) - 1;
    }
    // First position in the window and chunk of a query at `position`.
    BURRSTONE_DEVICE uint32_t first_seen(uint32_t position) const {
        const uint32_t in_window = args.window > 0 && args.window <= position ? position + 1 - args.window : 0;
        const uint32_t in_chunk = args.chunk > 0 ? position / args.chunk * args.chunk : 0;
        return in_window < in_chunk ? in_chunk : in_window;
    }
};

} // namespace burrstone

#endif
