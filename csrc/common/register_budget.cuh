// setmaxnreg: moves registers between the warpgroups of a block, from producers to consumers (sm_90a).
#ifndef BURRSTONE_COMMON_REGISTER_BUDGET_CUH
#define BURRSTONE_COMMON_REGISTER_BUDGET_CUH

#include "common/platform.cuh"

namespace burrstone {

// Releases registers: every warp of the warpgroup keeps at most REGISTERS per thread.
template <int REGISTERS> BURRSTONE_DEVICE void give_registers() {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0, "24 to 256 registers, in eights");
#ifndef BURRSTONE_SIM
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

// Acquires registers: every warp of the warpgroup waits for REGISTERS per thread.
template <int REGISTERS> BURRSTONE_DEVICE void take_registers() {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0, "24 to 256 registers, in eights");
#ifndef BURRSTONE_SIM
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

} // namespace burrstone

#endif
