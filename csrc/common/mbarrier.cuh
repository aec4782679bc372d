// mbarriers: barriers in shared memory that count arrivals (sm_80) and bytes of asynchronous copies (sm_90).
//
// An mbarrier is a uint64_t of shared memory, identified by its shared-window address. It goes through phases 0, 1, 2…;
// a wait takes the parity of the phase that must have completed.
#ifndef BURRSTONE_COMMON_MBARRIER_CUH
#define BURRSTONE_COMMON_MBARRIER_CUH

#include "common/memory.cuh"

namespace burrstone {

// Called by one thread: initialises for `count` arrivals per phase. Others may use it after sync_block.
BURRSTONE_DEVICE void mbarrier_init(uint32_t barrier, uint32_t count, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.mbarrier_init(barrier, count, site.file, site.line);
#else
    (void)site;
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
#endif
}

// Makes initialised mbarriers visible to asynchronous copies: call after the inits, before sync_block. sm_90.
BURRSTONE_DEVICE void mbarrier_fence_init() {
#ifndef BURRSTONE_SIM
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

BURRSTONE_DEVICE void mbarrier_arrive(uint32_t barrier, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.mbarrier_arrive(barrier, 1, 0, site.file, site.line);
#else
    (void)site;
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier) : "memory");
#endif
}

// Adds `bytes` of asynchronous copies to what the phase waits for. sm_90.
BURRSTONE_DEVICE void mbarrier_expect(uint32_t barrier, uint32_t bytes, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.mbarrier_arrive(barrier, 0, bytes, site.file, site.line);
#else
    (void)site;
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#endif
}

// Both at once.
BURRSTONE_DEVICE void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.mbarrier_arrive(barrier, 1, bytes, site.file, site.line);
#else
    (void)site;
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }"
                 ::"r"(barrier), "r"(bytes) : "memory");
#endif
}

// Whether the phase of this parity has completed. May block for a while first; the simulator blocks until it has.
BURRSTONE_DEVICE bool mbarrier_try_wait(uint32_t barrier, uint32_t parity, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.mbarrier_wait(barrier, parity, site.file, site.line);
    return true;
#else
    (void)site;
    uint32_t over;
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(over) : "r"(barrier), "r"(parity) : "memory");
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(over) : "r"(barrier), "r"(parity) : "memory");
#endif
    return over != 0;
#endif
}

BURRSTONE_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity, Site site = here()) {
    while (!mbarrier_try_wait(barrier, parity, site)) {
    }
}

// Proxy fence: makes the thread's ordinary writes (and cp_async) to shared memory visible to later bulk copies and
// wgmma, of this thread or, after a barrier, of others. sm_90.
BURRSTONE_DEVICE void fence_async() {
#ifdef BURRSTONE_SIM
    burrstone_sim.fence_async();
#else
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

} // namespace burrstone

#endif
