// Online softmax of a warp's 16 rows, independent of the instruction.
#ifndef BURRSTONE_KERNELS_ATTENTION_SOFTMAX_CUH
#define BURRSTONE_KERNELS_ATTENTION_SOFTMAX_CUH

#include "kernels/attention_scores.cuh"

namespace burrstone {

// For a block with shared memory Memory: a warp with rows from first_row on, and OUT_BLOCKS column blocks of their
// results from first_out on. Rows beyond the part's last repeat it.
template <class V, class Memory, class Fragments, int OUT_BLOCKS, class Args> class AttentionSoftmax {
  protected:
    using T = typename V::dtype;
    using KV = typename V::cache;
    static constexpr uint32_t TILE = Memory::TILE;
    static constexpr int BLOCKS = Memory::BLOCKS;

    using Scores = float[BLOCKS][8];
    using Scoring = AttentionScoring<V, Memory, Fragments, Args>;
    using Weights = uint32_t[Fragments::WEIGHT_WORDS];

    // A lane's state of two rows. The sum covers only the lane's keys until the split ends.
    struct State {
        AttentionSum sums[2] = {{LOWEST_SCORE, 0.0f}, {LOWEST_SCORE, 0.0f}};
        float out[OUT_BLOCKS][8] = {};
    };

    const Args &args;
    const AttentionPart &part;
    Memory &shared;
    const AttentionRows<Args> rows;
    const uint32_t first_row;
    const uint32_t first_out;
    State state;
    AttentionSum total_sums[2] = {{LOWEST_SCORE, 0.0f}, {LOWEST_SCORE, 0.0f}};
    typename Memory::template Totals<OUT_BLOCKS> totals;

    BURRSTONE_DEVICE AttentionSoftmax(const Args &args, const AttentionPart &part, Memory &shared, uint32_t first_row,
                                      uint32_t first_out)
        : args(args), part(part), shared(shared), rows(args, part.span, part.kv_head), first_row(first_row),
          first_out(first_out), totals(shared) {}

    // Calls `each` with row, column, the row's sums and the elements of this column and the next, for all rows and
    // columns.
    template <class Each> BURRSTONE_DEVICE void each_result(Each each) const {
        BURRSTONE_UNROLL
        for (int half = 0; half < 2; ++half) {
            const uint32_t row = first_row + Fragments::row(half);
            if (row >= part.end) continue;
            // Register arrays need constant indices.
            BURRSTONE_UNROLL_BY(Memory::IN_REGISTERS ? OUT_BLOCKS : 1)
            for (int o = 0; o < OUT_BLOCKS; ++o) {
                BURRSTONE_UNROLL
                for (int pair = 0; pair < 2; ++pair) {
                    const float out[2] = {totals.get(o, Fragments::element(pair, half, 0)),
                                          totals.get(o, Fragments::element(pair, half, 1))};
                    each(row, (first_out + o) * BLOCK_SIDE + Fragments::column(pair), total_sums[half], out);
                }
            }
        }
    }

    // Merges the state into the total and resets it. The first split's sums are unchanged by that.
    BURRSTONE_DEVICE void end_split() {
        BURRSTONE_UNROLL
        for (int half = 0; half < 2; ++half) {
            AttentionSum &sums = state.sums[half];
            BURRSTONE_UNROLL
            for (int i = 0; i < 2; ++i) sums.sum += shfl_xor(sums.sum, Fragments::row_peer(i));
            const AttentionMerge merge(total_sums[half], sums);
            BURRSTONE_UNROLL
            for (int o = 0; o < OUT_BLOCKS; ++o) {
                BURRSTONE_UNROLL
                for (int i = 0; i < 8; ++i)
                    if (i / 2 % 2 == half) totals.set(o, i, merge(totals.get(o, i), state.out[o][i]));
            }
        }
        state = State{};
    }

    // Updates maxima and sums with the tile's scores; the accumulated values must be multiplied by the factors `decay`.
    BURRSTONE_DEVICE void raise_maxima(const Scores &scores, float (&decay)[2]) {
        BURRSTONE_UNROLL
        for (int half = 0; half < 2; ++half) {
            float &before = state.sums[half].max, max = before;
            BURRSTONE_UNROLL
            for (int b = 0; b < BLOCKS; ++b) {
                BURRSTONE_UNROLL
                for (int i = 0; i < 8; ++i) {
                    if (i / 2 % 2 != half) continue;
                    float score = scores[b][i];
                    // With a scale per value, weights times scales (at most 1) are rounded instead of weights.
                    if constexpr (HAS_SCALES<KV>) score += shared.value_logs.load(b * BLOCK_SIDE + Fragments::key(i));
                    max = max_(max, score);
                }
            }
            BURRSTONE_UNROLL
            for (int i = 0; i < 2; ++i) max = max_(max, shfl_xor(max, Fragments::row_peer(i)));
            decay[half] = exp2_fast(before - max);
            before = max;
            state.sums[half].sum = mul_(state.sums[half].sum, decay[half]);
        }
    }

    BURRSTONE_DEVICE void decay_out(const float (&decay)[2]) {
        // A factor of one changes nothing, and maxima rarely change.
        if (!any(decay[0] != 1.0f || decay[1] != 1.0f)) return;
        BURRSTONE_UNROLL
        for (int b = 0; b < OUT_BLOCKS; ++b) {
            BURRSTONE_UNROLL
            for (int i = 0; i < 8; ++i) state.out[b][i] = mul_(state.out[b][i], decay[i / 2 % 2]);
        }
    }

    // Weights of a block's scores, added to the sums.
    BURRSTONE_DEVICE void weigh(int b, const float (&scores)[8], Weights &words) {
        float weights[8];
        BURRSTONE_UNROLL
        for (int i = 0; i < 8; ++i) {
            AttentionSum &sums = state.sums[i / 2 % 2];
            weights[i] = exp2_fast(scores[i] - sums.max);
            sums.sum += weights[i];
            if constexpr (HAS_SCALES<KV>) {
                const float scale = shared.value_scales.load(b * BLOCK_SIDE + Fragments::key(i));
                weights[i] = weights[i] > 0.0f ? mul_(weights[i], scale) : weights[i];
            }
        }
        Fragments::pack_weights(weights, words);
    }

    // Whether key blocks first..end have infinite or NaN values in this warp's columns. load(b, o, words) loads 16
    // keys' values of 16 of the warp's columns.
    template <class Load> BURRSTONE_DEVICE bool not_finite(uint32_t first, uint32_t end, Load load) const {
        bool found = false;
        BURRSTONE_ROLLED
        for (uint32_t b = first; b < end; ++b) {
            BURRSTONE_ROLLED
            for (uint32_t o = 0; o < OUT_BLOCKS; ++o) {
                uint32_t values[Fragments::VALUE_WORDS];
                load(b, o, values);
                BURRSTONE_UNROLL
                for (const uint32_t word : values) found = found || detail::not_finite<T>(word);
            }
        }
        return found;
    }

    // Weights times values, masking values per row: a weight of zero does not hide an infinite value. `load` as above.
    template <class Load>
    BURRSTONE_DEVICE void add_by_rows(const Weights (&weights)[BLOCKS], uint32_t base, uint32_t last_row, Load load) {
        // A loop over key blocks, and one column block at a time, takes the fewest registers.
        BURRSTONE_UNROLL
        for (int o = 0; o < OUT_BLOCKS; ++o) {
            BURRSTONE_ROLLED
            for (int b = 0; b < BLOCKS; ++b) {
                Weights own = {};
                BURRSTONE_UNROLL
                for (int other = 0; other < BLOCKS; ++other) {
                    BURRSTONE_UNROLL
                    for (int w = 0; w < Fragments::WEIGHT_WORDS; ++w) own[w] = other == b ? weights[other][w] : own[w];
                }
                BURRSTONE_ROLLED
                for (uint32_t r = 0; r < BLOCK_SIDE && first_row + r <= last_row; ++r) {
                    const uint32_t seen = rows.seen(rows.visible_range(first_row + r), base + b * BLOCK_SIDE);
                    uint32_t values[Fragments::VALUE_WORDS];
                    load(b, o, values);
                    Fragments::clear_values(values, seen);
                    float out[8];
                    BURRSTONE_UNROLL
                    for (int i = 0; i < 8; ++i) out[i] = state.out[o][i];
                    Fragments::add_values(own, values, out);
                    BURRSTONE_UNROLL
                    for (int i = 0; i < 8; ++i)
                        if (Fragments::row(i / 2 % 2) == r) state.out[o][i] = out[i];
                }
            }
        }
    }
};

} // namespace burrstone

#endif
