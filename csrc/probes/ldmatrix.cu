// Fills shared memory from `a` (2048 elements of 16 bits), then loads the matrices whose rows are at elements b[lane].
// out[lane][i] is word i of the lane.
#ifndef BURRSTONE_PROBES_LDMATRIX_CU
#define BURRSTONE_PROBES_LDMATRIX_CU

#include "abi/probe.h"
#include "common/kernel.cuh"
#include "common/ldmatrix.cuh"

using ldmatrix_args = probe_args;

namespace burrstone {

template <class V> struct ldmatrix_shared {
    Shared<uint16_t, 2048> tile;
};

template <class V> BURRSTONE_DEVICE void ldmatrix(const ldmatrix_args &args, ldmatrix_shared<V> &shared) {
    unsigned lane = lane_index();
    for (unsigned i = lane; i < 2048; i += 32) shared.tile.store(i, load(pointer<uint16_t>(args.a) + i));
    sync_warp();
    unsigned row = load(pointer<uint32_t>(args.b) + lane);
    auto words = ldmatrix<V::count, V::transpose != 0>(shared.tile.address(row));
    for (int i = 0; i < V::count; ++i) store(pointer<uint32_t>(args.out) + lane * V::count + i, words.v[i]);
}

} // namespace burrstone

#endif
