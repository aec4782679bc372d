// Products by wgmma: Hopper's form.
//
// Blocks are persistent. A producer thread copies stages by TMA in the order in which they are multiplied, and runs
// ahead of the consumer warpgroups across items: while they store a tile, the first stages of the next one arrive. Each
// stage of the ring has two mbarriers: copies arrive at `full`, warps that have finished the stage at `empty`.
//
// In clusters of two, the blocks have adjacent tiles. Each copies half of the shared operand's stage by multicast to
// both; a stage is free when the warps of both have finished it.
#ifndef BURRSTONE_KERNELS_MATMUL_WARPGROUP_CUH
#define BURRSTONE_KERNELS_MATMUL_WARPGROUP_CUH

#include "common/cluster.cuh"
#include "common/register_budget.cuh"
#include "common/wgmma.cuh"
#include "kernels/matmul_result.cuh"

namespace burrstone {

// The shared memory of a block.
template <class V> struct MatmulRing {
    Shared<typename V::dtype, V::stages * MatmulTile<V>::STAGE, 1024> tiles;
    Shared<uint64_t, V::stages> full, empty;
    Shared<uint32_t, 1> arrived;
};

// A stage of the ring, and how often the ring has wrapped: the phase parity of `full`.
template <class V> struct MatmulPlace {
    uint32_t at = 0, parity = 0;

    BURRSTONE_DEVICE unsigned element() const { return at * MatmulTile<V>::STAGE; }
    BURRSTONE_DEVICE void advance() {
        at = at + 1 == V::stages ? 0 : at + 1;
        parity ^= at == 0;
    }
};

// Calls f(item) for each of the block's items.
template <class V, class F> BURRSTONE_DEVICE void each_item(const matmul_args &args, F f) {
    const unsigned items = MatmulGrid<V>(args).tiles() * args.splits;
    BURRSTONE_ROLLED
    for (unsigned number = block_index_x(); number < items; number += grid_size_x())
        f(MatmulItem<V>(args, number));
}

// Copies a stage by TMA: of an operand shared in the cluster this block's half, to both.
template <class V>
BURRSTONE_DEVICE void bring_stage(const matmul_args &args, MatmulRing<V> &ring, MatmulPlace<V> place, const MatmulItem<V> &item,
                                  uint32_t stage) {
    using Tile = MatmulTile<V>;
    constexpr uint32_t BOTH = 3;
    const uint32_t full = ring.full.address(place.at), k = stage * Tile::K;
    const auto to = [&](unsigned row) { return ring.tiles.address(place.element() + row * Tile::K); };
    const auto from = [&](uint64_t row) { return Coordinates{int32_t(k), int32_t(row)}; };
    if constexpr (V::weight::BITS > 0) {
        using T = typename V::dtype;
        constexpr uint32_t SCALES = V::n * sizeof(uint32_t);
        const auto behind = [&](unsigned element) { return ring.tiles.address(place.element() + element); };
        const MatmulCodeCopies<V> copies(args, item);
        mbarrier_arrive_expect(full, Tile::SCALES_AT * sizeof(T) + copies.groups() * SCALES);
        bulk_load(behind(Tile::CODES_AT), pointer<const void>(copies.codes_of(stage)), Tile::CODES * sizeof(T), full);
        for (uint32_t group = 0; group < copies.groups(); ++group)
            bulk_load(behind(Tile::SCALES_AT + group * (SCALES / sizeof(T))), pointer<const void>(copies.scales_of(stage, group)),
                      SCALES, full);
    } else {
        mbarrier_arrive_expect(full, Tile::STAGE * sizeof(typename V::dtype));
        if (args.pair == BURRSTONE_MATMUL_PAIR_WEIGHT) {
            const unsigned half = cluster_rank() * (V::n / 2);
            tensor_multicast(to(half), args.weight_boxes, from(item.first_n + half), full, BOTH);
        } else {
            tensor_load(to(0), args.weight_boxes, from(item.first_n), full);
        }
    }
    if (args.pair == BURRSTONE_MATMUL_PAIR_X) {
        const unsigned half = cluster_rank() * (V::m / 2);
        tensor_multicast(to(Tile::WEIGHT_ROWS + half), args.x_boxes, from(item.first_m + half), full, BOTH);
    } else {
        tensor_load(to(Tile::WEIGHT_ROWS), args.x_boxes, from(item.first_m), full);
    }
}

// Calls f(item, stage, place) for each stage of the block's items, once its buffer is free.
template <class V, class F> BURRSTONE_DEVICE void each_free_stage(const matmul_args &args, const MatmulRing<V> &ring, F f) {
    MatmulPlace<V> place;
    each_item<V>(args, [&](const MatmulItem<V> &item) {
        BURRSTONE_ROLLED
        for (uint32_t stage = item.first; stage < item.end; ++stage, place.advance()) {
            mbarrier_wait(ring.empty.address(place.at), place.parity ^ 1);
            f(item, stage, place);
        }
    });
}

// The producer warpgroup. One thread copies aligned rows by TMA; unaligned rows are copied by all threads, element by
// element.
template <class V> BURRSTONE_DEVICE void copy_stages(const matmul_args &args, MatmulRing<V> &ring, bool whole) {
    using Tile = MatmulTile<V>;
    if (!whole) {
        each_free_stage<V>(args, ring, [&](const MatmulItem<V> &item, uint32_t stage, MatmulPlace<V> place) {
            const MatmulCopies<V> copies(args, item);
            copies.copy_ragged(ring.tiles, place.element(), stage * Tile::K + copies.chunk() * VEC8);
            fence_async();
            mbarrier_arrive(ring.full.address(place.at));
        });
    } else if (MatmulCopies<V>::copier() == 0) {
        each_free_stage<V>(args, ring, [&](const MatmulItem<V> &item, uint32_t stage, MatmulPlace<V> place) {
            bring_stage<V>(args, ring, place, item, stage);
        });
    }
}

// Descriptor of a stage's rows from `row` on: they have the 128-byte swizzle.
template <class V> BURRSTONE_DEVICE uint64_t rows_from(const MatmulRing<V> &ring, MatmulPlace<V> place, unsigned row) {
    constexpr uint32_t ROW = MatmulTile<V>::K * sizeof(typename V::dtype), EIGHT_ROWS = 8 * ROW;
    return matrix_descriptor(ring.tiles.address(place.element()) + row * ROW, 0, EIGHT_ROWS, MatrixSwizzle::BYTES_128);
}

// Issues the products of the thread's warpgroup with a stage.
template <class V>
BURRSTONE_DEVICE void start_products(MatmulSums<V> &sums, const MatmulRing<V> &ring, MatmulPlace<V> place, bool accumulate) {
    using T = typename V::dtype;
    using Tile = MatmulTile<V>;
    constexpr uint32_t ROW = Tile::K * sizeof(T);
    const uint64_t weight = rows_from<V>(ring, place, Tile::worker_n()), x = rows_from<V>(ring, place, V::n);
    wgmma_fence();
    BURRSTONE_UNROLL
    for (uint32_t at = 0; at < ROW; at += Tile::S::K * sizeof(T))
        wgmma<V::m, T>(sums.v[0], weight + (at >> 4), x + (at >> 4), accumulate || at > 0);
    wgmma_commit();
}

// The same with codes, dequantized in registers. Calls f() once the products before this stage are done.
template <class V> struct MatmulCodedProducts {
    using T = typename V::dtype;
    using Tile = MatmulTile<V>;
    static constexpr int STEPS = Tile::K / Tile::DEPTH;

    MatmulCodedWeight<V> weight;
    // Operands of products that may still run.
    uint32_t a[STEPS][4];

    BURRSTONE_DEVICE explicit MatmulCodedProducts(const matmul_args &args) : weight(args) {}

    template <class F>
    BURRSTONE_DEVICE void start(MatmulSums<V> &sums, const MatmulRing<V> &ring, MatmulPlace<V> place, bool accumulate, F f) {
        const uint64_t x = rows_from<V>(ring, place, 0);
        weight.load(ring.tiles, place.element());
        BURRSTONE_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            wgmma_hold(weight.codes[0]);
            const auto words = weight.fragment(ring.tiles, place.element(), step, 0);
            BURRSTONE_UNROLL
            for (int w = 0; w < 4; ++w) a[step][w] = words.v[w];
            wgmma_hold(a[step]);
            wgmma_fence();
            wgmma<V::m, T>(sums.v[0], a[step], x + (step * Tile::S::K * sizeof(T) >> 4), accumulate || step > 0);
            wgmma_commit();
            // The products that have the next step's registers are done: those of all but this step and two before.
            wgmma_wait<STEPS - 1>();
            if (step == STEPS - 2) f();
        }
    }
};

