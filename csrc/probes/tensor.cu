// Loads the box at coordinates c[0..dims] of `map` and writes its n words, in the order of shared memory, to `out`; or
// stores a box whose words in shared memory are `a`.
#ifndef BURRSTONE_PROBES_TENSOR_CU
#define BURRSTONE_PROBES_TENSOR_CU

#include "abi/probe.h"
#include "common/dependent_launch.cuh"
#include "common/kernel.cuh"
#include "common/tma.cuh"

using tensor_args = probe_args;

namespace burrstone {

struct way_load {
    static constexpr bool load = true, wait = true, fence = true;
};
struct way_store {
    static constexpr bool load = false, wait = true, fence = true;
};
struct way_load_no_wait {
    static constexpr bool load = true, wait = false, fence = true;
};
struct way_store_no_wait {
    static constexpr bool load = false, wait = false, fence = true;
};
struct way_store_no_fence {
    static constexpr bool load = false, wait = true, fence = false;
};

template <class V> struct tensor_shared {
    Shared<uint32_t, 8192, 1024> box;
    Shared<uint64_t, 1> barrier;
};

template <class V> BURRSTONE_DEVICE void tensor(const tensor_args &args, tensor_shared<V> &shared) {
    unsigned lane = lane_index();
    wait_for_previous_kernel();
    Coordinates<V::dims> at;
    for (int i = 0; i < V::dims; ++i) at.at[i] = load(pointer<int32_t>(args.c) + i);
    if constexpr (V::way::load) {
        if (lane == 0) {
            prefetch_tensor_map(args.map);
            mbarrier_init(shared.barrier.address(0), 1);
            mbarrier_fence_init();
        }
        sync_block();
        if (lane == 0) {
            mbarrier_arrive_expect(shared.barrier.address(0), args.n * 4);
            tensor_load(shared.box.address(0), args.map, at, shared.barrier.address(0));
        }
        if (V::way::wait) mbarrier_wait(shared.barrier.address(0), 0);
        for (unsigned i = lane; i < args.n; i += 32) store(pointer<uint32_t>(args.out) + i, shared.box.load(i));
        if (!V::way::wait) mbarrier_wait(shared.barrier.address(0), 0);
    } else {
        for (unsigned i = lane; i < args.n; i += 32) shared.box.store(i, load(pointer<uint32_t>(args.a) + i));
        if (V::way::fence) fence_async();
        sync_block();
        if (lane == 0) {
            tensor_store(args.map, at, shared.box.address(0));
            bulk_commit();
            if (V::way::wait) bulk_wait<0>();
        }
    }
    let_next_kernel_start();
}

} // namespace burrstone

#endif
