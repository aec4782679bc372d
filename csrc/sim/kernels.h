// Passes the kernels of a linked or loaded library to the simulator. The generator writes one unit for each library,
// which defines BURRSTONE_SIM_KERNELS(kernel) as `kernel(name)` for each variant and includes this file.
#ifndef BURRSTONE_SIM_KERNELS_H
#define BURRSTONE_SIM_KERNELS_H

#include "sim/runtime.h"

extern "C" {

struct burrstone_sim_kernel {
    const char *name;
    // Runs one thread, on a fiber, with the argument struct and the block's shared memory.
    void (*run)(const void *args, void *shared);
    const uint32_t *shared_bytes;
};

burrstone_sim_hooks burrstone_sim;

#define BURRSTONE_SIM_DECLARE(name)                                                                                    \
    void burrstone_sim_##name(const void *args, void *shared);                                                         \
    extern const uint32_t burrstone_sim_##name##__shared;
BURRSTONE_SIM_KERNELS(BURRSTONE_SIM_DECLARE)

// Stores the simulator's functions, and returns the kernels; the last entry has no name. Null, and nothing stored, if
// the simulator's table has another size.
const burrstone_sim_kernel *burrstone_sim_kernels(const burrstone_sim_hooks *hooks, uint64_t hooks_bytes);
const burrstone_sim_kernel *burrstone_sim_kernels(const burrstone_sim_hooks *hooks, uint64_t hooks_bytes) {
#define BURRSTONE_SIM_ENTRY(name) {#name, burrstone_sim_##name, &burrstone_sim_##name##__shared},
    static const burrstone_sim_kernel kernels[] = {
        BURRSTONE_SIM_KERNELS(BURRSTONE_SIM_ENTRY){nullptr, nullptr, nullptr},
    };
    if (hooks_bytes != sizeof burrstone_sim) return nullptr;
    burrstone_sim = *hooks;
    return kernels;
}

} // extern "C"

#endif
