// A tile of 32 rows of `row` words. The tests find each access by its line, in this order.
#ifndef BURRSTONE_PROBES_BANKS_CU
#define BURRSTONE_PROBES_BANKS_CU

#include "abi/probe.h"
#include "common/kernel.cuh"

using banks_args = probe_args;

namespace burrstone {

template <class V> struct banks_shared {
    Shared<float, 32 * V::row + 128> tile;
};

template <class V> BURRSTONE_DEVICE void banks(const banks_args &args, banks_shared<V> &shared) {
    unsigned lane = lane_index();
    for (unsigned i = lane; i < shared.tile.size; i += 32)
        shared.tile.store(i, float(i)); // rows
    sync_block();
    float sum = shared.tile.load(lane * V::row);                            // a column
    sum += shared.tile.template load_vec<V::vec>(lane * V::vec).v[0];       // side by side
    sum += shared.tile.load(5);                                             // broadcast
    sum += shared.tile.template load_vec<V::vec>(lane / 2 * V::vec).v[0];   // pairs of lanes share
    sum += load(pointer<float>(args.a) + lane * args.n);                    // global, strided by n
    auto wide = load(pointer<vec<float, V::vec>>(args.a) + lane);           // global, side by side
    store(pointer<float>(args.out) + lane, sum + wide.v[0]);                // global, side by side
}

} // namespace burrstone

#endif
