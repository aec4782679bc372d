// Where the code runs: on a GPU, or in the simulator (BURRSTONE_SIM), one fiber for each CUDA thread.
#ifndef BURRSTONE_COMMON_PLATFORM_CUH
#define BURRSTONE_COMMON_PLATFORM_CUH

#include "abi/types.h"

#ifdef BURRSTONE_SIM
#include "sim/runtime.h"
#define BURRSTONE_DEVICE inline
#else
#define BURRSTONE_DEVICE __device__ __forceinline__
#endif

// Before a loop whose body indexes registers: unrolled whole, so that they are registers.
#ifdef BURRSTONE_SIM
#define BURRSTONE_UNROLL
#define BURRSTONE_ROLLED
#define BURRSTONE_UNROLL_BY(count)
#else
#define BURRSTONE_UNROLL _Pragma("unroll")
// Before a loop whose body is large enough: copies of it would only take registers.
#define BURRSTONE_ROLLED _Pragma("unroll 1")
// Before a loop that is to have so many copies of its body: a constant.
#define BURRSTONE_PRAGMA(text) _Pragma(#text)
#define BURRSTONE_UNROLL_BY(count) BURRSTONE_PRAGMA(unroll(count))
#endif

namespace burrstone {

// The line of a kernel that calls a primitive. The simulator names it in faults and counts by it; on a GPU it is empty.
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
