// From a tile's sums to its results: sums of other blocks, the way through shared memory, bias, rounding, gates, codes.
#ifndef BURRSTONE_KERNELS_MATMUL_RESULT_CUH
#define BURRSTONE_KERNELS_MATMUL_RESULT_CUH

#include "kernels/activation.cuh"
#include "kernels/matmul_fragments.cuh"

namespace burrstone {

// Sums on their way from the order of fragments to rows of tokens. The four more set the tokens of a fragment apart.
template <class V> struct MatmulRows {
    static constexpr int STRIDE = V::n + 4;
    Shared<float, V::m * STRIDE> sums;
    // Blocks of the tile that were done before this one.
    Shared<uint32_t, 1> arrived;
};

// Where the sums of one K slice of a tile are stored, in thread order: each thread has consecutive 16 bytes.
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
    MatmulTile<V>::sync();
    uint32_t *arrivals = pointer<uint32_t>(args.workspace) + tile;
    if (thread_index() == 0) {
        const uint32_t arrived = atomic_add_ordered(arrivals, 1u);
        if (arrived + 1 == args.splits) store(arrivals, 0u);
        before.store(0, arrived);
    }
    MatmulTile<V>::sync();
    return before.load(0) + 1 == args.splits;
}

// Adds the K slices of the tile in ascending order, as a single block does.
template <class V> BURRSTONE_DEVICE void add_partials(const matmul_args &args, const MatmulItem<V> &item, MatmulSums<V> &sums) {
    // Four loads are in flight at least.
    constexpr int PIECES = MatmulSums<V>::COUNT / 4;
    [[maybe_unused]] constexpr int TOGETHER = PIECES < 4 ? 4 / PIECES : 1;
    sums.clear();
    BURRSTONE_UNROLL_BY(TOGETHER)
    for (uint32_t slice = 0; slice < item.k_slices; ++slice) {
        vec<float, 4> pieces[PIECES];
        each_partial<V>(args, uint64_t(item.tile) * item.k_slices + slice, [&](vec<float, 4> *from, int i) { pieces[i] = load(from); });
        BURRSTONE_UNROLL
        for (int i = 0; i < MatmulSums<V>::COUNT; ++i) sums.at(i) += pieces[i / 4].v[i % 4];
    }
}

// A result is rounded before it is added, and the sum is rounded: as if the result had been stored.
template <class Out> BURRSTONE_DEVICE Out accumulated(Out before, Out result) {
    return from_float<Out>(to_float(before) + to_float(result));
}

// Results of the activations' own type can be gates, and can be quantized.
template <class V> constexpr bool IS_ACTIVATION = sizeof(typename V::out) == sizeof(typename V::dtype);

// Where results go: as they are, or as codes.
template <class V> struct MatmulOut {
    using Out = typename V::out;

    device_ptr first;
    uint32_t codes;
    float scale = 1.0f, inverse = 1.0f;

    // `codes`: args.codes, or 0.
    BURRSTONE_DEVICE MatmulOut(const matmul_args &args, uint32_t codes) : first(args.out), codes(codes) {
        if (!codes) return;
        scale = burrstone::load(pointer<const float>(args.scale));
        inverse = 1.0f / scale;
    }

    // N neighbours, the first of which is result number `at`.
    template <int N> BURRSTONE_DEVICE void store(uint64_t at, vec<Out, N> results) const {
        if (!codes) return burrstone::store(pointer<vec<Out, N>>(first + at * sizeof(Out)), results);
        vec<uint8_t, N> bytes;
        BURRSTONE_UNROLL
        for (int e = 0; e < N; ++e) bytes.v[e] = code(results.v[e]);
        burrstone::store(pointer<vec<uint8_t, N>>(first + at), bytes);
    }

    // What is there, of results that are no codes.
    template <int N> BURRSTONE_DEVICE vec<Out, N> load(uint64_t at) const {
        return burrstone::load(pointer<const vec<Out, N>>(first + at * sizeof(Out)));
    }

  private:
    BURRSTONE_DEVICE uint8_t code(Out result) const {
        // The quotient, rounded once (Markstein, 1990): a division of each result would be half of the kernel. What overflows
        // saturates.
        const float y = to_float(result), near = y * inverse;
        const float ratio = abs_(near) < 1e30f ? fma_(fma_(-near, scale, y), inverse, near) : near;
        return codes == BURRSTONE_MATMUL_E4M3 ? from_float<e4m3>(ratio).bits : uint8_t(from_float<i8>(ratio));
    }
};