template <class V> struct MatmulDenseProducts {
    BURRSTONE_DEVICE explicit MatmulDenseProducts(const matmul_args &) {}

    template <class F>
    BURRSTONE_DEVICE void start(MatmulSums<V> &sums, const MatmulRing<V> &ring, MatmulPlace<V> place, bool accumulate, F f) {
        start_products<V>(sums, ring, place, accumulate);
        // One stage's products run while the next one's are issued.
        wgmma_wait<1>();
        f();
    }
};

// The thread's warp has finished a stage. `others`: address of `empty` in the cluster's other block, or 0.
template <class V> BURRSTONE_DEVICE void release_stage(const MatmulRing<V> &ring, MatmulPlace<V> place, uint32_t others) {
    sync_warp();
    if (lane_index() == 0) mbarrier_arrive(ring.empty.address(place.at));
    if (others && lane_index() == 1) mbarrier_arrive_cluster(others + place.at * sizeof(uint64_t));
}

// Stores the item's tile from registers. A thread has two weight rows, eight apart, for two of each eight tokens: with
// gates, a gate and its up projection.
template <class V> struct MatmulStore {
    using T = typename V::dtype;
    using Out = typename V::out;
    static constexpr int PIECE = 4;

    // Of out, and whether results are added to what it holds.
    uint32_t columns;
    bool accumulate;
    // The thread's first row and first token, and how many of the tile's exist from there on.
    uint64_t row, token;
    int rows, tokens;
    float bias[2] = {0.0f, 0.0f};

    BURRSTONE_DEVICE MatmulStore(const matmul_args &args, const MatmulItem<V> &item) {
        const Element place = MatmulTile<V>::place_of_sum(0);
        columns = args.columns;
        accumulate = args.accumulate;
        row = item.first_n + unsigned(place.row);
        token = item.first_m + unsigned(place.column);
        rows = left(args.n, row, V::n);
        tokens = left(args.m, token, V::m);
        if (!args.bias) return;
        BURRSTONE_UNROLL
        for (int h = 0; h < 2; ++h)
            if (h * 8 < rows) bias[h] = to_float(load(pointer<const T>(args.bias) + row + h * 8));
    }

    // Below 0 for what lies beyond.
    static BURRSTONE_DEVICE int left(uint32_t end, uint64_t from, int most) {
        const int64_t there = int64_t(end) - int64_t(from);
        return there < most ? int(there) : most;
    }

    BURRSTONE_DEVICE Out rounded(MatmulSums<V> &sums, int eight, int h, int t) const {
        return from_float<Out>(sums.at(eight * 4 + h * 2 + t) + bias[h]);
    }

    // One by one: eight lanes of f32 fill a sector.
    BURRSTONE_DEVICE void singles(Out *out, MatmulSums<V> &sums) const {
        Out *to = out + token * columns + row;
        BURRSTONE_UNROLL
        for (int eight = 0; eight < V::m / 8; ++eight, to += 8 * uint64_t(columns)) {
            const auto there = [&](int e) { return eight * 8 + e % 2 < tokens && e / 2 * 8 < rows; };
            const auto at = [&](int e) { return to + e % 2 * uint64_t(columns) + e / 2 * 8; };
            Out before[4] = {};
            BURRSTONE_UNROLL
            for (int e = 0; e < 4; ++e)
                if (accumulate && there(e)) before[e] = load(at(e));
            BURRSTONE_UNROLL
            for (int e = 0; e < 4; ++e) {
                const Out result = rounded(sums, eight, e / 2, e % 2);
                if (there(e)) store(at(e), accumulate ? accumulated(before[e], result) : result);
            }
        }
    }

    // 16 bits: the eight lanes with the same tokens exchange sums until each has four consecutive rows of one token, so
    // that four lanes fill a sector (half of one for codes).
    BURRSTONE_DEVICE void pieces(const MatmulOut<V> &out, MatmulSums<V> &sums) const {
        const unsigned lane = lane_index() / 4;
        const bool odd = lane % 2 == 1, high = lane / 2 % 2 == 1;
        const int first = high * 8 + int(lane) / 4 * PIECE - int(lane);
        uint64_t to = (token + odd) * columns + row + first;
        const auto there = [&](int eight) { return eight * 8 + odd < tokens && first < rows; };
        // Loads what results are added to, all in flight at once.
        vec<Out, PIECE> before[V::m / 8] = {};
        if (accumulate) {
            BURRSTONE_UNROLL
            for (int eight = 0; eight < V::m / 8; ++eight)
                if (there(eight)) before[eight] = out.template load<PIECE>(to + eight * 8 * uint64_t(columns));
        }
        const auto exchange = [](vec<Out, 2> given, unsigned flip) {
            return bit_cast<vec<Out, 2>>(shfl_xor(bit_cast<uint32_t>(given), flip));
        };
        BURRSTONE_UNROLL
        for (int eight = 0; eight < V::m / 8; ++eight, to += 8 * uint64_t(columns)) {
            // Tokens of both rows; one goes to the neighbour lane, which has the adjacent rows.
            const vec<Out, 2> a{rounded(sums, eight, 0, 0), rounded(sums, eight, 1, 0)};
            const vec<Out, 2> b{rounded(sums, eight, 0, 1), rounded(sums, eight, 1, 1)};
            const vec<Out, 2> own = odd ? b : a, other = exchange(odd ? a : b, 4);
            // Two neighbouring rows, and the two that are eight behind them; a pair goes to the lane two further.
            const vec<Out, 2> low{odd ? other.v[0] : own.v[0], odd ? own.v[0] : other.v[0]};
            const vec<Out, 2> behind{odd ? other.v[1] : own.v[1], odd ? own.v[1] : other.v[1]};
            const vec<Out, 2> kept = high ? behind : low, got = exchange(high ? low : behind, 8);
            const vec<Out, 2> left = high ? got : kept, right = high ? kept : got;
            vec<Out, PIECE> results{left.v[0], left.v[1], right.v[0], right.v[1]};
            BURRSTONE_UNROLL
            for (int e = 0; e < PIECE; ++e)
                if (accumulate) results.v[e] = accumulated(before[eight].v[e], results.v[e]);
            if (there(eight)) out.store(to, results);
        }
    }

    // Gated, one by one: the eight lanes with the same tokens fill half a sector, all that a warp has of a token (a
    // quarter for codes).
    BURRSTONE_DEVICE void gates(const MatmulOut<V> &out, MatmulSums<V> &sums, uint32_t activation) const {
        static_assert(BURRSTONE_MATMUL_GATES == 8, "as the fragments are");
        const uint64_t column = row / 16 * 8 + row % 8;
        if (column >= columns) return;
        uint64_t to = token * columns + column;
        BURRSTONE_UNROLL
        for (int eight = 0; eight < V::m / 8; ++eight, to += 8 * uint64_t(columns)) {
            BURRSTONE_UNROLL
            for (int t = 0; t < 2; ++t) {
                if (eight * 8 + t >= tokens) continue;
                const Out gate = rounded(sums, eight, 0, t), up = rounded(sums, eight, 1, t);
                out.store(to + t * uint64_t(columns), vec<Out, 1>{from_float<Out>(gated(activation, gate, up))});
            }
        }
    }
};

