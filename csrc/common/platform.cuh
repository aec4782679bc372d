// Compilation target: a GPU, or the simulator (BURRSTONE_SIM) with one fiber per CUDA thread.
#ifndef BURRSTONE_COMMON_PLATFORM_CUH
#define BURRSTONE_COMMON_PLATFORM_CUH

#include "abi/types.h"

#ifdef BURRSTONE_SIM
#include "sim/runtime.h"
#define BURRSTONE_DEVICE inline
#else
#define BURRSTONE_DEVICE __device__ __forceinline__
#endif

// Full unroll, for loops that index registers.
#ifdef BURRSTONE_SIM
#define BURRSTONE_UNROLL
#define BURRSTONE_ROLLED
#define BURRSTONE_UNROLL_BY(count)
#else
#define BURRSTONE_UNROLL _Pragma("unroll")
// No unroll: copies of a large body would only take registers.
#define BURRSTONE_ROLLED _Pragma("unroll 1")
// Unroll by a constant.
#define BURRSTONE_PRAGMA(text) _Pragma(#text)
#define BURRSTONE_UNROLL_BY(count) BURRSTONE_PRAGMA(unroll(count))
#endif

namespace burrstone {

// The source location of a call to a primitive. The simulator reports it in faults and counts accesses by it; on a GPU
// it is empty.
#ifdef BURRSTONE_SIM
struct Site {
    const char *file;
    unsigned line;
};
constexpr Site here(const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()) { return {file, line}; }
#else
struct Site {};
BURRSTONE_DEVICE constexpr Site here() { return {}; }
#endif

template <class To, class From> BURRSTONE_DEVICE constexpr To bit_cast(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    return __builtin_bit_cast(To, from);
}

} // namespace burrstone

#endif