// The results that a thread stores, four neighbours at a time: of a tile of so many columns.
template <class V, int COLUMNS> struct MatmulPieces {
    static constexpr int PIECE = 4, PIECES = V::m * COLUMNS / PIECE;
    static constexpr int COUNT = (PIECES + V::threads - 1) / V::threads;

    const matmul_args &args;
    uint64_t first_row, first_column;

    // Calls f(i, row, column, place) for those that there are, copied out so many together: where they are in the tile, and
    // in out.
    template <int TOGETHER, class F> BURRSTONE_DEVICE void each(F f) const {
        BURRSTONE_UNROLL_BY(TOGETHER)
        for (int i = 0; i < COUNT; ++i) {
            const unsigned index = i * V::threads + thread_index();
            if (PIECES % V::threads != 0 && index >= PIECES) continue;
            const unsigned row = index / (COLUMNS / PIECE), column = index % (COLUMNS / PIECE) * PIECE;
            const uint64_t m = first_row + row, to_column = first_column + column;
            if (m < args.m && to_column < args.columns) f(i, row, column, m * args.columns + to_column);
        }
    }
};

// The item's tile. Its rows of four leave side by side. GATED: in shared memory gates lie before what they let through.
// CODES: results may be codes.
template <class V, bool GATED, bool CODES>
BURRSTONE_DEVICE void store_rows(const matmul_args &args, const MatmulItem<V> &item, MatmulSums<V> &sums, MatmulRows<V> &rows) {
    using T = typename V::dtype;
    using Out = typename V::out;
    constexpr int COLUMNS = GATED ? V::n / 2 : V::n;
    using Pieces = MatmulPieces<V, COLUMNS>;
    constexpr int PIECE = Pieces::PIECE;
    constexpr unsigned GATES = BURRSTONE_MATMUL_GATES;
    constexpr bool ACCUMULATES = !GATED && !CODES;
    // Activations and codes are long: one copy of them is enough.
    constexpr int TOGETHER = ACCUMULATES ? Pieces::COUNT : 1;
    const Pieces pieces{args, item.first_m, item.first_n / (V::n / COLUMNS)};
    const MatmulOut<V> to(args, CODES ? args.codes : 0);
    const bool whole = to.codes || (args.out | args.columns * sizeof(Out)) % (PIECE * sizeof(Out)) == 0;

    // What results are added to comes while their sums go through shared memory.
    [[maybe_unused]] vec<Out, PIECE> before[TOGETHER] = {};
    if constexpr (ACCUMULATES) {
        if (args.accumulate && whole)
            pieces.template each<TOGETHER>([&](int i, unsigned, unsigned, uint64_t place) {
                before[i] = to.template load<PIECE>(place);
            });
    }

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
    pieces.template each<TOGETHER>([&](int i, unsigned row, unsigned column, uint64_t place) {
        const unsigned at = row * MatmulRows<V>::STRIDE + column;
        const uint64_t n = item.first_n + (GATED ? column / GATES * (2 * GATES) + column % GATES : column);
        vec<Out, PIECE> result = rounded(at, n);
        if constexpr (GATED) {
            const vec<Out, PIECE> ups = rounded(at + COLUMNS, n + GATES);
            BURRSTONE_UNROLL
            for (int e = 0; e < PIECE; ++e) result.v[e] = from_float<Out>(gated(args.activation, result.v[e], ups.v[e]));
        }
        if (whole) {
            if constexpr (ACCUMULATES) {
                BURRSTONE_UNROLL
                for (int e = 0; e < PIECE; ++e)
                    if (args.accumulate) result.v[e] = accumulated(before[i].v[e], result.v[e]);
            }
            to.store(place, result);
        } else {
            BURRSTONE_UNROLL
            for (int e = 0; e < PIECE; ++e) {
                if (pieces.first_column + column + e >= args.columns) continue;
                Out *out = pointer<Out>(args.out) + place + e;
                store(out, ACCUMULATES && args.accumulate ? accumulated(load(out), result.v[e]) : result.v[e]);
            }
        }
    });
}

template <class V>
BURRSTONE_DEVICE void store_tile(const matmul_args &args, const MatmulItem<V> &item, MatmulSums<V> &sums, MatmulRows<V> &rows) {
    if constexpr (IS_ACTIVATION<V>) {
        if (args.activation) return store_rows<V, true, true>(args, item, sums, rows);
        if (args.codes) return store_rows<V, false, true>(args, item, sums, rows);
    }
    store_rows<V, false, false>(args, item, sums, rows);
}

} // namespace burrstone

#endif
