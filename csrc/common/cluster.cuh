// Blocks of a cluster: neighbours along x that run at the same time and reach each other's shared memory. sm_90.
//
// A launch says how many there are; without that each block is a cluster of its own. A block's shared memory is there from
// the first cluster_sync on that it takes part in, and gone with its last thread: cluster_sync before the first and after
// the last access of others.
#ifndef BURRSTONE_COMMON_CLUSTER_CUH
#define BURRSTONE_COMMON_CLUSTER_CUH

#include "common/tma.cuh"

namespace burrstone {

// The block's number in its cluster.
BURRSTONE_DEVICE unsigned cluster_rank() {
#ifdef BURRSTONE_SIM
    return burrstone_sim.current()->rank;
#else
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#endif
}

// Every thread of the cluster, none of which may have finished. The lanes of a warp come to it together. Orders memory.
BURRSTONE_DEVICE void cluster_sync(Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.cluster_sync(site.file, site.line);
#else
    (void)site;
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// The address, in the window of the cluster, of what is at `shared` in block `rank`.
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

// Arrives at the barrier of a block of the cluster; see cluster_address. Whoever waits there may overwrite what this thread
// has read. What it has written is not seen by other blocks for that: a release to them is a fence of the whole GPU, every time
// (the simulator does not tell).
BURRSTONE_DEVICE void mbarrier_arrive_cluster(uint32_t barrier, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.mbarrier_arrive_cluster(barrier, site.file, site.line);
#else
    (void)site;
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}

// A box of a matrix, to `shared` of every block that `blocks` has a bit of, by rank; its bytes are reported to `mbarrier` of
// each of them. See tensor_load.
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
