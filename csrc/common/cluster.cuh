// Thread block clusters (sm_90): blocks that are neighbours along x, run at the same time and can access each other's
// shared memory.
//
// The launch sets the cluster size; by default each block is a cluster of its own. Another block's shared memory is
// valid from the first cluster_sync until its last thread exits, so call cluster_sync before the first and after the
// last remote access.
#ifndef BURRSTONE_COMMON_CLUSTER_CUH
#define BURRSTONE_COMMON_CLUSTER_CUH

#include "common/tma.cuh"

namespace burrstone {

// The block's rank in its cluster.
BURRSTONE_DEVICE unsigned cluster_rank() {
#ifdef BURRSTONE_SIM
    return burrstone_sim.current()->rank;
#else
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#endif
}

// Barrier of all threads of the cluster, none of which may have exited. The lanes of a warp must arrive together.
// Orders memory.
BURRSTONE_DEVICE void cluster_sync(Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.cluster_sync(site.file, site.line);
#else
    (void)site;
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// The cluster-window address of `shared` in block `rank`.
BURRSTONE_DEVICE uint32_t cluster_address(uint32_t shared, unsigned rank, Site site = here()) {
#ifdef BURRSTONE_SIM
    return burrstone_sim.cluster_address(shared, rank, site.file, site.line);
#else
    (void)site;
    uint32_t mapped;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(shared), "r"(rank));
    return mapped;
#endif
}

// Arrives at an mbarrier of another block (see cluster_address). The waiting threads may then overwrite what this
// thread has read. This thread's writes are not made visible to other blocks: a cluster-wide release would cost a
// GPU-wide fence each time. The simulator does not model that difference.
BURRSTONE_DEVICE void mbarrier_arrive_cluster(uint32_t barrier, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.mbarrier_arrive_cluster(barrier, site.file, site.line);
#else
    (void)site;
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}

// Multicast tensor_load: a box goes to `shared` of every block whose bit is set in `blocks` (by rank), and its bytes
// are reported to `mbarrier` of each. See tensor_load.
BURRSTONE_DEVICE void tensor_multicast(uint32_t shared, const tensor_map &map, const Coordinates<2> &c, uint32_t mbarrier,
                                       uint32_t blocks, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.tensor_multicast(shared, &map, c.at, 2, mbarrier, blocks, site.file, site.line);
#else
    (void)site;
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4}], [%2], %5;"
                 ::"r"(shared), "l"(&map), "r"(mbarrier), "r"(c.at[0]), "r"(c.at[1]), "h"(uint16_t(blocks)) : "memory");
#endif
}

} // namespace burrstone

#endif
