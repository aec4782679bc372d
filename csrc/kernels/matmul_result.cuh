// From a tile's sums to its results: sums of other blocks, the way through shared memory, bias, rounding.
#ifndef BURRSTONE_KERNELS_MATMUL_RESULT_CUH
#define BURRSTONE_KERNELS_MATMUL_RESULT_CUH

#include "kernels/matmul_tile.cuh"

namespace burrstone {

// Sums on their way from the order of fragments to rows of tokens. The four more set the tokens of a fragment apart.
template <class V> struct MatmulRows {
    static constexpr int STRIDE = V::n + 4;
    Shared<float, V::m * STRIDE> sums;
    // Blocks of the tile that were done before this one.
    Shared<uint32_t, 1> arrived;
};

// Where the sums of one span of a tile are, in the order of threads: each writes and reads its own, 16 bytes side by side.
template <class V, class F> BURRSTONE_DEVICE void each_partial(const matmul_args &args, uint64_t tile_and_span, F f) {
    constexpr int PIECES = MatmulSums<V>::COUNT / 4, THREADS = MatmulTile<V>::THREADS;
    auto *first = pointer<vec<float, 4>>(args.partials) + tile_and_span * (PIECES * THREADS) + thread_index();
    BURRSTONE_UNROLL
    for (int i = 0; i < PIECES; ++i) f(first + i * THREADS, i);
}

template <class V>
BURRSTONE_DEVICE void store_partial(const matmul_args &args, uint64_t tile_and_span, MatmulSums<V> &sums) {
    vec<float, 4> pieces[MatmulSums<V>::COUNT / 4];
    BURRSTONE_UNROLL
    for (int i = 0; i < MatmulSums<V>::COUNT; ++i) pieces[i / 4].v[i % 4] = sums.at(i);
    each_partial<V>(args, tile_and_span, [&](vec<float, 4> *to, int i) { store(to, pieces[i]); });
}

// Whether this is the last block of its tile to come here: then the sums of all others can be read. The counter is 0
// again afterwards.
template <class V> BURRSTONE_DEVICE bool is_last(const matmul_args &args, unsigned tile, Shared<uint32_t, 1> &before) {
    fence_global();
    MatmulTile<V>::sync();
    uint32_t *arrivals = pointer<uint32_t>(args.arrivals) + tile;
    if (thread_index() == 0) {
        const uint32_t arrived = atomic_add(arrivals, 1u);
        if (arrived + 1 == args.splits) store(arrivals, 0u);
        before.store(0, arrived);
    }
    MatmulTile<V>::sync();
    fence_global();
    return before.load(0) + 1 == args.splits;
}

// Adds the tile's spans in ascending order: what one block alone does.
template <class V> BURRSTONE_DEVICE void add_partials(const matmul_args &args, const MatmulItem<V> &item, MatmulSums<V> &sums) {
    // Four loads are in flight at least.
    constexpr int PIECES = MatmulSums<V>::COUNT / 4;
    [[maybe_unused]] constexpr int TOGETHER = PIECES < 4 ? 4 / PIECES : 1;
    sums.clear();
    BURRSTONE_UNROLL_BY(TOGETHER)
    for (uint32_t span = 0; span < item.spans; ++span) {
        vec<float, 4> pieces[PIECES];
        each_partial<V>(args, uint64_t(item.tile) * item.spans + span, [&](vec<float, 4> *from, int i) { pieces[i] = load(from); });
        BURRSTONE_UNROLL
        for (int i = 0; i < MatmulSums<V>::COUNT; ++i) sums.at(i) += pieces[i / 4].v[i % 4];
    }
}

// The item's tile. Its rows of four leave side by side.
template <class V>
BURRSTONE_DEVICE void store_tile(const matmul_args &args, const MatmulItem<V> &item, MatmulSums<V> &sums, MatmulRows<V> &rows) {
    using T = typename V::dtype;
    using Out = typename V::out;
    constexpr int PIECE = 4, PIECES = V::m * V::n / PIECE;

    BURRSTONE_UNROLL
    for (int i = 0; i < MatmulSums<V>::COUNT; ++i) {
        const Element place = MatmulTile<V>::place_of_sum(i);
        rows.sums.store(unsigned(place.column) * MatmulRows<V>::STRIDE + unsigned(place.row), sums.at(i));
    }
    sync_block();

    const bool whole = (args.out | args.n * sizeof(Out)) % (PIECE * sizeof(Out)) == 0;
    BURRSTONE_UNROLL
    for (int p = 0; p < PIECES / V::threads; ++p) {
        const unsigned index = p * V::threads + thread_index();
        const unsigned row = index / (V::n / PIECE), column = index % (V::n / PIECE) * PIECE;
        const uint64_t m = item.first_m + row, n = item.first_n + column;
        if (m >= args.m || n >= args.n) continue;
        vec<float, PIECE> sum = rows.sums.template load_vec<PIECE>(row * MatmulRows<V>::STRIDE + column);
        if (args.bias) {
            BURRSTONE_UNROLL
            for (int e = 0; e < PIECE; ++e)
                if (n + e < args.n) sum.v[e] += to_float(load(pointer<const T>(args.bias) + n + e));
        }
        vec<Out, PIECE> rounded;
        BURRSTONE_UNROLL
        for (int e = 0; e < PIECE; ++e) rounded.v[e] = from_float<Out>(sum.v[e]);
        Out *to = pointer<Out>(args.out) + m * args.n + n;
        if (whole) {
            store(reinterpret_cast<vec<Out, PIECE> *>(to), rounded);
        } else {
            BURRSTONE_UNROLL
            for (int e = 0; e < PIECE; ++e)
                if (n + e < args.n) store(to + e, rounded.v[e]);
        }
    }
}

} // namespace burrstone

#endif
