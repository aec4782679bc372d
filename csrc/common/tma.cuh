// TMA (sm_90): bulk copies between global and shared memory, of plain bytes or boxes of tensors.
//
// One thread starts a copy. Loads report their bytes to an mbarrier; stores are waited for in groups. Tensor
// coordinates count elements, innermost dimension first; elements outside the tensor load as zero and are not stored.
// On the simulator a load completes only when no thread can continue without it, a store in the wait.
#ifndef BURRSTONE_COMMON_TMA_CUH
#define BURRSTONE_COMMON_TMA_CUH

#include "abi/tensor_map.h"
#include "common/mbarrier.cuh"

namespace burrstone {

// The coordinates of a box in a tensor of D dimensions.
template <int D> struct Coordinates {
    int32_t at[D];
};
template <class... I> Coordinates(I...) -> Coordinates<int(sizeof...(I))>;

// `bytes`, and both addresses, are multiples of 16.
BURRSTONE_DEVICE void bulk_load(uint32_t shared, const void *global, uint32_t bytes, uint32_t mbarrier, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.bulk_load(shared, global, bytes, mbarrier, site.file, site.line);
#else
    (void)site;
    uint64_t from;
    asm("cvta.to.global.u64 %0, %1;" : "=l"(from) : "l"(global));
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared), "l"(from), "r"(bytes), "r"(mbarrier) : "memory");
#endif
}

BURRSTONE_DEVICE void bulk_store(void *global, uint32_t shared, uint32_t bytes, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.bulk_store(global, shared, bytes, site.file, site.line);
#else
    (void)site;
    uint64_t to;
    asm("cvta.to.global.u64 %0, %1;" : "=l"(to) : "l"(global));
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared), "r"(bytes) : "memory");
#endif
}

// `map` is in the kernel's argument struct. `shared` is aligned to 128 bytes, or to 1024 for swizzled boxes.
template <int D>
BURRSTONE_DEVICE void tensor_load(uint32_t shared, const tensor_map &map, const Coordinates<D> &c, uint32_t mbarrier,
                                  Site site = here()) {
    static_assert(D >= 1 && D <= 5, "tensors have 1 to 5 dimensions");
#ifdef BURRSTONE_SIM
    burrstone_sim.tensor_load(shared, &map, c.at, D, mbarrier, site.file, site.line);
#else
    (void)site;
    if constexpr (D == 1)
        asm volatile("cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%3}], [%2];"
                     ::"r"(shared), "l"(&map), "r"(mbarrier), "r"(c.at[0]) : "memory");
    if constexpr (D == 2)
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%3, %4}], [%2];"
                     ::"r"(shared), "l"(&map), "r"(mbarrier), "r"(c.at[0]), "r"(c.at[1]) : "memory");
    if constexpr (D == 3)
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%3, %4, %5}], [%2];"
                     ::"r"(shared), "l"(&map), "r"(mbarrier), "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]) : "memory");
    if constexpr (D == 4)
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%3, %4, %5, %6}], [%2];"
                     ::"r"(shared), "l"(&map), "r"(mbarrier), "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(c.at[3]) : "memory");
    if constexpr (D == 5)
        asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];"
                     ::"r"(shared), "l"(&map), "r"(mbarrier), "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(c.at[3]), "r"(c.at[4]) : "memory");
#endif
}

// The writes to shared memory must be followed by fence_async() in their threads, then a barrier.
template <int D>
BURRSTONE_DEVICE void tensor_store(const tensor_map &map, const Coordinates<D> &c, uint32_t shared, Site site = here()) {
    static_assert(D >= 1 && D <= 5, "tensors have 1 to 5 dimensions");
#ifdef BURRSTONE_SIM
    burrstone_sim.tensor_store(&map, c.at, D, shared, site.file, site.line);
#else
    (void)site;
    if constexpr (D == 1)
        asm volatile("cp.async.bulk.tensor.1d.global.shared::cta.tile.bulk_group [%0, {%2}], [%1];"
                     ::"l"(&map), "r"(shared), "r"(c.at[0]) : "memory");
    if constexpr (D == 2)
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];"
                     ::"l"(&map), "r"(shared), "r"(c.at[0]), "r"(c.at[1]) : "memory");
    if constexpr (D == 3)
        asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];"
                     ::"l"(&map), "r"(shared), "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]) : "memory");
    if constexpr (D == 4)
        asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
                     ::"l"(&map), "r"(shared), "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(c.at[3]) : "memory");
    if constexpr (D == 5)
        asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];"
                     ::"l"(&map), "r"(shared), "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(c.at[3]), "r"(c.at[4]) : "memory");
#endif
}

// Closes the group of this thread's stores since the last commit.
BURRSTONE_DEVICE void bulk_commit(Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.bulk_commit(site.file, site.line);
#else
    (void)site;
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

// Waits until all but PENDING of this thread's latest groups have read their shared memory.
template <int PENDING> BURRSTONE_DEVICE void bulk_wait_read(Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.bulk_wait(PENDING, site.file, site.line);
#else
    (void)site;
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
#endif
}

// The same, until they have also been written to global memory.
template <int PENDING> BURRSTONE_DEVICE void bulk_wait(Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.bulk_wait(PENDING, site.file, site.line);
#else
    (void)site;
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Prefetches a tensor map.
BURRSTONE_DEVICE void prefetch_tensor_map([[maybe_unused]] const tensor_map &map) {
#ifndef BURRSTONE_SIM
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

} // namespace burrstone

#endif
