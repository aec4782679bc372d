// Pairs of 16-bit floats in a word, first in the low half: the elements of tensor core fragments, and the conversion of
// 8-bit numbers to them.
#ifndef BURRSTONE_COMMON_PAIRS_CUH
#define BURRSTONE_COMMON_PAIRS_CUH

#include "common/types.cuh"

namespace burrstone {

namespace detail {

template <class T> BURRSTONE_DEVICE T half_of(uint32_t pair, int i) { return {uint16_t(pair >> 16 * i)}; }

} // namespace detail

// Byte permutation: each digit of `selector` selects a byte, lowest first; 0 to 3 are a's, 4 to 7 are b's.
BURRSTONE_DEVICE uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef BURRSTONE_SIM
    const uint64_t bytes = uint64_t(b) << 32 | a;
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) word |= uint32_t(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return word;
#else
    return ::__byte_perm(a, b, selector);
#endif
}

// Both rounded to T: one instruction from sm_80 on.
template <class T> BURRSTONE_DEVICE uint32_t pack(float low, float high) {
#if !defined(BURRSTONE_SIM) && __CUDA_ARCH__ >= 800
    uint32_t pair;
    if constexpr (IS_BF16<T>)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return from_float<T>(low).bits | uint32_t(from_float<T>(high).bits) << 16;
#endif
}

// a b + c of both halves, subnormals included; bf16 from sm_80 on. The simulator rounds to f32 on the way.
template <class T> BURRSTONE_DEVICE uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
#ifdef BURRSTONE_SIM
    float sums[2];
    for (int i = 0; i < 2; ++i)
        sums[i] = __builtin_fmaf(to_float(detail::half_of<T>(a, i)), to_float(detail::half_of<T>(b, i)),
                                 to_float(detail::half_of<T>(c, i)));
    return pack<T>(sums[0], sums[1]);
#else
    uint32_t sums;
    if constexpr (IS_BF16<T>)
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sums) : "r"(a), "r"(b), "r"(c));
    else
        asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sums) : "r"(a), "r"(b), "r"(c));
    return sums;
#endif
}

namespace detail {

BURRSTONE_DEVICE constexpr uint32_t both(uint32_t bits) { return bits << 16 | bits; }

// An f16 pair as T; T can represent both numbers.
template <class T> BURRSTONE_DEVICE uint32_t from_f16_pair(uint32_t pair) {
    if constexpr (IS_BF16<T>)
        return pack<bf16>(to_float(half_of<f16>(pair, 0)), to_float(half_of<f16>(pair, 1)));
    else
        return pair;
}

// Selectors that put bytes 2 w and 2 w + 1 of a word into the upper, or lower, bytes of a pair; b supplies the other
// bytes.
BURRSTONE_DEVICE constexpr uint32_t upper_bytes(int w) { return w == 0 ? 0x1404 : 0x3424; }
BURRSTONE_DEVICE constexpr uint32_t lower_bytes(int w) { return w == 0 ? 0x4140 : 0x4342; }

template <class T> BURRSTONE_DEVICE void widen(uint32_t word, uint32_t (&wide)[2], e5m2) {
    // The upper half of an f16.
    BURRSTONE_UNROLL
    for (int w = 0; w < 2; ++w) wide[w] = from_f16_pair<T>(permute(word, 0, upper_bytes(w)));
}

template <class T> BURRSTONE_DEVICE void widen(uint32_t word, uint32_t (&wide)[2], e4m3) {
    BURRSTONE_UNROLL
    for (int w = 0; w < 2; ++w) {
#if !defined(BURRSTONE_SIM) && __CUDA_ARCH__ >= 890
        uint32_t pair;
        asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(uint16_t(word >> 16 * w)));
        wide[w] = from_f16_pair<T>(pair);
#else
        // With sign, exponent and mantissa moved to T's places the numbers are 2^8 (bf16: 2^120) too small, subnormals
        // included.
        constexpr int DOWN = IS_BF16<T> ? 4 : 1;
        constexpr uint32_t UP = both(IS_BF16<T> ? 0x7b80 : 0x5c00), MINUS_ZERO = both(0x8000);
        const uint32_t bytes = permute(word, 0, upper_bytes(w));
        const uint32_t small = (bytes & MINUS_ZERO) | (bytes >> DOWN & both(0x7f00 >> DOWN));
        const uint32_t pair = fma_pair<T>(small, UP, MINUS_ZERO);
        // NaN has become 480: multiplied by this it overflows to infinity, unlike 448, and infinity times zero is NaN
        // again.
        constexpr uint32_t SIEVE = both(IS_BF16<T> ? 0x7b0e : 0x5860);
        wide[w] = fma_pair<T>(fma_pair<T>(pair, SIEVE, MINUS_ZERO), 0, pair);
#endif
    }
}

template <class T> BURRSTONE_DEVICE void widen(uint32_t word, uint32_t (&wide)[2], i8) {
    BURRSTONE_UNROLL
    for (int w = 0; w < 2; ++w) {
        if constexpr (IS_BF16<T>) {
            // In the low seven mantissa bits of 128 a non-negative number is an integer; the sign bit turns -128 into
            // -256.
            const uint32_t pair = permute(word, both(0x4343), lower_bytes(w));
            wide[w] = fma_pair<T>(pair & both(0xff7f), both(0x3f80), (pair & both(0x80)) | both(0xc300));
        } else {
            // The same with 1024, after adding 128, which is subtracted again.
            const uint32_t pair = permute(word ^ both(0x8080), both(0x6464), lower_bytes(w));
            wide[w] = fma_pair<T>(pair, both(0x3c00), both(0xe480));
        }
    }
}

} // namespace detail

// Four numbers of eight bits, the lowest byte first, as two pairs. Exact, NaN and infinities included.
template <class T, class KV> BURRSTONE_DEVICE void widen(uint32_t word, uint32_t (&wide)[2]) {
    detail::widen<T>(word, wide, KV{});
}

} // namespace burrstone

#endif
