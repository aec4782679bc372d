// Storage types of tensors, their conversions to and from float, and short vectors of them.
//
// Conversions round to nearest even. The 8-bit floats saturate (infinities too) and keep NaN.
#ifndef BURRSTONE_COMMON_TYPES_CUH
#define BURRSTONE_COMMON_TYPES_CUH

#include "common/platform.cuh"

namespace burrstone {

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};
struct e4m3 {
    uint8_t bits;
};
struct e5m2 {
    uint8_t bits;
};
using f32 = float;
using i8 = int8_t;

template <class T> constexpr bool IS_BF16 = false;
template <> constexpr bool IS_BF16<bf16> = true;

// N values side by side, loaded and stored as one access.
template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) vec {
    T v[N];
};

namespace detail {

BURRSTONE_DEVICE uint32_t float_bits(float x) { return bit_cast<uint32_t>(x); }
BURRSTONE_DEVICE float float_from_bits(uint32_t x) { return bit_cast<float>(x); }

// Rounds the magnitude of a float to a smaller binary format of EXPONENT and MANTISSA bits. `limit` is the largest code
// of a finite value; `over` the code of anything that rounds above it.
template <int EXPONENT, int MANTISSA> BURRSTONE_DEVICE uint32_t narrow(uint32_t magnitude, uint32_t limit, uint32_t over) {
    constexpr int BIAS = (1 << (EXPONENT - 1)) - 1;
    constexpr int DROPPED = 23 - MANTISSA;
    int exponent = int(magnitude >> 23) - 127 + BIAS;
    uint32_t code;
    if (exponent > 0) {
        uint32_t scaled = magnitude - (uint32_t(127 - BIAS) << 23);
        code = (scaled + ((1u << (DROPPED - 1)) - 1) + ((scaled >> DROPPED) & 1)) >> DROPPED;
    } else {
        // A subnormal of the target: shift the whole significand into place.
        int shift = DROPPED + 1 - exponent;
        if (shift > 25) return 0;
        uint32_t significand = (magnitude & 0x7fffff) | 0x800000;
        uint32_t kept = significand >> shift;
        uint32_t rest = significand & ((1u << shift) - 1);
        uint32_t half = 1u << (shift - 1);
        code = kept + ((rest > half || (rest == half && (kept & 1))) ? 1 : 0);
    }
    return code > limit ? over : code;
}

template <int EXPONENT, int MANTISSA> BURRSTONE_DEVICE float widen(uint32_t magnitude) {
    constexpr int BIAS = (1 << (EXPONENT - 1)) - 1;
    uint32_t exponent = magnitude >> MANTISSA;
    uint32_t mantissa = magnitude & ((1u << MANTISSA) - 1);
    if (exponent == 0) return float(mantissa) * float_from_bits(uint32_t(127 + 1 - BIAS - MANTISSA) << 23);
    return float_from_bits(((exponent + 127 - BIAS) << 23) | (mantissa << (23 - MANTISSA)));
}

BURRSTONE_DEVICE uint8_t to_e4m3(float x) {
    uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffff, sign = (bits >> 24) & 0x80;
    if (magnitude > 0x7f800000) return 0x7f;
    return uint8_t(sign | narrow<4, 3>(magnitude, 0x7e, 0x7e));
}

BURRSTONE_DEVICE uint8_t to_e5m2(float x) {
    uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffff, sign = (bits >> 24) & 0x80;
    if (magnitude > 0x7f800000) return 0x7f;
    return uint8_t(sign | narrow<5, 2>(magnitude, 0x7b, 0x7b));
}

} // namespace detail

BURRSTONE_DEVICE float to_float(float x) { return x; }

BURRSTONE_DEVICE float to_float(bf16 x) { return detail::float_from_bits(uint32_t(x.bits) << 16); }

BURRSTONE_DEVICE float to_float(i8 x) { return float(x); }

BURRSTONE_DEVICE float to_float(f16 x) {
#ifdef BURRSTONE_SIM
    uint32_t magnitude = x.bits & 0x7fff, sign = uint32_t(x.bits & 0x8000) << 16;
    uint32_t wide = magnitude >= 0x7c00 ? 0x7f800000 | ((magnitude & 0x3ff) << 13)
                                        : detail::float_bits(detail::widen<5, 10>(magnitude));
    return detail::float_from_bits(sign | wide);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
#endif
}

// Branch-free: with its exponent and mantissa in an f32's places the number is 2^120 too small, subnormals included.
BURRSTONE_DEVICE float to_float(e4m3 x) {
    uint32_t magnitude = x.bits & 0x7f, sign = uint32_t(x.bits & 0x80) << 24;
    float wide = detail::float_from_bits(magnitude << 20) * detail::float_from_bits((127u + 120) << 23);
    return detail::float_from_bits(sign | (magnitude == 0x7f ? 0x7fffffff : detail::float_bits(wide)));
}

// The upper half of an f16.
BURRSTONE_DEVICE float to_float(e5m2 x) { return to_float(f16{uint16_t(x.bits << 8)}); }

template <class T> BURRSTONE_DEVICE T from_float(float x);

template <> BURRSTONE_DEVICE float from_float<float>(float x) { return x; }

template <> BURRSTONE_DEVICE f16 from_float<f16>(float x) {
#ifdef BURRSTONE_SIM
    uint32_t bits = detail::float_bits(x), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
    if (magnitude > 0x7f800000) return {uint16_t(0x7fff)};
    return {uint16_t(sign | detail::narrow<5, 10>(magnitude, 0x7bff, 0x7c00))};
#else
    f16 narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
    return narrow;
#endif
}

template <> BURRSTONE_DEVICE bf16 from_float<bf16>(float x) {
#if !defined(BURRSTONE_SIM) && __CUDA_ARCH__ >= 800
    bf16 narrow;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
    return narrow;
#else
    uint32_t bits = detail::float_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t(0x7fff)};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
#endif
}

template <> BURRSTONE_DEVICE e4m3 from_float<e4m3>(float x) {
#if !defined(BURRSTONE_SIM) && __CUDA_ARCH__ >= 890
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    return {uint8_t(pair)};
#else
    return {detail::to_e4m3(x)};
#endif
}

template <> BURRSTONE_DEVICE e5m2 from_float<e5m2>(float x) {
#if !defined(BURRSTONE_SIM) && __CUDA_ARCH__ >= 890
    uint16_t pair;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    return {uint8_t(pair)};
#else
    return {detail::to_e5m2(x)};
#endif
}

// Saturates; NaN becomes 0.
template <> BURRSTONE_DEVICE i8 from_float<i8>(float x) {
#ifdef BURRSTONE_SIM
    if (!(x == x)) return 0;
    float r = __builtin_rintf(x);
    return i8(r < -128.0f ? -128.0f : r > 127.0f ? 127.0f : r);
#else
    int rounded;
    asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(rounded) : "f"(x));
    return i8(rounded);
#endif
}

} // namespace burrstone

#endif
