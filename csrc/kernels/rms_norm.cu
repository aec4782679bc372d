// RMSNorm and LayerNorm of rows, after an optional addition to the residual stream. One block per row.
#ifndef BURRSTONE_KERNELS_RMS_NORM_CU
#define BURRSTONE_KERNELS_RMS_NORM_CU

#include "abi/rms_norm.h"
#include "kernels/row.cuh"

namespace burrstone {

// Values of the axis `norm`: whether the row's mean is subtracted.
struct rms {
    static constexpr bool centred = false;
};
struct layer {
    static constexpr bool centred = true;
};

template <class V> struct rms_norm_shared {
    Shared<float, V::threads> sum;
    Shared<float, V::threads> squares;
    Shared<float, V::threads> largest;
};

template <class V, bool WHOLE> BURRSTONE_DEVICE void norm_row(const rms_norm_args &args, rms_norm_shared<V> &shared) {
    using T = typename V::dtype;
    using Out = typename V::out;
    using Walk = Row<V::threads, WHOLE>;
    constexpr bool CENTRED = V::norm::centred;

    const uint32_t width = args.width;
    const uint64_t first = uint64_t(block_index_x()) * width;
    T *residual = pointer<T>(args.residual) + first;
    const T *delta = args.delta ? pointer<const T>(args.delta) + first : nullptr;
    const T *weight = pointer<const T>(args.weight);
    const T *bias = pointer<const T>(args.bias);

    typename Walk::template Kept<T> kept;
    typename Walk::Chains sum, squares;
    Walk::each_of_chains(width, [&](uint32_t at, int chain, int k) {
        Vec8<T> x = load_vec8(residual, width, at, WHOLE);
        if (delta) {
            const Vec8<T> d = load_vec8(delta, width, at, WHOLE);
            Vec8<float> total;
            BURRSTONE_UNROLL
            for (int e = 0; e < VEC8; ++e) {
                total.v[e] = to_float(x.v[e]) + to_float(d.v[e]);
                // Normalises the rounded value, which is what the next layer reads.
                x.v[e] = from_float<T>(total.v[e]);
            }
            store_vec8(residual, width, at, WHOLE, total);
        }
        if (k >= 0) kept.vectors[k] = x;
        BURRSTONE_UNROLL
        for (int e = 0; e < VEC8; ++e) {
            const float v = to_float(x.v[e]);
            if constexpr (CENTRED)
                sum.v[chain] += v;
            else
                squares.v[chain] = fma_(v, v, squares.v[chain]);
        }
    });
    const auto vector = [&](uint32_t at, int k) {
        return k >= 0 ? kept.vectors[k] : load_vec8(residual, width, at, WHOLE);
    };

    float mean = 0.0f;
    if constexpr (CENTRED) {
        // Squares of deviations, because the difference of two large sums would cancel.
        mean = Walk::reduce(sum, Sum{}, shared.sum) / float(width);
        Walk::each_of_chains(width, [&](uint32_t at, int chain, int k) {
            const Vec8<T> x = vector(at, k);
            BURRSTONE_UNROLL
            for (int e = 0; e < VEC8; ++e) {
                const float v = WHOLE || at + e < width ? to_float(x.v[e]) - mean : 0.0f;
                squares.v[chain] = fma_(v, v, squares.v[chain]);
            }
        });
    }
    const float factor = rsqrt_(Walk::reduce(squares, Sum{}, shared.squares) / float(width) + args.eps);

    const auto normed = [&](uint32_t at, int k) {
        const Vec8<T> x = vector(at, k), gain = load_vec8(weight, width, at, WHOLE);
        const Vec8<T> shift = bias ? load_vec8(bias, width, at, WHOLE) : Vec8<T>{};
        Vec8<float> y;
        BURRSTONE_UNROLL
        for (int e = 0; e < VEC8; ++e) {
            const float unit = (to_float(x.v[e]) - mean) * factor;
            y.v[e] = fma_(unit, to_float(gain.v[e]) + args.weight_offset, to_float(shift.v[e]));
        }
        return y;
    };
    float *scale = pointer<float>(args.scales) + block_index_x();
    store_row<V, WHOLE>(pointer<Out>(args.out) + first, width, normed, scale, shared.largest);
}

template <class V> BURRSTONE_DEVICE void rms_norm(const rms_norm_args &args, rms_norm_shared<V> &shared) {
    using T = typename V::dtype;
    const bool whole = is_vectorizable<T>(args.residual | args.delta | args.weight | args.bias, args.width) &&
                       is_vectorizable<typename V::out>(args.out, args.width);
    if (whole)
        norm_row<V, true>(args, shared);
    else
        norm_row<V, false>(args, shared);
}

} // namespace burrstone

#endif
