// Registers move between the warpgroups of a block: producers give, consumers take. sm_90a.
#ifndef BURRSTONE_COMMON_REGISTER_BUDGET_CUH
#define BURRSTONE_COMMON_REGISTER_BUDGET_CUH

#include "common/platform.cuh"

namespace burrstone {

// Every warp of a warpgroup keeps at most REGISTERS a thread.
template <int REGISTERS> BURRSTONE_DEVICE void give_registers() {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0, "24 to 256 registers, in eights");
#ifndef BURRSTONE_SIM
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

// Every warp of a warpgroup waits for REGISTERS a thread.
template <int REGISTERS> BURRSTONE_DEVICE void take_registers() {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0, "24 to 256 registers, in eights");
#ifndef BURRSTONE_SIM
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

} // namespace burrstone

#endif
