// x weight^T + bias with fused multiply-adds: runs everywhere, and is what the tensor-core kernels are measured against.
//
// Each output is one chain of f32 additions in ascending k, whatever the tile: all variants give the same bits.
#ifndef BURRSTONE_KERNELS_MATMUL_CU
#define BURRSTONE_KERNELS_MATMUL_CU

#include "abi/matmul.h"
#include "kernels/row.cuh"

namespace burrstone {

template <class V> struct matmul_tile {
    // Elements of k at a time: 128 bytes of each row, whole cache lines.
    static constexpr int K = 64;
    // Shared memory between two rows: the grain more puts eight rows' grains into different banks.
    static constexpr int STRIDE = K + GRAIN;
    // Rows of x and, behind them, of the weight.
    static constexpr int ROWS = V::m + V::n;
    // Threads along m and n. A warp spans few rows of x and many of the weight, so that it stores side by side.
    static constexpr int DOWN = V::m < 16 ? V::m : 16;
    static constexpr int ACROSS = V::threads / DOWN;
    // Outputs of a thread: every DOWN-th row, every ACROSS-th column.
    static constexpr int M = V::m / DOWN;
    static constexpr int N = V::n / ACROSS;
    static_assert(M * DOWN == V::m && N * ACROSS == V::n && ACROSS * DOWN == V::threads, "threads cover the tile");
};

template <class V> struct matmul_shared {
    Shared<typename V::dtype, matmul_tile<V>::ROWS * matmul_tile<V>::STRIDE> rows;
};

// Blocks [tiles of m, tiles of n]: neighbours share rows of the weight.
template <class V> BURRSTONE_DEVICE void matmul(const matmul_args &args, matmul_shared<V> &shared) {
    using T = typename V::dtype;
    using Out = typename V::out;
    using Tile = matmul_tile<V>;
    constexpr int GRAINS = Tile::K / GRAIN;
    constexpr int LOADS = (Tile::ROWS * GRAINS + V::threads - 1) / V::threads;

    const uint32_t k = args.k;
    const uint64_t first_row = uint64_t(block_index_x()) * V::m, first_column = uint64_t(block_index_y()) * V::n;
    const bool whole = has_grains<T>(args.x | args.weight, k);
    const unsigned down = thread_index() / Tile::ACROSS, across = thread_index() % Tile::ACROSS;

    // The next tile travels while this one is multiplied.
    Grain<T> next[LOADS];
    const auto fetch = [&](uint64_t start) {
        BURRSTONE_UNROLL
        for (int i = 0; i < LOADS; ++i) {
            const unsigned index = i * V::threads + thread_index(), row = index / GRAINS;
            const uint64_t at = start + index % GRAINS * GRAIN;
            const bool of_x = row < V::m;
            const uint64_t source = of_x ? first_row + row : first_column + (row - V::m);
            const T *base = pointer<const T>(of_x ? args.x : args.weight);
            next[i] = {};
            if (row < Tile::ROWS && at < k && source < (of_x ? args.m : args.n))
                next[i] = load_grain(base + source * k, k, uint32_t(at), whole);
        }
    };

    float sum[Tile::M][Tile::N] = {};
    fetch(0);
    for (uint64_t start = 0; start < k; start += Tile::K) {
        BURRSTONE_UNROLL
        for (int i = 0; i < LOADS; ++i) {
            const unsigned index = i * V::threads + thread_index();
            if (index < Tile::ROWS * GRAINS)
                shared.rows.template store_vec<GRAIN>(index / GRAINS * Tile::STRIDE + index % GRAINS * GRAIN, next[i]);
        }
        sync_block();
        fetch(start + Tile::K);
        // With few rows, the threads of the others only load.
        if (first_row + down < args.m) {
            for (int g = 0; g < Tile::K; g += GRAIN) {
                Grain<T> x[Tile::M], w[Tile::N];
                BURRSTONE_UNROLL
                for (int i = 0; i < Tile::M; ++i)
                    x[i] = shared.rows.template load_vec<GRAIN>((down + i * Tile::DOWN) * Tile::STRIDE + g);
                BURRSTONE_UNROLL
                for (int j = 0; j < Tile::N; ++j)
                    w[j] = shared.rows.template load_vec<GRAIN>((V::m + across + j * Tile::ACROSS) * Tile::STRIDE + g);
                BURRSTONE_UNROLL
                for (int e = 0; e < GRAIN; ++e) {
                    BURRSTONE_UNROLL
                    for (int i = 0; i < Tile::M; ++i) {
                        BURRSTONE_UNROLL
                        for (int j = 0; j < Tile::N; ++j)
                            sum[i][j] = fma_(to_float(x[i].v[e]), to_float(w[j].v[e]), sum[i][j]);
                    }
                }
            }
        }
        sync_block();
    }

    BURRSTONE_UNROLL
    for (int j = 0; j < Tile::N; ++j) {
        const uint64_t column = first_column + across + j * Tile::ACROSS;
        if (column >= args.n) continue;
        const float bias = args.bias ? to_float(load(pointer<const T>(args.bias) + column)) : 0.0f;
        BURRSTONE_UNROLL
        for (int i = 0; i < Tile::M; ++i) {
            const uint64_t row = first_row + down + i * Tile::DOWN;
            if (row < args.m) store(pointer<Out>(args.out) + row * args.n + column, from_float<Out>(sum[i][j] + bias));
        }
    }
}

} // namespace burrstone

#endif
