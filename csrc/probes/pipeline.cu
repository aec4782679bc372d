// The first warp copies n tiles of 96 words from `a` into a ring of two stages. The other three warps write them to
// `out`, each thread another's word, plus the number of the tile.
#ifndef BURRSTONE_PROBES_PIPELINE_CU
#define BURRSTONE_PROBES_PIPELINE_CU

#include "abi/probe.h"
#include "common/cp_async.cuh"
#include "common/kernel.cuh"
#include "common/mbarrier.cuh"
#include "common/tma.cuh"

using pipeline_args = probe_args;

namespace burrstone {

enum class Via { MBARRIER, CP_ASYNC, BULK, NAMED };
template <Via V> struct ViaIs {
    static constexpr Via via = V;
};
using via_mbarrier = ViaIs<Via::MBARRIER>;
using via_cp_async = ViaIs<Via::CP_ASYNC>;
using via_bulk = ViaIs<Via::BULK>;
using via_named = ViaIs<Via::NAMED>;

enum class Pipe { CORRECT, NO_FULL_WAIT, NO_EMPTY_WAIT, LOST_ARRIVAL };
template <Pipe P> struct PipeIs {
    static constexpr Pipe plant = P;
};
using pipe_correct = PipeIs<Pipe::CORRECT>;
using pipe_no_full_wait = PipeIs<Pipe::NO_FULL_WAIT>;
using pipe_no_empty_wait = PipeIs<Pipe::NO_EMPTY_WAIT>;
using pipe_lost_arrival = PipeIs<Pipe::LOST_ARRIVAL>;

template <class V> struct pipeline_shared {
    Shared<uint32_t, 96> stages[2];
    Shared<uint64_t, 2> full, empty;
};

template <class V> BURRSTONE_DEVICE void pipeline(const pipeline_args &args, pipeline_shared<V> &shared) {
    constexpr Via VIA = V::via::via;
    constexpr Pipe PLANT = V::plant::plant;
    unsigned t = thread_index(), lane = lane_index();
    const uint32_t *in = pointer<uint32_t>(args.a);
    uint32_t *out = pointer<uint32_t>(args.out);

    if constexpr (VIA != Via::NAMED) {
        if (t == 0) {
            for (int i = 0; i < 2; ++i) {
                mbarrier_init(shared.full.address(i), VIA == Via::BULK ? 1 : 32);
                mbarrier_init(shared.empty.address(i), 96);
            }
            if constexpr (VIA == Via::BULK) mbarrier_fence_init();
        }
    }
    sync_block();

    if (warp_index() == 0) {
        for (unsigned tile = 0; tile < args.n; ++tile) {
            unsigned stage = tile % 2, round = tile / 2;
            if (PLANT != Pipe::NO_EMPTY_WAIT && round > 0) {
                if constexpr (VIA == Via::NAMED) {
                    if (stage == 0) barrier_sync<3>(128);
                    else barrier_sync<4>(128);
                } else {
                    mbarrier_wait(shared.empty.address(stage), (round - 1) % 2);
                }
            }
            auto &words = shared.stages[stage];
            uint32_t full = shared.full.address(stage);
            if constexpr (VIA == Via::BULK) {
                if (lane == 0) {
                    if (PLANT != Pipe::LOST_ARRIVAL) mbarrier_arrive_expect(full, 384);
                    bulk_load(words.address(0), in + tile * 96, 384, full);
                }
            } else if constexpr (VIA == Via::CP_ASYNC) {
                for (unsigned i = lane; i < 96; i += 32) cp_async<4>(words.address(i), in + tile * 96 + i);
                if (PLANT != Pipe::LOST_ARRIVAL || lane != 7) cp_async_arrive(full);
                if (PLANT == Pipe::CORRECT && tile == 0) {
                    // A wait concerns these copies as well.
                    cp_async_wait<0>();
                    (void)words.load(lane);
                }
            } else {
                for (unsigned i = lane; i < 96; i += 32) words.store(i, load(in + tile * 96 + i));
                if (PLANT == Pipe::LOST_ARRIVAL) continue;
                if constexpr (VIA == Via::MBARRIER) mbarrier_arrive(full);
                else if (stage == 0) barrier_arrive<1>(128);
                else barrier_arrive<2>(128);
            }
        }
    } else {
        unsigned reader = t - 32;
        for (unsigned tile = 0; tile < args.n; ++tile) {
            unsigned stage = tile % 2, round = tile / 2;
            if (PLANT != Pipe::NO_FULL_WAIT) {
                if constexpr (VIA == Via::NAMED) {
                    if (stage == 0) barrier_sync<1>(128);
                    else barrier_sync<2>(128);
                } else {
                    mbarrier_wait(shared.full.address(stage), round % 2);
                }
            }
            store(out + tile * 96 + reader, shared.stages[stage].load(95 - reader) + tile);
            if (tile + 2 < args.n) {
                if constexpr (VIA == Via::NAMED) {
                    if (stage == 0) barrier_arrive<3>(128);
                    else barrier_arrive<4>(128);
                } else {
                    mbarrier_arrive(shared.empty.address(stage));
                }
            }
        }
    }
}

} // namespace burrstone

#endif