template <class V> BURRSTONE_DEVICE void store_sums(const matmul_args &args, const MatmulItem<V> &item, MatmulSums<V> &sums) {
    using Out = typename V::out;
    using Store = MatmulStore<V>;
    const Store to(args, item);
    if constexpr (IS_ACTIVATION<V>) {
        const MatmulOut<V> out(args, args.codes);
        if (args.activation) return to.gates(out, sums, args.activation);
        if (out.codes || (args.out | args.columns * sizeof(Out)) % (Store::PIECE * sizeof(Out)) == 0)
            return to.pieces(out, sums);
    }
    to.singles(pointer<Out>(args.out), sums);
}

// The consumer warpgroups.
template <class V> BURRSTONE_DEVICE void multiply_items(const matmul_args &args, MatmulRing<V> &ring) {
    using Tile = MatmulTile<V>;
    MatmulPlace<V> place;
    MatmulSums<V> sums, result;
    IfCoded<V, MatmulCodedProducts<V>, MatmulDenseProducts<V>> products(args);
    const uint32_t others = args.pair ? cluster_address(ring.empty.address(0), cluster_rank() ^ 1) : 0;
    each_item<V>(args, [&](const MatmulItem<V> &item) {
        // Scoped so that its registers are free while a tile is stored.
        sums.clear();
        result.clear();
        BURRSTONE_ROLLED
        for (uint32_t first = item.first; first < item.end; first += Tile::SLICE) {
            const uint32_t end = item.end - first < Tile::SLICE ? item.end : first + Tile::SLICE;
            MatmulPlace<V> before;
            BURRSTONE_ROLLED
            for (uint32_t stage = first; stage < end; ++stage, place.advance()) {
                mbarrier_wait(ring.full.address(place.at), place.parity);
                products.start(sums, ring, place, stage != first, [&] {
                    if (stage != first) release_stage<V>(ring, before, others);
                });
                before = place;
            }
            wgmma_wait<0>(sums.v[0]);
            release_stage<V>(ring, before, others);
            if (args.splits == 1) result.add(sums);
            else store_partial<V>(args, uint64_t(item.tile) * item.k_slices + first / Tile::SLICE, sums);
        }
        if (args.splits > 1) {
            if (!is_last<V>(args, item.tile, ring.arrived)) return;
            add_partials<V>(args, item, result);
        }
        store_sums<V>(args, item, result);
    });
}

