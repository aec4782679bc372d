#ifndef BURRSTONE_PROBES_FIRST_LANE_CU
#define BURRSTONE_PROBES_FIRST_LANE_CU

#include "abi/probe.h"
#include "common/kernel.cuh"

namespace burrstone {

template <class V> struct first_lane_shared {};

template <class V> BURRSTONE_DEVICE void first_lane(const first_lane_args &args, first_lane_shared<V> &) {
    *reinterpret_cast<int *>(args.out) = thread_index();
}

}

#endif
