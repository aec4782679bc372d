// A cluster loads n boxes of a matrix, one below the other, each with 8 rows for each of its m blocks: every block
// multicasts its eight rows to all blocks, into a ring of two stages. Each block writes all rows, with its rank added,
// to its part of `out`: [blocks][n][8 m][16] words. The first warp copies, the second one reads.
#ifndef BURRSTONE_PROBES_CLUSTER_CU
#define BURRSTONE_PROBES_CLUSTER_CU

#include "abi/probe.h"
#include "common/cluster.cuh"
#include "common/kernel.cuh"

using cluster_args = probe_args;

namespace burrstone {

enum class Breach {
    NONE,
    NO_FIRST_SYNC,
    NO_LAST_SYNC,
    NO_EMPTY_WAIT,
    NO_REMOTE_ARRIVAL,
    OWN_ADDRESS,
    BEYOND,
    EARLY_EXIT,
};
template <Breach B> struct BreachIs {
    static constexpr Breach plant = B;
};
using cluster_correct = BreachIs<Breach::NONE>;
using cluster_no_first_sync = BreachIs<Breach::NO_FIRST_SYNC>;
using cluster_no_last_sync = BreachIs<Breach::NO_LAST_SYNC>;
using cluster_no_empty_wait = BreachIs<Breach::NO_EMPTY_WAIT>;
using cluster_no_remote_arrival = BreachIs<Breach::NO_REMOTE_ARRIVAL>;
using cluster_own_address = BreachIs<Breach::OWN_ADDRESS>;
using cluster_beyond = BreachIs<Breach::BEYOND>;
using cluster_early_exit = BreachIs<Breach::EARLY_EXIT>;

// Rows of 64 bytes, in boxes of eight.
constexpr unsigned CLUSTER_ROW = 16, CLUSTER_BOX = 8 * CLUSTER_ROW;

template <class V> struct cluster_shared {
    Shared<uint32_t, 8 * CLUSTER_BOX, 128> stages[2];
    Shared<uint64_t, 2> full, empty;
};

template <class V> BURRSTONE_DEVICE void cluster(const cluster_args &args, cluster_shared<V> &shared) {
    constexpr Breach PLANT = V::plant::plant;
    const unsigned blocks = args.m, rank = cluster_rank(), words = blocks * CLUSTER_BOX;
    if (thread_index() == 0) {
        for (int i = 0; i < 2; ++i) {
            mbarrier_init(shared.full.address(i), 1);
            mbarrier_init(shared.empty.address(i), blocks);
        }
        mbarrier_fence_init();
    }
    if (PLANT == Breach::NO_FIRST_SYNC) sync_block();
    else cluster_sync();

    if (PLANT == Breach::EARLY_EXIT && rank == 1) return;
    if (thread_index() == 0) {
        for (unsigned box = 0; box < args.n; ++box) {
            const unsigned stage = box % 2, round = box / 2;
            if (PLANT != Breach::NO_EMPTY_WAIT) mbarrier_wait(shared.empty.address(stage), round % 2 ^ 1);
            const uint32_t full = shared.full.address(stage);
            mbarrier_arrive_expect(full, words * 4);
            const uint32_t all = (PLANT == Breach::BEYOND ? 2u << blocks : 1u << blocks) - 1;
            tensor_multicast(shared.stages[stage].address(rank * CLUSTER_BOX), args.map,
                             Coordinates{0, int32_t((box * blocks + rank) * 8)}, full, all);
        }
    } else if (warp_index() == 1) {
        uint32_t *out = pointer<uint32_t>(args.out) + uint64_t(block_index_x()) * args.n * words;
        for (unsigned box = 0; box < args.n; ++box, out += words) {
            const unsigned stage = box % 2, round = box / 2;
            mbarrier_wait(shared.full.address(stage), round % 2);
            for (unsigned i = lane_index(); i < words; i += WARP) store(out + i, shared.stages[stage].load(i) + rank);
            sync_warp();
            const uint32_t empty = shared.empty.address(stage);
            if (PLANT == Breach::NO_REMOTE_ARRIVAL) {
                if (lane_index() == 0) mbarrier_arrive(empty);
            } else if (lane_index() < blocks) {
                mbarrier_arrive_cluster(PLANT == Breach::OWN_ADDRESS ? empty : cluster_address(empty, lane_index()));
            }
        }
    }
    sync_warp();
    if (PLANT != Breach::NO_LAST_SYNC) cluster_sync();
}

} // namespace burrstone

#endif
