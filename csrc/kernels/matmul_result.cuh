// From a tile's sums to its results: sums of other blocks, the way through shared memory, bias, rounding, gates.
#ifndef BURRSTONE_KERNELS_MATMUL_RESULT_CUH
#define BURRSTONE_KERNELS_MATMUL_RESULT_CUH

#include "kernels/activation.cuh"
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
    const device_ptr sums = args.workspace + BURRSTONE_MATMUL_COUNTERS * sizeof(uint32_t);
    auto *first = pointer<vec<float, 4>>(sums) + tile_and_span * (PIECES * THREADS) + thread_index();
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
    uint32_t *arrivals = pointer<uint32_t>(args.workspace) + tile;
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

// Results that can be gates: those of the activations' own type.
template <class V> constexpr bool HAS_GATES = sizeof(typename V::out) == sizeof(typename V::dtype);

// The item's tile. Its rows of four leave side by side. GATED: in shared memory gates lie before what they let through.
template <class V, bool GATED>
BURRSTONE_DEVICE void store_rows(const matmul_args &args, const MatmulItem<V> &item, MatmulSums<V> &sums, MatmulRows<V> &rows) {
    using T = typename V::dtype;
    using Out = typename V::out;
    constexpr int PIECE = 4, COLUMNS = GATED ? V::n / 2 : V::n, PIECES = V::m * COLUMNS / PIECE;
    constexpr unsigned GATES = BURRSTONE_MATMUL_GATES;

    BURRSTONE_UNROLL
    for (int i = 0; i < MatmulSums<V>::COUNT; ++i) {
        const Element place = MatmulTile<V>::place_of_sum(i);
        const unsigned row = unsigned(place.row);
        const unsigned at = GATED ? row / (2 * GATES) * GATES + row % GATES + row / GATES % 2 * COLUMNS : row;
        rows.sums.store(unsigned(place.column) * MatmulRows<V>::STRIDE + at, sums.at(i));
    }
    sync_block();

    // Four results for rows of the weight from n on.
    const auto rounded = [&](unsigned at, uint64_t n) {
        vec<float, PIECE> sum = rows.sums.template load_vec<PIECE>(at);
        if (args.bias) {
            BURRSTONE_UNROLL
            for (int e = 0; e < PIECE; ++e)
                if (n + e < args.n) sum.v[e] += to_float(load(pointer<const T>(args.bias) + n + e));
        }
        vec<Out, PIECE> rounded;
        BURRSTONE_UNROLL
        for (int e = 0; e < PIECE; ++e) rounded.v[e] = from_float<Out>(sum.v[e]);
        return rounded;
    };
    const uint64_t first_column = item.first_n / (V::n / COLUMNS);
    const bool whole = (args.out | args.columns * sizeof(Out)) % (PIECE * sizeof(Out)) == 0;
    // Activations are long: one copy of them is enough.
    [[maybe_unused]] constexpr int TOGETHER = GATED ? 1 : (PIECES + V::threads - 1) / V::threads;
    BURRSTONE_UNROLL_BY(TOGETHER)
    for (int p = 0; p < PIECES; p += V::threads) {
        const unsigned index = p + thread_index();
        if (PIECES % V::threads != 0 && index >= PIECES) continue;
        const unsigned row = index / (COLUMNS / PIECE), column = index % (COLUMNS / PIECE) * PIECE;
        const uint64_t m = item.first_m + row, to_column = first_column + column;
        if (m >= args.m || to_column >= args.columns) continue;
        const unsigned at = row * MatmulRows<V>::STRIDE + column;
        const uint64_t n = item.first_n + (GATED ? column / GATES * (2 * GATES) + column % GATES : column);
        vec<Out, PIECE> result = rounded(at, n);
        if constexpr (GATED) {
            const vec<Out, PIECE> ups = rounded(at + COLUMNS, n + GATES);
            BURRSTONE_UNROLL
            for (int e = 0; e < PIECE; ++e) result.v[e] = from_float<Out>(gated(args.activation, result.v[e], ups.v[e]));
        }
        Out *to = pointer<Out>(args.out) + m * args.columns + to_column;
        if (whole) {
            store(reinterpret_cast<vec<Out, PIECE> *>(to), result);
        } else {
            BURRSTONE_UNROLL
            for (int e = 0; e < PIECE; ++e)
                if (to_column + e < args.columns) store(to + e, result.v[e]);
        }
    }
}

template <class V>
BURRSTONE_DEVICE void store_tile(const matmul_args &args, const MatmulItem<V> &item, MatmulSums<V> &sums, MatmulRows<V> &rows) {
    if constexpr (HAS_GATES<V>) {
        if (args.activation) return store_rows<V, true>(args, item, sums, rows);
    }
    store_rows<V, false>(args, item, sums, rows);
}

} // namespace burrstone

#endif
