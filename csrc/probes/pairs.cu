// For n words each: out[2 i] and out[2 i + 1] are the four numbers of a[i]; then, after those, the pairs of b's floats.
#ifndef BURRSTONE_PROBES_PAIRS_CU
#define BURRSTONE_PROBES_PAIRS_CU

#include "abi/probe.h"
#include "common/kernel.cuh"
#include "common/pairs.cuh"

using pairs_args = probe_args;

namespace burrstone {

template <class V> struct pairs_shared {};

template <class V> BURRSTONE_DEVICE void pairs(const pairs_args &args, pairs_shared<V> &) {
    uint32_t *out = pointer<uint32_t>(args.out);
    for (unsigned i = thread_index(); i < args.n; i += V::threads) {
        uint32_t wide[2];
        widen<typename V::dtype, typename V::cache>(load(pointer<uint32_t>(args.a) + i), wide);
        store(out + 2 * i, wide[0]);
        store(out + 2 * i + 1, wide[1]);
        const float low = load(pointer<float>(args.b) + 2 * i), high = load(pointer<float>(args.b) + 2 * i + 1);
        store(out + 2 * args.n + i, pack<typename V::dtype>(low, high));
    }
}

} // namespace burrstone

#endif
