// out[lane][i] = word i of the lane's fragment of c + a b; all fragments are words: a[lane][i], b[lane][i], c[lane][i].
#ifndef BURRSTONE_PROBES_MMA_CU
#define BURRSTONE_PROBES_MMA_CU

#include "abi/probe.h"
#include "common/kernel.cuh"
#include "common/mma.cuh"

using mma_args = probe_args;

namespace burrstone {

template <class V> struct mma_shared {};

// The accumulator's element type.
template <class S, class T> struct SumOf {
    using type = float;
};
template <class S> struct SumOf<S, i8> {
    using type = int32_t;
};
template <class T> struct SumOf<m8n8k4_f16, T> {
    using type = uint32_t;
};

template <class V> BURRSTONE_DEVICE void mma(const mma_args &args, mma_shared<V> &) {
    using S = typename V::shape;
    using D = typename SumOf<S, typename V::dtype>::type;
    unsigned lane = lane_index();
    uint32_t a[S::A_WORDS], b[S::B_WORDS];
    D d[S::D_WORDS];
    for (int i = 0; i < S::A_WORDS; ++i) a[i] = load(pointer<uint32_t>(args.a) + lane * S::A_WORDS + i);
    for (int i = 0; i < S::B_WORDS; ++i) b[i] = load(pointer<uint32_t>(args.b) + lane * S::B_WORDS + i);
    for (int i = 0; i < S::D_WORDS; ++i) d[i] = load(pointer<D>(args.c) + lane * S::D_WORDS + i);
    mma<S, typename V::dtype>(d, a, b);
    for (int i = 0; i < S::D_WORDS; ++i) store(pointer<D>(args.out) + lane * S::D_WORDS + i, d[i]);
}

} // namespace burrstone

#endif
