// Programmatic dependent launch: overlaps a kernel with its predecessor in the stream if the launch asks for it. No
// effect below sm_90 or on the simulator.
#ifndef BURRSTONE_COMMON_DEPENDENT_LAUNCH_CUH
#define BURRSTONE_COMMON_DEPENDENT_LAUNCH_CUH

#include "common/platform.cuh"

namespace burrstone {

// Call before the first access to memory that the previous kernel may write.
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
