// activation(gate) * up. Unless the output is quantized, rows are split among blocks, so that few rows fill a GPU too.
#ifndef BURRSTONE_KERNELS_ACT_MUL_CU
#define BURRSTONE_KERNELS_ACT_MUL_CU

#include "abi/act_mul.h"
#include "kernels/activation.cuh"
#include "kernels/row.cuh"

namespace burrstone {

template <class V> struct act_mul_shared {
    Shared<float, V::threads> largest;
};

template <class V, bool WHOLE> BURRSTONE_DEVICE void act_mul_row(const act_mul_args &args, act_mul_shared<V> &shared) {
    using T = typename V::dtype;
    using Out = typename V::out;

    const uint32_t width = args.width;
    const uint64_t row = block_index_x();
    const T *gate = pointer<const T>(args.gate_up) + row * 2 * width;
    const T *up = gate + width;
    Out *out = pointer<Out>(args.out) + row * width;

    const auto product = [&](uint32_t at) {
        const Vec8<T> g = load_vec8(gate, width, at, WHOLE), u = load_vec8(up, width, at, WHOLE);
        Vec8<float> y;
        BURRSTONE_UNROLL
        for (int e = 0; e < VEC8; ++e) y.v[e] = gated(args.activation, g.v[e], u.v[e]);
        return y;
    };
    if constexpr (QUANTIZED_MAX<Out> > 0.0f) {
        // Keeps the activations: half of the work is in the first pass.
        using Walk = Row<V::threads, WHOLE>;
        typename Walk::template Kept<float> kept;
        Walk::each(width, [&](uint32_t at, int k) {
            if (k >= 0) kept.vectors[k] = product(at);
        });
        const auto value = [&](uint32_t at, int k) { return k >= 0 ? kept.vectors[k] : product(at); };
        store_row<V, WHOLE>(out, width, value, pointer<float>(args.scales) + row, shared.largest);
    } else {
        const uint64_t step = uint64_t(grid_size_y()) * V::threads * VEC8;
        for (uint64_t at = (uint64_t(block_index_y()) * V::threads + thread_index()) * VEC8; at < width; at += step)
            store_vec8(out, width, uint32_t(at), WHOLE, product(uint32_t(at)));
    }
}

template <class V> BURRSTONE_DEVICE void act_mul(const act_mul_args &args, act_mul_shared<V> &shared) {
    const bool whole = is_vectorizable<typename V::dtype>(args.gate_up, args.width) &&
                       is_vectorizable<typename V::out>(args.out, args.width);
    if (whole)
        act_mul_row<V, true>(args, shared);
    else
        act_mul_row<V, false>(args, shared);
}

} // namespace burrstone

#endif
