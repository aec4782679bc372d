// Sums and maxima over a warp or block, in a fixed order: the same bits in every run, on every machine.
#ifndef BURRSTONE_COMMON_REDUCE_CUH
#define BURRSTONE_COMMON_REDUCE_CUH

#include "common/memory.cuh"

namespace burrstone {

struct Sum {
    template <class T> BURRSTONE_DEVICE T operator()(T a, T b) const { return a + b; }
};
struct Max {
    template <class T> BURRSTONE_DEVICE T operator()(T a, T b) const { return a < b ? b : a; }
};

// Over segments of WIDTH lanes; every lane gets the result. `op` must be commutative.
template <int WIDTH = int(WARP), class T, class Op> BURRSTONE_DEVICE T reduce_warp(T value, Op op, Site site = here()) {
    for (int flip = WIDTH / 2; flip > 0; flip /= 2) value = op(value, shfl_xor(value, flip, WARP, FULL_WARP, site));
    return value;
}

template <int WIDTH = int(WARP), class T> BURRSTONE_DEVICE T reduce_sum(T value, Site site = here()) {
    return reduce_warp<WIDTH>(value, Sum{}, site);
}

template <int WIDTH = int(WARP), class T> BURRSTONE_DEVICE T reduce_max(T value, Site site = here()) {
    return reduce_warp<WIDTH>(value, Max{}, site);
}

// Over all threads of a block of WARPS warps; every thread gets the result. `scratch` may be used again after the
// next sync_block.
template <int WARPS, class T, class Op>
BURRSTONE_DEVICE T reduce_block(T value, Op op, Shared<T, WARPS> &scratch, Site site = here()) {
    value = reduce_warp(value, op, site);
    if constexpr (WARPS > 1) {
        if (lane_index() == 0) scratch.store(warp_index(), value, site);
        sync_block(site);
        value = scratch.load(0, site);
        for (int warp = 1; warp < WARPS; ++warp) value = op(value, scratch.load(warp, site));
    }
    return value;
}

template <int WARPS, class T>
BURRSTONE_DEVICE T reduce_sum_block(T value, Shared<T, WARPS> &scratch, Site site = here()) {
    return reduce_block<WARPS>(value, Sum{}, scratch, site);
}

template <int WARPS, class T>
BURRSTONE_DEVICE T reduce_max_block(T value, Shared<T, WARPS> &scratch, Site site = here()) {
    return reduce_block<WARPS>(value, Max{}, scratch, site);
}

} // namespace burrstone

#endif
