// For n numbers each: out[i] = to_float(a[i]); then, after those floats, from_float(b[i]).
#ifndef BURRSTONE_PROBES_CONVERT_CU
#define BURRSTONE_PROBES_CONVERT_CU

#include "abi/probe.h"
#include "common/kernel.cuh"

using convert_args = probe_args;

namespace burrstone {

template <class V> struct convert_shared {};

template <class V> BURRSTONE_DEVICE void convert(const convert_args &args, convert_shared<V> &) {
    using T = typename V::dtype;
    for (unsigned i = thread_index(); i < args.n; i += V::threads) {
        store(pointer<float>(args.out) + i, to_float(load(pointer<T>(args.a) + i)));
        store(pointer<T>(args.out + args.n * 4) + i, from_float<T>(load(pointer<float>(args.b) + i)));
    }
}

} // namespace burrstone

#endif
