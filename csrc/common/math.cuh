// Float functions. The simulator uses the C library (half an ulp), where GPUs have errors of one or two ulp.
#ifndef BURRSTONE_COMMON_MATH_CUH
#define BURRSTONE_COMMON_MATH_CUH

#include "common/platform.cuh"

namespace burrstone {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
constexpr float INFINITY_F = __builtin_bit_cast(float, 0x7f800000u);

#ifdef BURRSTONE_SIM

inline float fma_(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
// A product with its own rounding, never contracted to an FMA.
inline float mul_(float a, float b) { return a * b; }
// 2^x; on a GPU 2 ulp (ex2.approx).
inline float exp2_fast(float x) { return __builtin_exp2f(x); }
inline float exp_(float x) { return __builtin_expf(x); }
inline float log_(float x) { return __builtin_logf(x); }
inline double log_(double x) { return __builtin_log(x); }
inline float log2_fast(float x) { return __builtin_log2f(x); }
// 1/sqrt(x); on a GPU 2 ulp.
inline float rsqrt_(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float sqrt_(float x) { return __builtin_sqrtf(x); }
// 1/x; on a GPU 1 ulp.
inline float reciprocal_fast(float x) { return 1.0f / x; }
inline float tanh_(float x) { return __builtin_tanhf(x); }
inline float erf_(float x) { return __builtin_erff(x); }
inline float sin_(float x) { return __builtin_sinf(x); }
inline float cos_(float x) { return __builtin_cosf(x); }
inline float floor_(float x) { return __builtin_floorf(x); }
inline float abs_(float x) { return __builtin_fabsf(x); }
inline float min_(float a, float b) { return __builtin_fminf(a, b); }
inline float max_(float a, float b) { return __builtin_fmaxf(a, b); }
inline bool isnan_(float x) { return x != x; }
// The upper 32 bits of the product.
inline uint32_t mul_hi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }
inline int popcount(uint32_t x) { return __builtin_popcount(x); }
// The index of the lowest set bit, from 1; 0 for none.
inline int find_first_set(uint32_t x) { return __builtin_ffs(int(x)); }
inline int count_leading_zeros(uint32_t x) { return x == 0 ? 32 : __builtin_clz(x); }

#else

BURRSTONE_DEVICE float fma_(float a, float b, float c) { return ::fmaf(a, b, c); }
BURRSTONE_DEVICE float mul_(float a, float b) { return ::__fmul_rn(a, b); }
BURRSTONE_DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
BURRSTONE_DEVICE float exp_(float x) { return ::expf(x); }
BURRSTONE_DEVICE float log_(float x) { return ::logf(x); }
BURRSTONE_DEVICE double log_(double x) { return ::log(x); }
BURRSTONE_DEVICE float log2_fast(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
BURRSTONE_DEVICE float rsqrt_(float x) { return ::rsqrtf(x); }
BURRSTONE_DEVICE float sqrt_(float x) { return ::sqrtf(x); }
BURRSTONE_DEVICE float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
BURRSTONE_DEVICE float tanh_(float x) { return ::tanhf(x); }
BURRSTONE_DEVICE float erf_(float x) { return ::erff(x); }
BURRSTONE_DEVICE float sin_(float x) { return ::sinf(x); }
BURRSTONE_DEVICE float cos_(float x) { return ::cosf(x); }
BURRSTONE_DEVICE float floor_(float x) { return ::floorf(x); }
BURRSTONE_DEVICE float abs_(float x) { return ::fabsf(x); }
BURRSTONE_DEVICE float min_(float a, float b) { return ::fminf(a, b); }
BURRSTONE_DEVICE float max_(float a, float b) { return ::fmaxf(a, b); }
BURRSTONE_DEVICE bool isnan_(float x) { return x != x; }
BURRSTONE_DEVICE uint32_t mul_hi(uint32_t a, uint32_t b) { return ::__umulhi(a, b); }
BURRSTONE_DEVICE int popcount(uint32_t x) { return ::__popc(x); }
BURRSTONE_DEVICE int find_first_set(uint32_t x) { return ::__ffs(int(x)); }
BURRSTONE_DEVICE int count_leading_zeros(uint32_t x) { return ::__clz(int(x)); }

#endif

} // namespace burrstone

#endif
