// Reverses n values of a block through shared memory, twice: out = a. `plant` chooses a fault.
#ifndef BURRSTONE_PROBES_FAULT_CU
#define BURRSTONE_PROBES_FAULT_CU

#include "abi/probe.h"
#include "common/kernel.cuh"

using fault_args = probe_args;

namespace burrstone {

enum class Plant {
    NONE,
    NO_BARRIER,
    NO_SECOND_BARRIER,
    DIVERGENT_BARRIER,
    SPLIT_WARP,
    BARRIER_COUNTS,
    EARLY_EXIT,
    PAST_ARRAY,
    PAST_GLOBAL,
    BEFORE_GLOBAL,
    UNINITIALISED,
    MISALIGNED_SHARED,
    MISALIGNED_GLOBAL,
    NO_WARP_BARRIER,
    SHUFFLE_MASK,
    SHUFFLE_OUTSIDE,
    PAST_LOCAL,
};
template <Plant P> struct Planted {
    static constexpr Plant plant = P;
};
using plant_none = Planted<Plant::NONE>;
using plant_no_barrier = Planted<Plant::NO_BARRIER>;
using plant_no_second_barrier = Planted<Plant::NO_SECOND_BARRIER>;
using plant_divergent_barrier = Planted<Plant::DIVERGENT_BARRIER>;
using plant_split_warp = Planted<Plant::SPLIT_WARP>;
using plant_barrier_counts = Planted<Plant::BARRIER_COUNTS>;
using plant_early_exit = Planted<Plant::EARLY_EXIT>;
using plant_past_array = Planted<Plant::PAST_ARRAY>;
using plant_past_global = Planted<Plant::PAST_GLOBAL>;
using plant_before_global = Planted<Plant::BEFORE_GLOBAL>;
using plant_uninitialised = Planted<Plant::UNINITIALISED>;
using plant_misaligned_shared = Planted<Plant::MISALIGNED_SHARED>;
using plant_misaligned_global = Planted<Plant::MISALIGNED_GLOBAL>;
using plant_no_warp_barrier = Planted<Plant::NO_WARP_BARRIER>;
using plant_shuffle_mask = Planted<Plant::SHUFFLE_MASK>;
using plant_shuffle_outside = Planted<Plant::SHUFFLE_OUTSIDE>;
using plant_past_local = Planted<Plant::PAST_LOCAL>;

template <class V> struct fault_shared {
    Shared<float, V::threads> first;
    Shared<float, V::threads + 4> second;
};

template <class V> BURRSTONE_DEVICE void fault(const fault_args &args, fault_shared<V> &shared) {
    constexpr Plant PLANT = V::plant::plant;
    constexpr unsigned N = V::threads;
    unsigned t = thread_index(), lane = lane_index();
    const float *in = pointer<float>(args.a) + block_index_x() * N;
    float *out = pointer<float>(args.out) + block_index_x() * N;

    if (PLANT == Plant::EARLY_EXIT && t == 70) return;
    if (PLANT != Plant::UNINITIALISED || t != 9) shared.first.store(t + (PLANT == Plant::PAST_ARRAY), load(in + t));
    if (PLANT == Plant::DIVERGENT_BARRIER && t < 64)
        sync_block(); // the first two warps' own
    else if (PLANT == Plant::DIVERGENT_BARRIER)
        barrier_sync<1>(128);
    else if (PLANT == Plant::SPLIT_WARP && lane < 16)
        sync_block(); // half of each warp
    else if (PLANT == Plant::BARRIER_COUNTS)
        barrier_sync<1>(t < 64 ? 64 : 128);
    else if (PLANT != Plant::NO_BARRIER)
        sync_block();
    float reversed = shared.first.load(N - 1 - t);

    // Within a warp, through the other array.
    shared.second.store(t, reversed);
    if (PLANT != Plant::NO_WARP_BARRIER) sync_warp();
    float neighbour = shared.second.load(t ^ 1);
    if (PLANT == Plant::MISALIGNED_SHARED) neighbour += shared.second.template load_vec<2>(t | 1).v[0];

    // The first array is used again, which needs a barrier after the reads above.
    if (PLANT != Plant::NO_SECOND_BARRIER) sync_block();
    shared.first.store(t, neighbour);
    sync_block();
    float result = shared.first.load((N - 1 - t) ^ 1);

    if (PLANT == Plant::SHUFFLE_MASK) result = shfl(result, lane, 32, lane < 16 ? 0xffffffffu : 0xffff0000u);
    if (PLANT == Plant::SHUFFLE_OUTSIDE && lane < 16) result = shfl(result, 20, 32, 0xffffu);
    if constexpr (PLANT == Plant::PAST_LOCAL) {
        // Only the sanitizers find this fault.
        float local[4] = {result, result, result, result};
        float *at = local;
        at[args.n] = 1.0f;
        result = local[args.n / 2];
    }
    if (PLANT == Plant::MISALIGNED_GLOBAL) store(reinterpret_cast<vec<float, 2> *>(out + (t | 1)), {{result, result}});
    if (PLANT == Plant::BEFORE_GLOBAL && block_index_x() == 0 && t == 0) store(out - 1, result);
    store(out + t + (PLANT == Plant::PAST_GLOBAL), result);
}

} // namespace burrstone

#endif
