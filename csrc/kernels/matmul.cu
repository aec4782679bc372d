// x weight^T + bias on the tensor cores of every architecture.
//
// A result's bits do not depend on tiles, on the number of tokens, nor on how many blocks share the work. k is cut into spans
// of BURRSTONE_MATMUL_SPAN elements; the products of a span are one chain of the instruction, from zero, in ascending k; the
// spans' sums are added in ascending order. Any block may compute any span.
//
// A span of 512: short enough that the layers of a model of 1 B parameters (k = 2048) give four blocks to each tile of a
// decode step, long enough that the sums of spans are next to nothing beside the products (1 addition for 32 instructions
// of Ampere's), and that their way through memory is short (a 128th of the weight's bytes for each token).
#ifndef BURRSTONE_KERNELS_MATMUL_CU
#define BURRSTONE_KERNELS_MATMUL_CU

#include "kernels/matmul_result.cuh"

namespace burrstone {

template <class V> struct matmul_shared {
    union {
        Shared<typename V::dtype, V::stages * MatmulTile<V>::STAGE, 1024> tiles;
        MatmulRows<V> rows;
    };
};

// The sums of `count` stages from stage `first` of k on; calls f(sums, span) where a span ends.
template <class V, class F>
BURRSTONE_DEVICE void multiply_stages(const MatmulCopies<V> &copies, matmul_shared<V> &shared, uint32_t first, uint32_t count, F f) {
    using T = typename V::dtype;
    using Tile = MatmulTile<V>;
    constexpr uint32_t SPAN = BURRSTONE_MATMUL_SPAN / Tile::K;

    MatmulSums<V> sums;
    sums.clear();
    const auto end_stage = [&](uint32_t done) {
        const uint32_t at = first + done;
        if (at % SPAN != SPAN - 1 && done + 1 != count) return;
        f(sums, at / SPAN);
        sums.clear();
    };
    const auto start_of = [&](uint32_t stage) { return (first + stage) * Tile::K; };

    if constexpr (Tile::ASYNC) {
        BURRSTONE_ROLLED
        for (int stage = 0; stage < V::stages - 1; ++stage) {
            if (uint32_t(stage) < count) copies.start(shared.tiles, stage * Tile::STAGE, start_of(stage));
            cp_async_commit();
        }
        BURRSTONE_ROLLED
        for (uint32_t done = 0; done < count; ++done) {
            cp_async_wait<V::stages - 2>();
            if constexpr (Tile::GROUP) fence_async();
            // The stage has landed for all, and all are done with the one before, whose place is the next copies'.
            sync_block();
            if constexpr (Tile::GROUP) start_products<V>(sums, shared.tiles, done % V::stages * Tile::STAGE);
            const uint32_t next = done + V::stages - 1;
            if (next < count) copies.start(shared.tiles, next % V::stages * Tile::STAGE, start_of(next));
            cp_async_commit();
            if constexpr (Tile::GROUP) wgmma_wait<0>(sums.v[0]);
            else multiply_stage<V>(sums, shared.tiles, done % V::stages * Tile::STAGE);
            end_stage(done);
        }
    } else {
        static_assert(V::stages == 2, "one stage is multiplied, one is written");
        Grain<T> grains[Tile::COPIES] = {};
        copies.read(grains, start_of(0));
        if (count > 0) copies.write(shared.tiles, 0, start_of(0), grains);
        BURRSTONE_ROLLED
        for (uint32_t done = 0; done < count; ++done) {
            const uint32_t next = done + 1;
            sync_block();
            if (next < count) copies.read(grains, start_of(next));
            multiply_stage<V>(sums, shared.tiles, done % 2 * Tile::STAGE);
            end_stage(done);
            if (next < count) copies.write(shared.tiles, next % 2 * Tile::STAGE, start_of(next), grains);
        }
    }
}

// Blocks [tiles, splits].
template <class V> BURRSTONE_DEVICE void matmul(const matmul_args &args, matmul_shared<V> &shared) {
    using Tile = MatmulTile<V>;
    constexpr uint32_t SPAN = BURRSTONE_MATMUL_SPAN / Tile::K;

    // Blocks that run side by side share rows of x and of the weight: tiles are numbered down bands of eight tiles of x.
    constexpr unsigned BAND = 8;
    const unsigned tile = block_index_x(), tiles_n = (args.n + V::n - 1) / V::n, tiles_m = (args.m + V::m - 1) / V::m;
    const unsigned band = tile / (BAND * tiles_n), inside = tile % (BAND * tiles_n);
    const unsigned height = tiles_m - band * BAND < BAND ? tiles_m - band * BAND : BAND;
    const uint64_t first_m = uint64_t(band * BAND + inside % height) * V::m, first_n = uint64_t(inside / height) * V::n;

    // Spans of this block, and their stages.
    const uint32_t stages = (args.k + Tile::K - 1) / Tile::K, spans = (stages + SPAN - 1) / SPAN;
    const uint32_t split = block_index_y();
    const uint32_t first = uint32_t(uint64_t(split) * spans / args.splits) * SPAN;
    const uint32_t behind = uint32_t(uint64_t(split + 1) * spans / args.splits) * SPAN;
    const uint32_t end = behind < stages ? behind : stages;

    const MatmulCopies<V> copies(args, first_m, first_n);
    MatmulSums<V> result;
    result.clear();
    const bool alone = args.splits == 1;
    multiply_stages<V>(copies, shared, first, end - first, [&](MatmulSums<V> &sums, uint32_t span) {
        if (alone) result.add(sums);
        else store_partial<V>(args, uint64_t(tile) * spans + span, sums);
    });
    if (alone) {
        // The rows of the result take the place of the stages.
        sync_block();
    } else {
        if (!is_last<V>(args, tile, shared.rows.arrived)) return;
        add_partials<V>(args, tile, spans, result);
    }
    store_tile<V>(args, first_m, first_n, result, shared.rows);
}

} // namespace burrstone

#endif
