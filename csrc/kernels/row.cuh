// Rows of activations: how threads share them, and sums whose bits depend only on the row.
#ifndef BURRSTONE_KERNELS_ROW_CUH
#define BURRSTONE_KERNELS_ROW_CUH

#include "common/kernel.cuh"

namespace burrstone {

// Elements that a thread handles at a time: eight consecutive ones, 16 bytes of f16 or bf16.
constexpr int VEC8 = 8;
template <class T> using Vec8 = vec<T, VEC8>;

// Whether every row of `width` elements from `address` on consists of whole, aligned 8-element vectors.
template <class T> BURRSTONE_DEVICE bool is_vectorizable(device_ptr address, uint32_t width) {
    constexpr uint64_t bytes = sizeof(T) * VEC8 < 16 ? sizeof(T) * VEC8 : 16;
    return width % VEC8 == 0 && address % bytes == 0;
}

// Elements at, at + 1, ... of a row; zeros beyond its end. `whole`: see is_vectorizable.
template <class T>
BURRSTONE_DEVICE Vec8<T> load_vec8(const T *row, uint32_t width, uint32_t at, bool whole, Site site = here()) {
    constexpr int PIECE = sizeof(T) * VEC8 < 16 ? VEC8 : 16 / sizeof(T);
    Vec8<T> vector;
    if (whole) {
        BURRSTONE_UNROLL
        for (int p = 0; p < VEC8; p += PIECE) {
            vec<T, PIECE> piece = load(reinterpret_cast<const vec<T, PIECE> *>(row + at + p), site);
            BURRSTONE_UNROLL
            for (int e = 0; e < PIECE; ++e) vector.v[p + e] = piece.v[e];
        }
    } else {
        BURRSTONE_UNROLL
        for (int e = 0; e < VEC8; ++e) vector.v[e] = at + e < width ? load(row + at + e, site) : T{};
    }
    return vector;
}

// Rounds to T and stores the elements before the row's end.
template <class T>
BURRSTONE_DEVICE void store_vec8(T *row, uint32_t width, uint32_t at, bool whole, Vec8<float> values, Site site = here()) {
    static_assert(sizeof(T) * VEC8 <= 16, "a vector is one access");
    Vec8<T> vector;
    BURRSTONE_UNROLL
    for (int e = 0; e < VEC8; ++e) vector.v[e] = from_float<T>(values.v[e]);
    if (whole) {
        store(reinterpret_cast<Vec8<T> *>(row + at), vector, site);
    } else {
        BURRSTONE_UNROLL
        for (int e = 0; e < VEC8; ++e)
            if (at + e < width) store(row + at + e, vector.v[e], site);
    }
}

// A row's sum has one order for every block size: vector g belongs to chain g % CHAINS, a chain adds its vectors in
// order, and chains are combined in halves: c with c + CHAINS / 2, then with c + CHAINS / 4, and so on. CHAINS is the
// largest block size, which has one chain per thread.
constexpr int CHAINS = 512;

// A row in a block of THREADS: thread t has vectors t, t + THREADS, ... WHOLE: see is_vectorizable.
template <int THREADS, bool WHOLE> struct Row {
    static constexpr int OWN_CHAINS = CHAINS / THREADS;
    static_assert(OWN_CHAINS * THREADS == CHAINS && OWN_CHAINS <= 4, "blocks of 128, 256 or 512");
    // Vectors that a thread keeps in registers between passes: with 256 threads, rows of 8192 are read once. Ragged
    // rows are rare, and need the registers for predicates.
    static constexpr int KEPT = WHOLE ? 4 : 0;
    // Room for them, from pass to pass.
    template <class T> struct Kept {
        Vec8<T> vectors[KEPT > 0 ? KEPT : 1] = {};
    };

    struct Chains {
        float v[OWN_CHAINS] = {};
    };

    // Calls f(at, chain, kept) for each of this thread's vectors, which begins at element `at` and belongs to its chain
    // number `chain`. `kept` numbers those that are kept; it is -1 for the others.
    template <class F> static BURRSTONE_DEVICE void each_of_chains(uint32_t width, F f) {
        uint32_t at = thread_index() * VEC8;
        BURRSTONE_UNROLL
        for (int kept = 0; kept < KEPT; ++kept, at += STEP)
            if (at < width) f(at, kept % OWN_CHAINS, kept);
        while (at < width) {
            BURRSTONE_UNROLL
            for (int chain = 0; chain < OWN_CHAINS; ++chain, at += STEP)
                if (at < width) f(at, chain, -1);
        }
    }

    // Calls f(at, kept) in the same way.
    template <class F> static BURRSTONE_DEVICE void each(uint32_t width, F f) {
        uint32_t at = thread_index() * VEC8;
        BURRSTONE_UNROLL
        for (int kept = 0; kept < KEPT; ++kept, at += STEP)
            if (at < width) f(at, kept);
        BURRSTONE_ROLLED
        for (; at < width; at += STEP) f(at, -1);
    }

    // Every thread gets the row's result. Each reduction has its own scratch, so one barrier is enough.
    template <class Op> static BURRSTONE_DEVICE float reduce(Chains chains, Op op, Shared<float, THREADS> &scratch, Site site = here()) {
        halve<OWN_CHAINS>(chains.v, op);
        scratch.store(thread_index(), chains.v[0], site);
        sync_block(site);
        float warps[THREADS / WARP];
        BURRSTONE_UNROLL
        for (unsigned w = 0; w < THREADS / WARP; ++w) warps[w] = scratch.load(w * WARP + lane_index(), site);
        halve<THREADS / WARP>(warps, op);
        return reduce_warp(warps[0], op, site);
    }

  private:
    static constexpr uint32_t STEP = THREADS * VEC8;

    // Recursive, so that indices are constants.
    template <int N, class Op> static BURRSTONE_DEVICE void halve(float *values, Op op) {
        if constexpr (N > 1) {
            BURRSTONE_UNROLL
            for (int i = 0; i < N / 2; ++i) values[i] = op(values[i], values[i + N / 2]);
            halve<N / 2>(values, op);
        }
    }
};

// The largest magnitude that a quantized type is scaled to; 0 for other types.
template <class T> constexpr float QUANTIZED_MAX = 0.0f;
template <> constexpr float QUANTIZED_MAX<e4m3> = 448.0f;
template <> constexpr float QUANTIZED_MAX<i8> = 127.0f;

// The factor that makes values of at most `largest` fill T, and the dequantization scale. If all values are tiny, or
// one is infinite, every code is 0.
template <class T> BURRSTONE_DEVICE float quantizer(float largest) {
    return largest > 1e-30f ? QUANTIZED_MAX<T> / largest : 0.0f;
}
template <class T> BURRSTONE_DEVICE float dequantizer(float largest) { return largest / QUANTIZED_MAX<T>; }

BURRSTONE_DEVICE Vec8<float> times(Vec8<float> vector, float factor) {
    BURRSTONE_UNROLL
    for (int e = 0; e < VEC8; ++e) vector.v[e] *= factor;
    return vector;
}

// Stores a row whose vectors are value(at, kept), and its scale if it is quantized.
template <class V, bool WHOLE, class F>
BURRSTONE_DEVICE void store_row(typename V::out *row, uint32_t width, F value, float *scale,
                                Shared<float, V::threads> &scratch, Site site = here()) {
    using Out = typename V::out;
    using Walk = Row<V::threads, WHOLE>;
    float factor = 1.0f;
    if constexpr (QUANTIZED_MAX<Out> > 0.0f) {
        // The order of a maximum does not matter: one chain does.
        typename Walk::Chains largest;
        Walk::each(width, [&](uint32_t at, int k) {
            const Vec8<float> y = value(at, k);
            BURRSTONE_UNROLL
            for (int e = 0; e < VEC8; ++e)
                if (WHOLE || at + e < width) largest.v[0] = max_(largest.v[0], abs_(y.v[e]));
        });
        const float top = Walk::reduce(largest, Max{}, scratch, site);
        if (thread_index() == 0) store(scale, dequantizer<Out>(top), site);
        factor = quantizer<Out>(top);
    }
    Walk::each(width, [&](uint32_t at, int k) {
        Vec8<float> y = value(at, k);
        if constexpr (QUANTIZED_MAX<Out> > 0.0f) y = times(y, factor);
        store_vec8(row, width, at, WHOLE, y, site);
    });
}

} // namespace burrstone

#endif
