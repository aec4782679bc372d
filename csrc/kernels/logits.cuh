// Rows of logits: maximum and softmax denominator, with bits that depend only on the row.
#ifndef BURRSTONE_KERNELS_LOGITS_CUH
#define BURRSTONE_KERNELS_LOGITS_CUH

#include "common/kernel.cuh"

namespace burrstone {

// What CUDA's atomics call 64 bits.
using u64 = unsigned long long;

// Weights from 0 to 1 are summed as integers in units of 2^-43: the bits are the same for every order and number of
// threads. A row of 2^20 ones still fits, and the truncation is below an f32's rounding.
constexpr int WEIGHT_BITS = 43;
constexpr float WEIGHT_ONE = float(u64(1) << WEIGHT_BITS);
BURRSTONE_DEVICE u64 fixed_point(float weight) { return u64(weight * WEIGHT_ONE); }

constexpr uint32_t NO_COLUMN = 0xffffffffu;

// Logits that a warp takes at a time, from a multiple of it on: 16 bytes a lane.
constexpr uint32_t LOGIT_GROUP = 4 * WARP;

// Calls visit(column, logit) for every column of a row, in one thread each, ascending; and after(group) in all lanes of
// the warp that had columns LOGIT_GROUP * group and on.
template <int THREADS, class Visit, class After>
BURRSTONE_DEVICE void each_logit(const float *row, uint32_t vocab, Visit visit, After after, Site site = here()) {
    const bool aligned = vocab % 4 == 0 && reinterpret_cast<uint64_t>(row) % 16 == 0;
    for (uint32_t group = warp_index(); group * LOGIT_GROUP < vocab; group += THREADS / WARP) {
        const uint32_t column = group * LOGIT_GROUP + lane_index() * 4;
        if (aligned) {
            if (column < vocab) {
                const auto four = load(reinterpret_cast<const vec<float, 4> *>(row + column), site);
                BURRSTONE_UNROLL
                for (uint32_t e = 0; e < 4; ++e) visit(column + e, four.v[e]);
            }
        } else {
            BURRSTONE_UNROLL
            for (uint32_t e = 0; e < 4; ++e)
                if (column + e < vocab) visit(column + e, load(row + column + e, site));
        }
        after(group);
    }
}

template <int THREADS, class Visit>
BURRSTONE_DEVICE void each_logit(const float *row, uint32_t vocab, Visit visit, Site site = here()) {
    each_logit<THREADS>(row, vocab, visit, [](uint32_t) {}, site);
}

template <int THREADS> struct LogitsShared {
    Shared<u64, THREADS / int(WARP)> best;
    Shared<uint32_t, THREADS / int(WARP)> bad;
    Shared<u64, THREADS / int(WARP)> sum;
};

// The largest logit of a row, in the lowest column that has it.
struct Largest {
    float logit;
    uint32_t column;
    // The lowest column with NaN or +infinity.
    uint32_t bad;
};

// `shared` may be used again after the next sync_block, here as below.
template <int THREADS>
BURRSTONE_DEVICE Largest largest_logit(const float *row, uint32_t vocab, LogitsShared<THREADS> &shared) {
    float best = -INFINITY_F;
    uint32_t column = NO_COLUMN, bad = NO_COLUMN;
    each_logit<THREADS>(row, vocab, [&](uint32_t at, float logit) {
        if (!(logit < INFINITY_F) && at < bad) bad = at;
        if (logit > best || column == NO_COLUMN) best = logit, column = at;
    });
    // Larger logits have larger keys, ties go to the lower column; adding zero makes -0 equal to 0.
    const uint32_t bits = bit_cast<uint32_t>(best + 0.0f);
    const uint32_t order = bits >> 31 ? ~bits : bits | 0x80000000u;
    const u64 key = reduce_max_block(column == NO_COLUMN ? u64(0) : u64(order) << 32 | (NO_COLUMN - column), shared.best);
    const auto lower = [](uint32_t a, uint32_t b) { return a < b ? a : b; };
    const uint32_t found = uint32_t(key >> 32);
    return {bit_cast<float>(found >> 31 ? found & 0x7fffffffu : ~found), NO_COLUMN - uint32_t(key),
            reduce_block(bad, lower, shared.bad)};
}

// log(sum of exp(logit - largest)) of a row whose largest logit is finite.
template <int THREADS>
BURRSTONE_DEVICE double log_sum_exp(const float *row, uint32_t vocab, float largest, LogitsShared<THREADS> &shared) {
    u64 sum = 0;
    each_logit<THREADS>(row, vocab, [&](uint32_t, float logit) { sum += fixed_point(exp_(logit - largest)); });
    return log_(double(reduce_sum_block(sum, shared.sum)) / double(u64(1) << WEIGHT_BITS));
}

// The log-probability of a logit in a row.
BURRSTONE_DEVICE float logprob(float logit, float largest, double log_sum) {
    return float(double(logit) - double(largest) - log_sum);
}

} // namespace burrstone

#endif
