// Just enough of csrc/common for the generator's own tests.
#ifndef BURRSTONE_COMMON_KERNEL_CUH
#define BURRSTONE_COMMON_KERNEL_CUH

namespace burrstone {
using f32 = float;
using i32 = int;
}

#ifdef BURRSTONE_SIM

#define BURRSTONE_DEVICE inline
#define BURRSTONE_KERNEL(kernel, name, variant)                                                                        \
    extern "C" const unsigned burrstone_sim_##name##__shared;                                                          \
    extern "C" void burrstone_sim_##name(const void *args, void *shared);                                              \
    const unsigned burrstone_sim_##name##__shared = sizeof(burrstone::kernel##_shared<variant>);                       \
    void burrstone_sim_##name(const void *args, void *shared) {                                                        \
        burrstone::kernel<variant>(*static_cast<const kernel##_args *>(args),                                          \
                                   *static_cast<burrstone::kernel##_shared<variant> *>(shared));                       \
    }

namespace burrstone {
BURRSTONE_DEVICE int thread_index() { return 0; }
}

#else

#define BURRSTONE_DEVICE __device__ __forceinline__
#define BURRSTONE_KERNEL(kernel, name, variant)                                                                        \
    extern "C" __device__ const unsigned name##__shared = sizeof(burrstone::kernel##_shared<variant>);                 \
    extern "C" __global__ void __launch_bounds__(variant::threads) name(const __grid_constant__ kernel##_args args) {  \
        extern __shared__ __align__(1024) char shared[];                                                               \
        burrstone::kernel<variant>(args, *reinterpret_cast<burrstone::kernel##_shared<variant> *>(shared));            \
    }

namespace burrstone {
BURRSTONE_DEVICE int thread_index() { return threadIdx.x; }
}

#endif

#endif
