// x weight^T + bias on the tensor cores of every architecture, optionally gated. The weight is dense, or codes that are
// dequantized on their way from shared memory to fragments.
//
// The bits of a result do not depend on tile sizes, the number of tokens or split-K. K is cut into slices of
// BURRSTONE_MATMUL_K_SLICE elements; the products of a slice are one chain of the instruction, from zero, in ascending k;
// the slices' sums are added in ascending order. Any block may compute any slice.
//
// A slice of 512 is short enough that the layers of a 1 B model (k = 2048) give four blocks to each tile of a decode
// step, and long enough that adding slices costs almost nothing (one addition per 32 Ampere instructions), as does
// their way through memory (1/128 of the weight's bytes per token).
#ifndef BURRSTONE_KERNELS_MATMUL_CU
#define BURRSTONE_KERNELS_MATMUL_CU

#include "kernels/matmul_warpgroup.cuh"

namespace burrstone {

template <class V, bool GROUP = MatmulTile<V>::GROUP> struct matmul_shared;
template <class V> struct matmul_shared<V, true> : MatmulRing<V> {};
template <class V> struct matmul_shared<V, false> {
    union {
        Shared<typename V::dtype, V::stages * MatmulTile<V>::STAGE, 128> tiles;
        MatmulRows<V> rows;
    };
};

// Multiplies the item's stages; calls f(sums, slice) where a K slice ends. RAGGED: only units with tokens, in a loop of
// its own, because whole tiles do not need its branches.
template <class V, bool RAGGED, class F>
BURRSTONE_DEVICE void multiply_stages(const MatmulCopies<V> &copies, MatmulWeight<V> &weight, matmul_shared<V> &shared,
                                      const MatmulItem<V> &item, uint32_t tokens, F f) {
    using Tile = MatmulTile<V>;
    const uint32_t count = item.end - item.first;
    const int units = RAGGED ? Tile::units_of(tokens) : Tile::UNITS_M;

    MatmulSums<V> sums;
    sums.clear();
    const auto end_stage = [&](uint32_t done) {
        const uint32_t at = item.first + done;
        if (at % Tile::SLICE != Tile::SLICE - 1 && done + 1 != count) return;
        f(sums, at / Tile::SLICE);
        sums.clear();
    };
    const auto start_of = [&](uint32_t stage) { return (item.first + stage) * Tile::K; };

    if constexpr (Tile::ASYNC) {
        BURRSTONE_ROLLED
        for (int stage = 0; stage < V::stages - 1; ++stage) {
            if (uint32_t(stage) < count) copies.start(shared.tiles, stage * Tile::STAGE, start_of(stage));
            cp_async_commit();
        }
        BURRSTONE_ROLLED
        for (uint32_t done = 0; done < count; ++done) {
            cp_async_wait<V::stages - 2>();
            // This stage has arrived for all threads, and all have finished the one whose buffer is next.
            sync_block();
            const uint32_t next = done + V::stages - 1;
            if (next < count) copies.start(shared.tiles, next % V::stages * Tile::STAGE, start_of(next));
            cp_async_commit();
            multiply_stage<V>(sums, shared.tiles, done % V::stages * Tile::STAGE, weight, units);
            end_stage(done);
        }
    } else {
        static_assert(V::stages == 2, "one stage is multiplied, one is written");
        typename MatmulCopies<V>::Chunks chunks = {};
        copies.read(chunks, start_of(0));
        if (count > 0) copies.write(shared.tiles, 0, start_of(0), chunks);
        BURRSTONE_ROLLED
        for (uint32_t done = 0; done < count; ++done) {
            const uint32_t next = done + 1;
            sync_block();
            if (next < count) copies.read(chunks, start_of(next));
            multiply_stage<V>(sums, shared.tiles, done % 2 * Tile::STAGE, weight, units);
            end_stage(done);
            if (next < count) copies.write(shared.tiles, next % 2 * Tile::STAGE, start_of(next), chunks);
        }
    }
}

// Grid: one block per item; in the wgmma form any number of persistent blocks that share the items.
template <class V> BURRSTONE_DEVICE void matmul(const matmul_args &args, matmul_shared<V> &shared) {
    if constexpr (MatmulTile<V>::GROUP) {
        multiply_by_warpgroups<V>(args, shared);
    } else {
        const MatmulItem<V> item(args, block_index_x());
        const MatmulCopies<V> copies(args, item);
        MatmulWeight<V> weight(args);
        MatmulSums<V> result;
        result.clear();
        const auto end_slice = [&](MatmulSums<V> &sums, uint32_t slice) {
            if (args.splits == 1) result.add(sums);
            else store_partial<V>(args, uint64_t(item.tile) * item.k_slices + slice, sums);
        };
        using Tile = MatmulTile<V>;
        const uint32_t tokens = args.m - item.first_m;
        if (Tile::SKIPS && tokens + Tile::WORKERS_M * Tile::UNIT_M <= uint32_t(V::m))
            multiply_stages<V, Tile::SKIPS>(copies, weight, shared, item, tokens, end_slice);
        else
            multiply_stages<V, false>(copies, weight, shared, item, tokens, end_slice);
        if (args.splits == 1) {
            // The result rows reuse the stages' shared memory.
            sync_block();
        } else {
            if (!is_last<V>(args, item.tile, shared.rows.arrived)) return;
            add_partials<V>(args, item, result);
        }
        store_tile<V>(args, item, result, shared.rows);
    }
}

} // namespace burrstone

#endif