template <class V> BURRSTONE_DEVICE void multiply_by_warpgroups(const matmul_args &args, MatmulRing<V> &ring) {
    using Tile = MatmulTile<V>;
    // Registers that the producer releases to the consumers, in blocks that have an SM to themselves.
    constexpr bool GIVES = Tile::WORKERS > 1;
    constexpr int COPYING = 40, MULTIPLYING = 232;
    const bool whole = is_vectorizable<typename V::dtype>(args.x | args.weight, args.k);
    if (thread_index() == 0) {
        BURRSTONE_ROLLED
        for (int stage = 0; stage < V::stages; ++stage) {
            mbarrier_init(ring.full.address(stage), whole ? 1 : Tile::COPYING);
            mbarrier_init(ring.empty.address(stage), Tile::THREADS / WARP * (args.pair ? 2 : 1));
        }
        mbarrier_fence_init();
    }
    if (args.pair) cluster_sync();
    else sync_block();
    if (thread_index() >= unsigned(Tile::THREADS)) {
        if constexpr (GIVES) give_registers<COPYING>();
        copy_stages<V>(args, ring, whole);
    } else {
        if constexpr (GIVES) take_registers<MULTIPLYING>();
        multiply_items<V>(args, ring);
    }
    if (!args.pair) return;
    // The other block may still multicast into this one, or release stages that this one filled.
    sync_warp();
    cluster_sync();
}

} // namespace burrstone

#endif
