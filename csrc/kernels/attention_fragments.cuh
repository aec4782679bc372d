// The two products of attention in the fragments of tensor core instructions.
//
// For every instruction a warp works on blocks of 16 rows by 16 columns, of which a lane holds eight elements: four in
// each of two rows. Element i of a block of scores is in row row(i / 2 % 2) and belongs to key key(i). A score is one
// chain of additions over the head's columns, an output one over the keys: neither depends on other rows.
#ifndef BURRSTONE_KERNELS_ATTENTION_FRAGMENTS_CUH
#define BURRSTONE_KERNELS_ATTENTION_FRAGMENTS_CUH

#include "common/ldmatrix.cuh"
#include "common/pairs.cuh"
#include "kernels/attention_cache.cuh"

namespace burrstone {

constexpr int BLOCK_SIDE = 16;

namespace detail {

// Whether one of the two elements is infinite or NaN.
template <class T> BURRSTONE_DEVICE bool not_finite(uint32_t word) {
    constexpr uint32_t EXPONENT = IS_BF16<T> ? 0x7f80 : 0x7c00;
    return (word & EXPONENT) == EXPONENT || (word >> 16 & EXPONENT) == EXPONENT;
}

} // namespace detail

// For m16n8k8 and m16n8k16. 8-bit elements are loaded by ldmatrix as pairs and stay in that order: of a head's 16
// columns, a key's words hold 4c and 4c + 1, and 4c + 2 and 4c + 3, so the query is permuted in the same way; values
// come out as even and odd columns.
template <class Instruction, class T, class KV> struct AttentionFragments {
    static constexpr bool NARROW = sizeof(KV) == 1;
    // Xor masks to the lanes that hold other columns of the same rows.
    static BURRSTONE_DEVICE unsigned row_peer(int i) { return 1u << i; }
    static constexpr int QUERY_WORDS = 4, WEIGHT_WORDS = 4, VALUE_WORDS = 4;

    static BURRSTONE_DEVICE uint32_t row(int half) { return lane_index() / 4 + 8 * half; }
    static BURRSTONE_DEVICE uint32_t key(int i) { return lane_index() % 4 * 2 + i / 4 * 8 + i % 2; }

    // Two adjacent columns of an output block, by pair (0, 1): the elements, and the first column.
    static BURRSTONE_DEVICE int element(int pair, int half, int e) {
        return NARROW ? 4 * e + 2 * half + pair : 4 * pair + 2 * half + e;
    }
    static BURRSTONE_DEVICE uint32_t column(int pair) {
        return NARROW ? lane_index() % 4 * 4 + 2 * pair : lane_index() % 4 * 2 + 8 * pair;
    }

    // Where columns 2p and 2p + 1 of the query are kept.
    static BURRSTONE_DEVICE uint32_t query_pair(uint32_t p) {
        return NARROW ? p / 8 * 8 + p % 2 * 4 + p % 8 / 2 : p;
    }

    template <class Query>
    static BURRSTONE_DEVICE void load_query(const Query &query, uint32_t first_row, uint32_t step,
                                            uint32_t (&words)[QUERY_WORDS]) {
        const uint32_t at = Query::index(first_row + lane_index() % 16, lane_index() / 16 * 8);
        const auto loaded = ldmatrix<4>(query.data.address(at ^ step * BLOCK_SIDE));
        BURRSTONE_UNROLL
        for (int i = 0; i < 4; ++i) words[i] = loaded.v[i];
    }

    // Adds columns 16 step to 16 (step + STEPS) of the product of the query's rows and 16 keys.
    static constexpr int STEPS = NARROW ? 2 : 1;
    template <class Keys>
    static BURRSTONE_DEVICE void add_scores(const uint32_t (&query)[STEPS][QUERY_WORDS], const Keys &keys,
        uint32_t first_key,
                                            uint32_t step, float (&scores)[8]) {
        const uint32_t key = first_key + lane_index() / 16 * 8 + lane_index() % 8;
        const uint32_t at = Keys::index(key, lane_index() / 8 % 2 * Keys::PIECE);
        const auto loaded = ldmatrix<4>(keys.data.address(at ^ step * BLOCK_SIDE));
        if constexpr (NARROW) {
            BURRSTONE_UNROLL
            for (int s = 0; s < 2; ++s) {
                uint32_t first[2], second[2];
                widen<T, KV>(loaded.v[s], first);
                widen<T, KV>(loaded.v[2 + s], second);
                multiply(scores, 0, query[s], first[0], first[1]);
                multiply(scores, 4, query[s], second[0], second[1]);
            }
        } else {
            multiply(scores, 0, query[0], loaded.v[0], loaded.v[1]);
            multiply(scores, 4, query[0], loaded.v[2], loaded.v[3]);
        }
    }

    static BURRSTONE_DEVICE void pack_weights(const float (&weights)[8], uint32_t (&words)[WEIGHT_WORDS]) {
        BURRSTONE_UNROLL
        for (int i = 0; i < 4; ++i) words[i] = pack<T>(weights[2 * i], weights[2 * i + 1]);
    }

    // 16 keys by 16 columns of the values.
    template <class Values>
    static BURRSTONE_DEVICE void load_values(const Values &values, uint32_t first_key, uint32_t block,
                                             uint32_t (&words)[VALUE_WORDS]) {
        const uint32_t key = first_key + lane_index() % 16;
        if constexpr (NARROW) {
            const auto loaded = ldmatrix<2, true>(values.data.address(Values::index(key, 0) ^ block * BLOCK_SIDE));
            BURRSTONE_UNROLL
            for (int i = 0; i < 2; ++i) {
                // Even columns of two keys, then odd ones.
                uint32_t wide[2];
                widen<T, KV>(permute(loaded.v[i], 0, 0x3120), wide);
                words[i] = wide[0], words[2 + i] = wide[1];
            }
        } else {
            const uint32_t at = Values::index(key, lane_index() / 16 * 8);
            const auto loaded = ldmatrix<4, true>(values.data.address(at ^ block * BLOCK_SIDE));
            BURRSTONE_UNROLL
            for (int i = 0; i < 4; ++i) words[i] = loaded.v[i];
        }
    }

    // Replaces the values of keys whose bits are not in `seen` by zeros.
    static BURRSTONE_DEVICE void clear_values(uint32_t (&words)[VALUE_WORDS], uint32_t seen) {
        BURRSTONE_UNROLL
        for (int i = 0; i < 4; ++i) {
            const uint32_t keys = seen >> (lane_index() % 4 * 2 + i % 2 * 8);
            words[i] &= (keys & 1 ? 0xffffu : 0) | (keys & 2 ? 0xffff0000u : 0);
        }
    }

    static BURRSTONE_DEVICE void add_values(const uint32_t (&weights)[WEIGHT_WORDS],
        const uint32_t (&values)[VALUE_WORDS],
                                            float (&out)[8]) {
        multiply(out, 0, weights, values[0], values[1]);
        multiply(out, 4, weights, values[2], values[3]);
    }

  private:
    // Elements at..at + 4 of a block: eight of its columns.
    static BURRSTONE_DEVICE void multiply(float (&block)[8], int at, const uint32_t (&a)[4], uint32_t low,
        uint32_t high) {
        float d[4];
        BURRSTONE_UNROLL
        for (int i = 0; i < 4; ++i) d[i] = block[at + i];
        if constexpr (Instruction::K == 16) {
            const uint32_t b[2] = {low, high};
            mma<Instruction, T>(d, a, b);
        } else {
            const uint32_t first[2] = {a[0], a[1]}, second[2] = {a[2], a[3]}, b_first[1] = {low}, b_second[1] = {high};
            mma<Instruction, T>(d, first, b_first);
            mma<Instruction, T>(d, second, b_second);
        }
        BURRSTONE_UNROLL
        for (int i = 0; i < 4; ++i) block[at + i] = d[i];
    }
};

// For m8n8k4, with manually loaded fragments. The warp's four products are the quarters of a block: bit 2 of the lane
// selects rows r with r / 4 % 2, bit 3 columns likewise, so that lanes that load together access eight different rows
// of shared memory. In the second product the weights of half of the keys come from the lanes that differ in bit 3:
// those lanes start with the other half, and so does their sum.
template <class T, class KV> struct AttentionFragments<m8n8k4, T, KV> {
    static constexpr bool NARROW = sizeof(KV) == 1;
    static BURRSTONE_DEVICE unsigned row_peer(int i) { return i == 0 ? 2 : 8; }
    static constexpr int QUERY_WORDS = 8, WEIGHT_WORDS = 8, VALUE_WORDS = 8;

    static BURRSTONE_DEVICE uint32_t bit(int i) { return lane_index() >> i & 1; }
    // The row of an operand that a lane loads, where bit `i` chooses the product.
    static BURRSTONE_DEVICE uint32_t own(int i) { return lane_index() % 4 + 4 * bit(i) + 8 * (lane_index() / 16); }

    static BURRSTONE_DEVICE uint32_t row(int half) { return bit(0) + 2 * half + 4 * bit(2) + 8 * (lane_index() / 16); }
    static BURRSTONE_DEVICE uint32_t key(int i) { return (lane_index() & 2) + 4 * bit(3) + i / 4 * 8 + i % 2; }
    static BURRSTONE_DEVICE int element(int pair, int half, int e) { return 4 * pair + 2 * half + e; }
    static BURRSTONE_DEVICE uint32_t column(int pair) { return (lane_index() & 2) + 4 * bit(3) + 8 * pair; }
    static BURRSTONE_DEVICE uint32_t query_pair(uint32_t p) { return p; }

    template <class Query>
    static BURRSTONE_DEVICE void load_query(const Query &query, uint32_t first_row, uint32_t step,
                                            uint32_t (&words)[QUERY_WORDS]) {
        const uint32_t at = Query::index(first_row + own(2), 0);
        BURRSTONE_UNROLL
        for (int k = 0; k < 4; ++k) load_four(query, at ^ (step * BLOCK_SIDE + 4 * k), &words[2 * k]);
    }

    static constexpr int STEPS = 1;
    template <class Keys>
    static BURRSTONE_DEVICE void add_scores(const uint32_t (&query)[STEPS][QUERY_WORDS], const Keys &keys,
        uint32_t first_key,
                                            uint32_t step, float (&scores)[8]) {
        const uint32_t at = Keys::index(first_key + own(3), 0);
        uint32_t words[8];
        if constexpr (NARROW) {
            BURRSTONE_UNROLL
            for (int k = 0; k < 2; ++k) {
                const auto bytes = keys.data.template load_vec<8>(at ^ (step * BLOCK_SIDE + 8 * k));
                widen_eight(bytes, &words[4 * k]);
            }
        } else {
            BURRSTONE_UNROLL
            for (int k = 0; k < 4; ++k) load_four(keys, at ^ (step * BLOCK_SIDE + 4 * k), &words[2 * k]);
        }
        BURRSTONE_UNROLL
        for (int k = 0; k < 4; ++k) {
            const uint32_t a[2] = {query[0][2 * k], query[0][2 * k + 1]}, b[2] = {words[2 * k], words[2 * k + 1]};
            mma<m8n8k4, T>(scores, a, b);
        }
    }

    // Words 4 x + 2 o of a lane: its row's weights of keys 8 o + 4 (bit(3) ^ x) and the three after.
    static BURRSTONE_DEVICE void pack_weights(const float (&weights)[8], uint32_t (&words)[WEIGHT_WORDS]) {
        const bool upper = lane_index() & 2;
        BURRSTONE_UNROLL
        for (int o = 0; o < 2; ++o) {
            const uint32_t first = pack<T>(weights[4 * o], weights[4 * o + 1]);
            const uint32_t second = pack<T>(weights[4 * o + 2], weights[4 * o + 3]);
            const uint32_t kept = upper ? second : first, came = shfl_xor(upper ? first : second, 2);
            words[2 * o] = upper ? came : kept;
            words[2 * o + 1] = upper ? kept : came;
        }
        BURRSTONE_UNROLL
        for (int i = 0; i < 4; ++i) words[4 + i] = shfl_xor(words[i], 8);
    }

    template <class Values>
    static BURRSTONE_DEVICE void load_values(const Values &values, uint32_t first_key, uint32_t block,
                                             uint32_t (&words)[VALUE_WORDS]) {
        BURRSTONE_UNROLL
        for (int k = 0; k < 4; ++k) {
            const uint32_t row = Values::index(first_key + value_key(k), 8 * (lane_index() / 16) + 4 * bit(3));
            const uint32_t at = row ^ block * BLOCK_SIDE;
            if constexpr (NARROW) {
                uint32_t wide[2];
                const auto bytes = values.data.template load_vec<4>(at);
                widen<T, KV>(bit_cast<uint32_t>(bytes), wide);
                words[2 * k] = wide[0], words[2 * k + 1] = wide[1];
            } else {
                load_four(values, at, &words[2 * k]);
            }
        }
    }

    static BURRSTONE_DEVICE void clear_values(uint32_t (&words)[VALUE_WORDS], uint32_t seen) {
        BURRSTONE_UNROLL
        for (int k = 0; k < 4; ++k)
            if ((seen >> value_key(k) & 1) == 0) words[2 * k] = words[2 * k + 1] = 0;
    }

    static BURRSTONE_DEVICE void add_values(const uint32_t (&weights)[WEIGHT_WORDS],
        const uint32_t (&values)[VALUE_WORDS],
                                            float (&out)[8]) {
        BURRSTONE_UNROLL
        for (int k = 0; k < 4; ++k) {
            const uint32_t a[2] = {weights[2 * k], weights[2 * k + 1]}, b[2] = {values[2 * k], values[2 * k + 1]};
            mma<m8n8k4_rows, T>(out, a, b);
        }
    }

  private:
    // The key of the k-th step of the second product.
    static BURRSTONE_DEVICE uint32_t value_key(int k) {
        return lane_index() % 4 + 4 * (bit(3) ^ uint32_t(k / 2)) + k % 2 * 8;
    }

    template <class Rows>
    static BURRSTONE_DEVICE void load_four(const Rows &rows, uint32_t at, uint32_t *words) {
        const auto loaded = bit_cast<vec<uint32_t, 2>>(rows.data.template load_vec<4>(at));
        words[0] = loaded.v[0], words[1] = loaded.v[1];
    }
    static BURRSTONE_DEVICE void widen_eight(const vec<KV, 8> &bytes, uint32_t *words) {
        const auto halves = bit_cast<vec<uint32_t, 2>>(bytes);
        BURRSTONE_UNROLL
        for (int i = 0; i < 2; ++i) {
            uint32_t wide[2];
            widen<T, KV>(halves.v[i], wide);
            words[2 * i] = wide[0], words[2 * i + 1] = wide[1];
        }
    }
};

} // namespace burrstone

#endif
