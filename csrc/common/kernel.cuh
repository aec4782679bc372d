// Included by every kernel: common headers and the entry point of a variant.
#ifndef BURRSTONE_COMMON_KERNEL_CUH
#define BURRSTONE_COMMON_KERNEL_CUH

#include "common/math.cuh"
#include "common/memory.cuh"
#include "common/platform.cuh"
#include "common/reduce.cuh"
#include "common/sync.cuh"
#include "common/thread.cuh"
#include "common/types.cuh"

namespace burrstone {

// An empty struct has size 1 in C++, but needs no shared memory.
template <class S> constexpr unsigned shared_bytes = __is_empty(S) ? 0 : unsigned(sizeof(S));

// Blocks that must fit an SM: a variant's `min_blocks`, or 1. setmaxnreg only works in kernels with such a bound.
template <class V, class = void> constexpr int min_blocks = 1;
template <class V> constexpr int min_blocks<V, decltype(void(V::min_blocks))> = V::min_blocks;

} // namespace burrstone

// BURRSTONE_KERNEL(kernel, name, variant) defines the entry `name` of the template burrstone::kernel<variant>, and its
// dynamic shared memory size. The launch bound is one block per SM, so that the compiler does not spill registers to
// fit more.
#ifdef BURRSTONE_SIM
#define BURRSTONE_KERNEL(kernel, name, variant)                                                                        \
    extern "C" {                                                                                                       \
    void burrstone_sim_##name(const void *args, void *shared);                                                         \
    void burrstone_sim_##name(const void *args, void *shared) {                                                        \
        burrstone::kernel<variant>(*static_cast<const kernel##_args *>(args),                                          \
                                   *static_cast<burrstone::kernel##_shared<variant> *>(shared));                       \
    }                                                                                                                  \
    extern const unsigned burrstone_sim_##name##__shared;                                                              \
    const unsigned burrstone_sim_##name##__shared = burrstone::shared_bytes<burrstone::kernel##_shared<variant>>;      \
    }
#else
#define BURRSTONE_KERNEL(kernel, name, variant)                                                                        \
    extern "C" __device__ const unsigned name##__shared = burrstone::shared_bytes<burrstone::kernel##_shared<variant>>;   \
    extern "C" __global__ void __launch_bounds__(variant::threads, burrstone::min_blocks<variant>)                     \
        name(const __grid_constant__ kernel##_args args) {                                                             \
        extern __shared__ __align__(1024) unsigned char burrstone_shared_memory[];                                     \
        burrstone::kernel<variant>(                                                                                    \
            args, *reinterpret_cast<burrstone::kernel##_shared<variant> *>(burrstone_shared_memory));                  \
    }
#endif

#endif
