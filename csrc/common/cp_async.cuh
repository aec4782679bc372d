// Asynchronous copies from global to shared memory (sm_80 and later).
//
// The simulator completes a copy as late as allowed: in the wait. Until then its bytes are NaN, and accessing them is a
// fault.
#ifndef BURRSTONE_COMMON_CP_ASYNC_CUH
#define BURRSTONE_COMMON_CP_ASYNC_CUH

#include "common/memory.cuh"

namespace burrstone {

// Copies BYTES (4, 8 or 16; 16 bypasses L1) to a shared-window address. Only `valid` bytes of the source are read, the
// rest is filled with zeros; with `valid` 0 the source is not accessed.
template <int BYTES> BURRSTONE_DEVICE void cp_async(uint32_t shared, const void *global, uint32_t valid = BYTES, Site site = here()) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
#ifdef BURRSTONE_SIM
    burrstone_sim.cp_async(shared, global, BYTES, valid, site.file, site.line);
#else
    (void)site;
    uint64_t from;
    asm("cvta.to.global.u64 %0, %1;" : "=l"(from) : "l"(global));
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(valid) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(from), "n"(BYTES), "r"(valid) : "memory");
#endif
}

// Closes the group of this thread's copies since the last commit.
BURRSTONE_DEVICE void cp_async_commit(Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.cp_async_commit(site.file, site.line);
#else
    (void)site;
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most PENDING of this thread's latest groups are in flight. Other threads see the copies after a
// barrier.
template <int PENDING> BURRSTONE_DEVICE void cp_async_wait(Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.cp_async_wait(PENDING, site.file, site.line);
#else
    (void)site;
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// When the thread's earlier copies are complete, they arrive at the mbarrier once; its count must include that arrival.
BURRSTONE_DEVICE void cp_async_arrive(uint32_t mbarrier, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.cp_async_arrive(mbarrier, site.file, site.line);
#else
    (void)site;
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(mbarrier) : "memory");
#endif
}

} // namespace burrstone

#endif
