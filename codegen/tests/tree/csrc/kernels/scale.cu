#ifndef BURRSTONE_KERNELS_SCALE_CU
#define BURRSTONE_KERNELS_SCALE_CU

#include "abi/scale.h"
#include "common/kernel.cuh"

namespace burrstone {

template <class V> struct scale_shared {
    typename V::dtype row[V::threads];
};

template <class V> BURRSTONE_DEVICE void scale(const scale_args &args, scale_shared<V> &shared) {
    using T = typename V::dtype;
    T *values = reinterpret_cast<T *>(args.values);
    for (int i = thread_index() * V::vec; i < args.n; i += V::threads * V::vec) {
        for (int j = 0; j < V::vec && i + j < args.n; ++j) {
            shared.row[thread_index()] = values[i + j];
            values[i + j] = static_cast<T>(shared.row[thread_index()] * args.factor);
        }
    }
}

}

#endif
