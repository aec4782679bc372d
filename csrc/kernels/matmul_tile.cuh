// A block's tile of a product: rows of the weight and of x in shared memory, and the warps' fragments.
#ifndef BURRSTONE_KERNELS_MATMUL_TILE_CUH
#define BURRSTONE_KERNELS_MATMUL_TILE_CUH

#include "abi/matmul.h"
#include "common/cp_async.cuh"
#include "common/wgmma.cuh"
#include "kernels/matmul_codes.cuh"
#include "kernels/row.cuh"

namespace burrstone {

// Sizes derived from a variant's axes. The weight is operand a, x is operand b: an instruction is eight tokens wide on
// every architecture, so one token and eight thousand use the same instruction.
template <class V> struct MatmulTile {
    using S = typename V::instruction;
    // On Volta lanes hold rows, eight elements of k at a time; from Turing on ldmatrix distributes 16 elements of k.
    static constexpr bool BY_ROWS = S::LANES_PER_PRODUCT < int(WARP);
    // cp.async came with this shape.
    static constexpr bool ASYNC = S::K == 16;

    // Elements of k per stage: 128 bytes of a row, which is a cache line and all banks once.
    static constexpr int K = 64;
    static constexpr int CHUNKS = K / VEC8;
    // Stages per K slice.
    static constexpr int SLICE = BURRSTONE_MATMUL_K_SLICE / K;
    // Rows of a stage: those of a dense weight, then those of x.
    static constexpr int WEIGHT_ROWS = V::weight::BITS > 0 ? 0 : V::n;
    static constexpr int ROWS = WEIGHT_ROWS + V::m;
    // Then the codes of a quantized weight, and their scales, one word a row, of up to four groups: in elements.
    static constexpr int GROUPS = V::weight::BITS > 0 ? K / 16 : 0;
    static constexpr int CODES = V::n * K * V::weight::BITS / 16, CODES_AT = ROWS * K;
    static constexpr int SCALES = GROUPS * V::n * 2, SCALES_AT = CODES_AT + CODES;
    static constexpr int STAGE = SCALES_AT + SCALES;

    // Workers: warps, or warpgroups that read shared memory themselves; then the block's last warpgroup is the
    // producer.
    static constexpr bool GROUP = BY_WARPGROUP<S>;
    static constexpr int WARPGROUP = 4 * int(WARP);
    static constexpr int THREADS = V::threads - (GROUP ? WARPGROUP : 0);
    static constexpr int WORKERS = THREADS / (GROUP ? WARPGROUP : int(WARP));
    // For few tokens each warp has its own weight rows. Otherwise two warps share weight rows: squarer warp tiles read
    // less shared memory per product.
    static constexpr int WORKERS_M = V::m > 16 && !GROUP ? 2 : 1;
    static constexpr int WORKERS_N = WORKERS / WORKERS_M;
    // What one instruction covers: 16 rows of the weight, four products' 32 or a warpgroup's 64, times eight tokens.
    static constexpr int UNIT_N = int(WARP) / S::LANES_PER_PRODUCT * S::M;
    static constexpr int UNIT_M = S::N;
    static constexpr int UNITS_N = V::n / WORKERS_N / UNIT_N;
    static constexpr int UNITS_M = V::m / WORKERS_M / UNIT_M;
    static_assert(UNITS_N * UNIT_N * WORKERS_N == V::n && UNITS_M * UNIT_M * WORKERS_M == V::m, "warps cover the tile");
    static_assert(!GROUP || UNITS_N == 1, "a warpgroup has one accumulator");

    // A thread's accumulators of a unit.
    static constexpr int WORDS = UNIT_N * UNIT_M / int(WARP) / (GROUP ? 4 : 1);

    // Of the thread's worker: its first row of the weight and its first token in the tile.
    static BURRSTONE_DEVICE unsigned worker() { return warp_index() / (GROUP ? 4 : 1); }
    static BURRSTONE_DEVICE unsigned worker_n() { return worker() % WORKERS_N * (V::n / WORKERS_N); }
    static BURRSTONE_DEVICE unsigned worker_m() { return worker() / WORKERS_N; }

    // The first token of the worker's unit `j`. Workers that share weight rows take units in turns, so that each has
    // part of the tokens in a partial tile.
    static BURRSTONE_DEVICE unsigned unit_m(unsigned j) { return (j * WORKERS_M + worker_m()) * UNIT_M; }
    // How many of its units have tokens, in a tile with `tokens`.
    static BURRSTONE_DEVICE int units_of(uint32_t tokens) {
        return int((tokens + (WORKERS_M - worker_m()) * UNIT_M - 1) / (WORKERS_M * UNIT_M));
    }
    // Whether 8-token units beyond M are skipped: in tall tiles with asynchronous copies.
    static constexpr bool SKIPS = ASYNC && !GROUP && V::m > 32;

    // The weight row and token in the tile of the thread's accumulator `index`.
    static BURRSTONE_DEVICE Element place_of_sum(int index) {
        const int e = index % WORDS, j = index / WORDS % UNITS_M, i = index / WORDS / UNITS_M;
        const int lane = int(lane_index());
        Element at;
        if constexpr (GROUP) {
            at = {int(warp_index()) % 4 * 16 + lane / 4 + e / 2 * 8, lane % 4 * 2 + e % 2};
        } else {
            at = S::d(lane, e);
            // Row r of product q is held by lane 4q + r % 4 + 16 (r / 4), which took the row of its own number.
            if (BY_ROWS) at.row = lane / 4 % 4 * 4 + at.row % 4 + at.row / 4 * 16;
        }
        return {int(worker_n()) + i * UNIT_N + at.row, int(unit_m(j)) + at.column};
    }

    // Elements of k that fragments hold at a time, and the instructions for them.
    static constexpr int DEPTH = BY_ROWS ? VEC8 : 16;
    static constexpr int PARTS = DEPTH / S::K;

    // Barrier of the threads that multiply.
    static BURRSTONE_DEVICE void sync() {
        if constexpr (GROUP) barrier_sync<1>(THREADS);
        else sync_block();
    }

    // 16-byte units that a thread copies per stage: every PASS-th row.
    static constexpr int COPYING = GROUP ? WARPGROUP : V::threads;
    static constexpr int PASS = COPYING / CHUNKS;
    static constexpr int COPIES = (ROWS + PASS - 1) / PASS;
    static_assert(V::n % PASS == 0, "a pass copies rows of one operand");
    // The same of codes and scales.
    static constexpr int CODE_UNITS = CODES / VEC8, UNITS = (CODES + SCALES) / VEC8;
    static constexpr int CODE_COPIES = (UNITS + COPYING - 1) / COPYING;
};

// The tiles of a product, or with clusters of two the pairs of tiles.
template <class V> struct MatmulGrid {
    // 1 along n, or along m, where pairs are neighbours.
    unsigned by_n, by_m;
    unsigned columns, rows;

    BURRSTONE_DEVICE explicit MatmulGrid(const matmul_args &args) {
        const uint32_t pair = MatmulTile<V>::GROUP ? args.pair : 0;
        by_n = pair == BURRSTONE_MATMUL_PAIR_X;
        by_m = pair == BURRSTONE_MATMUL_PAIR_WEIGHT;
        columns = ((args.n + V::n - 1) / V::n + by_n) >> by_n;
        rows = ((args.m + V::m - 1) / V::m + by_m) >> by_m;
    }

    BURRSTONE_DEVICE unsigned size() const { return columns * rows; }
    // Tiles, those beyond the matrix too that complete a pair.
    BURRSTONE_DEVICE unsigned tiles() const { return size() << (by_n | by_m); }
};

// A work item: K slices of a tile.
template <class V> struct MatmulItem {
    unsigned tile;
    // The tile's first token and first row of the weight.
    uint32_t first_m, first_n;
    // Stages of k.
    uint32_t first, end;
    // Of the whole of k.
    uint32_t k_slices;

    // Item `number` of tiles x splits; two consecutive items from an even one on belong to a cluster.
    BURRSTONE_DEVICE MatmulItem(const matmul_args &args, unsigned number) {
        using Tile = MatmulTile<V>;
        const MatmulGrid<V> grid(args);
        const unsigned piece = number >> (grid.by_n | grid.by_m);
        tile = piece % grid.size();

        // Concurrent blocks share rows of x and of the weight in L2: tiles are numbered down bands of eight tiles of x.
        constexpr unsigned BAND = 8;
        const unsigned band = tile / (BAND * grid.columns), inside = tile % (BAND * grid.columns);
        const unsigned height = grid.rows - band * BAND < BAND ? grid.rows - band * BAND : BAND;
        const unsigned tile_m = band * BAND + inside % height, tile_n = inside / height;
        first_m = (tile_m << grid.by_m | (number & grid.by_m)) * V::m;
        first_n = (tile_n << grid.by_n | (number & grid.by_n)) * V::n;

        const uint32_t split = piece / grid.size(), stages = (args.k + Tile::K - 1) / Tile::K;
        k_slices = (stages + Tile::SLICE - 1) / Tile::SLICE;
        first = uint32_t(uint64_t(split) * k_slices / args.splits) * Tile::SLICE;
        const uint32_t behind = uint32_t(uint64_t(split + 1) * k_slices / args.splits) * Tile::SLICE;
        end = behind < stages ? behind : stages;
    }
};

// A thread's accumulators: of all units; a warpgroup's are one array.
template <class V> struct MatmulSums {
    using Tile = MatmulTile<V>;
    static constexpr int COUNT = Tile::UNITS_N * Tile::UNITS_M * Tile::WORDS;
    static constexpr int PIECE = Tile::GROUP ? COUNT : Tile::WORDS;

    float v[COUNT / PIECE][PIECE];

    BURRSTONE_DEVICE float &at(int i) { return v[i / PIECE][i % PIECE]; }
    BURRSTONE_DEVICE void clear() {
        BURRSTONE_UNROLL
        for (int i = 0; i < COUNT; ++i) at(i) = 0.0f;
    }
    BURRSTONE_DEVICE void add(MatmulSums &other) {
        BURRSTONE_UNROLL
        for (int i = 0; i < COUNT; ++i) at(i) += other.at(i);
    }
};

// Position of a row's 16-byte unit in its stage. Units of eight consecutive rows in a column are in different banks.
template <class V> BURRSTONE_DEVICE unsigned matmul_place(unsigned row, unsigned chunk) {
    return row * MatmulTile<V>::K + (chunk ^ row % 8) * VEC8;
}

// A thread's copies of the codes and scales of a stage, in 16-byte units: src/kernels/packed_weight.rs has their layout.
template <class V> struct MatmulCodeCopies {
    using T = typename V::dtype;
    using Tile = MatmulTile<V>;
    // Bytes of a stage's codes of a row, and units of the scales of a group.
    static constexpr uint32_t ROW = Tile::K * V::weight::BITS / 8, SCALE_UNITS = V::n * sizeof(uint32_t) / 16;

    // At the tile's first row.
    device_ptr codes, scales;
    // Of all tiles.
    uint32_t rows;
    uint32_t group_bits;

    BURRSTONE_DEVICE MatmulCodeCopies(const matmul_args &args, const MatmulItem<V> &item)
        : codes(args.weight + uint64_t(item.first_n) * ROW), scales(args.code_scales + uint64_t(item.first_n) * sizeof(uint32_t)),
          rows((args.n + BURRSTONE_MATMUL_CODE_ROWS - 1) / BURRSTONE_MATMUL_CODE_ROWS * BURRSTONE_MATMUL_CODE_ROWS),
          group_bits(args.code_group_bits) {}

    // Groups of a stage, or 1 where a group is several stages.
    BURRSTONE_DEVICE uint32_t groups() const { return group_bits < 6 ? Tile::K >> group_bits : 1; }
    // Addresses of the codes of stage `stage`, and of the scales of its group `group`.
    BURRSTONE_DEVICE device_ptr codes_of(uint32_t stage) const { return codes + uint64_t(stage) * rows * ROW; }
    BURRSTONE_DEVICE device_ptr scales_of(uint32_t stage, uint32_t group) const {
        return scales + uint64_t((stage * Tile::K >> group_bits) + group) * rows * sizeof(uint32_t);
    }

    // Calls f(copy, unit behind the rows of the stage, address) for each copy.
    template <class F> BURRSTONE_DEVICE void each(uint32_t stage, unsigned copier, F f) const {
        BURRSTONE_UNROLL
        for (int i = 0; i < Tile::CODE_COPIES; ++i) {
            const unsigned unit = i * Tile::COPYING + copier;
            if (unit < unsigned(Tile::CODE_UNITS)) {
                f(i, unit, codes_of(stage) + unit * 16);
            } else {
                const unsigned of_scales = unit - Tile::CODE_UNITS, group = of_scales / SCALE_UNITS;
                if (group < groups()) f(i, unit, scales_of(stage, group) + of_scales % SCALE_UNITS * 16);
            }
        }
    }
};

template <class V> struct MatmulNoCopies {
    BURRSTONE_DEVICE MatmulNoCopies(const matmul_args &, const MatmulItem<V> &) {}
    template <class F> BURRSTONE_DEVICE void each(uint32_t, unsigned, F) const {}
};

// A thread's copies from global memory: the same unit of every PASS-th row.
template <class V> struct MatmulCopies {
    using T = typename V::dtype;
    using Tile = MatmulTile<V>;

    // The thread's first row of each operand at its chunk, and the rows that there are from that one on.
    const T *weight, *x;
    int32_t weight_rows, x_rows;
    uint32_t k;
    // Whether all units are whole and aligned; see is_vectorizable.
    bool whole;
    IfCoded<V, MatmulCodeCopies<V>, MatmulNoCopies<V>> codes;

    // What is on its way through registers.
    struct Chunks {
        Vec8<T> rows[Tile::COPIES];
        Vec8<T> codes[Tile::CODE_COPIES > 0 ? Tile::CODE_COPIES : 1];
    };

    BURRSTONE_DEVICE MatmulCopies(const matmul_args &args, const MatmulItem<V> &item) : codes(args, item) {
        k = args.k;
        // Codes come with whole rows only.
        whole = V::weight::BITS > 0 || is_vectorizable<T>(args.x | args.weight, k);
        weight = pointer<const T>(args.weight) + uint64_t(item.first_n + row()) * k;
        x = pointer<const T>(args.x) + uint64_t(item.first_m + row()) * k;
        weight_rows = int32_t(args.n - (item.first_n + row()));
        x_rows = int32_t(args.m - (item.first_m + row()));
    }

    // The last threads of a block copy, or all of them.
    static BURRSTONE_DEVICE unsigned copier() { return thread_index() - (V::threads - Tile::COPYING); }
    static BURRSTONE_DEVICE unsigned row() { return copier() / Tile::CHUNKS; }
    static BURRSTONE_DEVICE unsigned chunk() { return copier() % Tile::CHUNKS; }

    // Calls f(copy, row of the stage, row in memory, whether it exists) for each copy.
    template <class F> BURRSTONE_DEVICE void each(F f) const {
        BURRSTONE_UNROLL
        for (int i = 0; i < Tile::COPIES; ++i) {
            const unsigned row = i * Tile::PASS + this->row();
            if ((i + 1) * Tile::PASS > Tile::ROWS && row >= Tile::ROWS) continue;
            const bool of_weight = i * Tile::PASS < Tile::WEIGHT_ROWS;
            const int ahead = of_weight ? i * Tile::PASS : i * Tile::PASS - Tile::WEIGHT_ROWS;
            f(i, row, (of_weight ? weight : x) + uint64_t(ahead) * k, ahead < (of_weight ? weight_rows : x_rows));
        }
    }

    // Starts copies of the elements from `start` on to the stage at element `to` of `tiles`.
    template <class Tiles> BURRSTONE_DEVICE void start(Tiles &tiles, unsigned to, uint32_t start) const {
        const uint32_t at = start + chunk() * VEC8;
        if (!whole) return copy_ragged(tiles, to, at);
        each([&](int, unsigned row, const T *from, bool there) {
            cp_async<16>(tiles.address(to + matmul_place<V>(row, chunk())), from + at, there && at < k ? 16 : 0);
        });
        codes.each(start / Tile::K, copier(), [&](int, unsigned unit, device_ptr from) {
            cp_async<16>(tiles.address(to + Tile::CODES_AT + unit * VEC8), pointer<const void>(from));
        });
    }

    // The same through registers: data is stored once the warps have finished the stage.
    BURRSTONE_DEVICE void read(Chunks &chunks, uint32_t start) const {
        const uint32_t at = start + chunk() * VEC8;
        if (!whole) return;
        each([&](int i, unsigned, const T *from, bool there) {
            chunks.rows[i] = there && at < k ? burrstone::load(reinterpret_cast<const Vec8<T> *>(from + at)) : Vec8<T>{};
        });
        codes.each(start / Tile::K, copier(), [&](int i, unsigned, device_ptr from) {
            chunks.codes[i] = burrstone::load(pointer<const Vec8<T>>(from));
        });
    }
    template <class Tiles> BURRSTONE_DEVICE void write(Tiles &tiles, unsigned to, uint32_t start, const Chunks &chunks) const {
        if (!whole) return copy_ragged(tiles, to, start + chunk() * VEC8);
        each([&](int i, unsigned row, const T *, bool) {
            tiles.template store_vec<VEC8>(to + matmul_place<V>(row, chunk()), chunks.rows[i]);
        });
        codes.each(start / Tile::K, copier(), [&](int i, unsigned unit, device_ptr) {
            tiles.template store_vec<VEC8>(to + Tile::CODES_AT + unit * VEC8, chunks.codes[i]);
        });
    }

    // Element by element, one unit after another: rare, so it should not take registers.
    template <class Tiles> BURRSTONE_DEVICE void copy_ragged(Tiles &tiles, unsigned to, uint32_t at) const {
        BURRSTONE_ROLLED
        for (int row = this->row(), ahead = 0; row < Tile::ROWS; row += Tile::PASS, ahead += Tile::PASS) {
            const bool of_weight = ahead < Tile::WEIGHT_ROWS;
            const int of_operand = of_weight ? ahead : ahead - Tile::WEIGHT_ROWS;
            const bool there = of_operand < (of_weight ? weight_rows : x_rows);
            const T *from = (of_weight ? weight : x) + uint64_t(of_operand) * k;
            const auto chunk = there && at < k ? load_vec8(from, k, at, false) : Vec8<T>{};
            tiles.template store_vec<VEC8>(to + matmul_place<V>(row, this->chunk()), chunk);
        }
    }
};

} // namespace burrstone

#endif
