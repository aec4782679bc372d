// Overlap of a kernel with the one before it in the stream, where the launch asks for it. Without effect below sm_90,
// and on the simulator, whose launches do not overlap.
#ifndef BURRSTONE_COMMON_DEPENDENT_LAUNCH_CUH
#define BURRSTONE_COMMON_DEPENDENT_LAUNCH_CUH

#include "common/platform.cuh"

namespace burrstone {

// Before the first access to what the kernel before may write.
BURRSTONE_DEVICE void wait_for_previous_kernel() {
#if !defined(BURRSTONE_SIM) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start, up to its own wait.
BURRSTONE_DEVICE void let_next_kernel_start() {
#if !defined(BURRSTONE_SIM) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

} // namespace burrstone

#endif
