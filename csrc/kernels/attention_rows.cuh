// Rows of attention: what they see, how sums of their splits are merged, how they are written.
#ifndef BURRSTONE_KERNELS_ATTENTION_ROWS_CUH
#define BURRSTONE_KERNELS_ATTENTION_ROWS_CUH

#include "common/kernel.cuh"

namespace burrstone {

// The running maximum before any score: finite, so that differences with it are numbers.
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

// What a row of the batch is, and what it sees.
template <class Args> struct AttentionRows {
    const Args &args;
    const uint32_t first_token;
    const uint32_t first_position;
    const uint32_t kv_head;
    const uint32_t group;

    BURRSTONE_DEVICE AttentionRows(const Args &args, const attention_span &span, uint32_t kv_head)
        : args(args), first_token(span.start), first_position(span.kv_len - span.len), kv_head(kv_head),
          group(args.heads / args.kv_heads) {}

    BURRSTONE_DEVICE uint32_t position(uint32_t row) const { return first_position + row / group; }
    // Positions from first_seen to, but not with, end_seen. Neither falls from a row to the next.
    BURRSTONE_DEVICE uint32_t end_seen(uint32_t row) const { return position(row) + 1; }
    BURRSTONE_DEVICE uint32_t first_seen(uint32_t row) const {
        const uint32_t end = end_seen(row);
        const uint32_t in_window = args.window > 0 && args.window < end ? end - args.window : 0;
        const uint32_t in_chunk = args.chunk > 0 ? position(row) / args.chunk * args.chunk : 0;
        return in_window < in_chunk ? in_chunk : in_window;
    }
    BURRSTONE_DEVICE uint32_t head(uint32_t row) const { return kv_head * group + row % group; }
    // Where the row begins in the query and in the output.
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
        // Tiles that a row does not see may change the sign of a zero: here it is lost.
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
};

} // namespace burrstone

#endif
