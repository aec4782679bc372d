// Turns products of queries and keys into base-2 scores, and masks what a row does not see.
#ifndef BURRSTONE_KERNELS_ATTENTION_SCORES_CUH
#define BURRSTONE_KERNELS_ATTENTION_SCORES_CUH

#include "kernels/attention_rows.cuh"
#include "kernels/attention_shared.cuh"

namespace burrstone {

// For a warp's row tile: rows from first_row on; rows beyond last_row repeat it.
template <class V, class Memory, class Fragments, class Args> class AttentionScoring {
    static constexpr int BLOCKS = Memory::BLOCKS;
    using Scores = float[BLOCKS][8];

    const Args &args;
    const AttentionRows<Args> &rows;
    const Memory &shared;
    const uint32_t first_row;
    const uint32_t last_row;

  public:
    BURRSTONE_DEVICE AttentionScoring(const Args &args, const AttentionRows<Args> &rows, const Memory &shared,
                                      uint32_t first_row, uint32_t last_row)
        : args(args), rows(rows), shared(shared), first_row(first_row), last_row(last_row) {}

    // Products to scores.
    BURRSTONE_DEVICE void finish(Scores &scores, uint32_t base) const {
        const float unit = args.soft_cap > 0.0f ? reciprocal_fast(args.soft_cap) : LOG2_E;
        const float key_factor = mul_(mul_(args.scale, args.key_scale), unit);
        BURRSTONE_UNROLL
        for (int b = 0; b < BLOCKS; ++b) {
            BURRSTONE_UNROLL
            for (int i = 0; i < 8; ++i) {
                float factor = key_factor;
                if constexpr (HAS_SCALES<typename V::cache>)
                    factor = mul_(factor, shared.key_scales.load(b * BLOCK_SIDE + Fragments::key(i)));
                scores[b][i] = mul_(scores[b][i], factor);
            }
        }
        if (args.soft_cap > 0.0f) bend(scores);
        if (args.slopes != 0) tilt(scores, base);
    }

    // Masked scores become minus infinity.
    BURRSTONE_DEVICE void hide(Scores &scores, uint32_t base) const {
        BURRSTONE_UNROLL
        for (int half = 0; half < 2; ++half) {
            const VisibleRange visible = rows.visible_range(row_of(half));
            BURRSTONE_UNROLL
            for (int b = 0; b < BLOCKS; ++b) {
                const uint32_t seen = rows.seen(visible, base + b * BLOCK_SIDE) >> Fragments::key(0);
                BURRSTONE_UNROLL
                for (int i = 0; i < 8; ++i)
                    if (i / 2 % 2 == half) scores[b][i] = seen >> behind_first(i) & 1 ? scores[b][i] : -INFINITY_F;
            }
        }
    }

  private:
    // Offset of element i's key from the lane's first key: a constant, where the keys themselves would take registers.
    static BURRSTONE_DEVICE uint32_t behind_first(int i) { return Fragments::key(i) - Fragments::key(0); }

    BURRSTONE_DEVICE uint32_t row_of(int half) const {
        const uint32_t row = first_row + Fragments::row(half);
        return row < last_row ? row : last_row;
    }

    BURRSTONE_DEVICE void bend(Scores &scores) const {
        const float cap = mul_(args.soft_cap, LOG2_E);
        BURRSTONE_UNROLL
        for (int b = 0; b < BLOCKS; ++b) {
            BURRSTONE_UNROLL
            for (int i = 0; i < 8; ++i) {
                // tanh(x) = 1 - 2 / (e^2x + 1): accurate enough for scores of the cap's magnitude.
                const float power = exp2_fast(mul_(scores[b][i], 2.0f * LOG2_E));
                scores[b][i] = mul_(cap, fma_(-2.0f, reciprocal_fast(power + 1.0f), 1.0f));
            }
        }
    }

    BURRSTONE_DEVICE void tilt(Scores &scores, uint32_t base) const {
        BURRSTONE_UNROLL
        for (int half = 0; half < 2; ++half) {
            const uint32_t row = row_of(half);
            const float slope = mul_(load(pointer<const float>(args.slopes) + rows.head(row)), LOG2_E);
            // Exact: positions are below 2^24 of each other.
            const float from = float(int(base + Fragments::key(0)) - int(rows.position(row)));
            BURRSTONE_UNROLL
            for (int b = 0; b < BLOCKS; ++b) {
                BURRSTONE_UNROLL
                for (int i = 0; i < 8; ++i)
                    if (i / 2 % 2 == half)
                        scores[b][i] = fma_(slope, from + float(b * BLOCK_SIDE + behind_first(i)), scores[b][i]);
            }
        }
    }
};

} // namespace burrstone

#endif
