// The warps' fragments of a tile, from shared memory, and their products.
#ifndef BURRSTONE_KERNELS_MATMUL_FRAGMENTS_CUH
#define BURRSTONE_KERNELS_MATMUL_FRAGMENTS_CUH

#include "common/ldmatrix.cuh"
#include "kernels/matmul_tile.cuh"

namespace burrstone {

// A worker's fragments of a dense weight.
template <class V> struct MatmulDenseWeight {
    using Tile = MatmulTile<V>;

    BURRSTONE_DEVICE explicit MatmulDenseWeight(const matmul_args &) {}
    template <class Tiles> BURRSTONE_DEVICE void load(const Tiles &, unsigned) {}

    // Of unit `i`, from DEPTH * step on.
    template <class Tiles>
    BURRSTONE_DEVICE vec<uint32_t, 4> fragment(const Tiles &tiles, unsigned stage, int step, int i) const {
        const unsigned first = Tile::worker_n() + i * Tile::UNIT_N, lane = lane_index();
        // Each lane takes its own row: rows of the four products, of which eight are never in one bank.
        if constexpr (Tile::BY_ROWS)
            return bit_cast<vec<uint32_t, 4>>(tiles.template load_vec<VEC8>(stage + matmul_place<V>(first + lane, step)));
        // Rows 0 to 7 and 8 to 15 of the first eight of k, then of the other eight: the order of the words of a.
        else return ldmatrix<4>(tiles.address(stage + matmul_place<V>(first + lane % 16, step * 2 + lane / 16)));
    }
};

// A worker's fragments of a quantized weight. Codes lie in the order of fragments: a lane loads those of a stage at once, 16
// bytes at a time, and dequantizes those of a step.
template <class V> struct MatmulCodedWeight {
    using Tile = MatmulTile<V>;
    using Decoder = MatmulDecoder<typename V::dtype, typename V::weight>;
    static constexpr int STEPS = Tile::K / Tile::DEPTH, WORDS = Decoder::WORDS;
    static constexpr int PIECES = STEPS * WORDS / 4;
    // Rows of a warp's unit of codes, and of those the rows that a lane has codes of.
    static constexpr int UNIT = Tile::BY_ROWS ? int(WARP) : 16, ROWS = Tile::BY_ROWS ? 1 : 2;

    Decoder decoder;
    uint32_t group_bits;
    uint32_t codes[Tile::UNITS_N][STEPS * WORDS];
    typename Decoder::Scale scales[Tile::UNITS_N][ROWS];

    BURRSTONE_DEVICE explicit MatmulCodedWeight(const matmul_args &args) : decoder(args), group_bits(args.code_group_bits) {}

    // The warp's first row of the tile.
    static BURRSTONE_DEVICE unsigned first_row() { return Tile::worker_n() + (Tile::GROUP ? warp_index() % 4 * UNIT : 0); }

    template <class Tiles> BURRSTONE_DEVICE void load(const Tiles &tiles, unsigned stage) {
        const unsigned first = stage + Tile::CODES_AT + (first_row() / UNIT * PIECES * WARP + lane_index()) * VEC8;
        BURRSTONE_UNROLL
        for (int i = 0; i < Tile::UNITS_N; ++i) {
            BURRSTONE_UNROLL
            for (int piece = 0; piece < PIECES; ++piece) {
                const unsigned at = first + (i * PIECES + piece) * WARP * VEC8;
                const auto words = bit_cast<vec<uint32_t, 4>>(tiles.template load_vec<VEC8>(at));
                BURRSTONE_UNROLL
                for (int w = 0; w < 4; ++w) codes[i][piece * 4 + w] = words.v[w];
            }
        }
    }

    template <class Tiles>
    BURRSTONE_DEVICE vec<uint32_t, 4> fragment(const Tiles &tiles, unsigned stage, int step, int i) {
        const uint32_t k = step * Tile::DEPTH;
        if (step == 0 || (k & ((1u << group_bits) - 1)) == 0) {
            BURRSTONE_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const unsigned lane = lane_index(), of_unit = Tile::BY_ROWS ? lane : lane / 4 + r * 8;
                const unsigned row = first_row() + i * UNIT + of_unit;
                const unsigned at = stage + Tile::SCALES_AT + ((k >> group_bits) * V::n + row) * 2;
                scales[i][r] = decoder.scale_of(bit_cast<uint32_t>(tiles.template load_vec<2>(at)));
            }
        }
        uint32_t own[WORDS];
        BURRSTONE_UNROLL
        for (int w = 0; w < WORDS; ++w) own[w] = codes[i][step * WORDS + w];
        return decoder.pairs(own, scales[i]);
    }
};

template <class V> using MatmulWeight = IfCoded<V, MatmulCodedWeight<V>, MatmulDenseWeight<V>>;

// A warp's fragments of DEPTH elements of k.
template <class V> struct MatmulFragments {
    using T = typename V::dtype;
    using Tile = MatmulTile<V>;
    using S = typename V::instruction;

    uint32_t a[Tile::UNITS_N][Tile::PARTS][S::A_WORDS];
    uint32_t b[Tile::UNITS_M][Tile::PARTS][S::B_WORDS];

    // From DEPTH * step on, of the stage at element `stage` of `tiles`; of the first `units` of x.
    template <class Tiles>
    BURRSTONE_DEVICE void load(const Tiles &tiles, unsigned stage, MatmulWeight<V> &weight, int step, int units) {
        const unsigned lane = lane_index();
        BURRSTONE_UNROLL
        for (int i = 0; i < Tile::UNITS_N; ++i) deal(a[i], weight.fragment(tiles, stage, step, i));
        if constexpr (Tile::BY_ROWS) {
            BURRSTONE_UNROLL
            for (int j = 0; j < Tile::UNITS_M; ++j) {
                const unsigned row = Tile::WEIGHT_ROWS + Tile::unit_m(j) + S::b(lane, 0).column;
                deal(b[j], tiles.template load_vec<VEC8>(stage + matmul_place<V>(row, step)));
            }
        } else {
            // Eight tokens with all 16 of k, then those of the next unit.
            BURRSTONE_UNROLL
            for (int j = 0; j < Tile::UNITS_M / 2 * 2; j += 2) {
                if (j >= units) continue;
                const unsigned row = Tile::WEIGHT_ROWS + Tile::unit_m(j + lane / 16) + lane % 8;
                const auto words = ldmatrix<4>(tiles.address(stage + matmul_place<V>(row, step * 2 + lane / 8 % 2)));
                deal(b[j], vec<uint32_t, 2>{words.v[0], words.v[1]});
                deal(b[j + 1], vec<uint32_t, 2>{words.v[2], words.v[3]});
            }
            if constexpr (Tile::UNITS_M % 2 == 1) {
                constexpr int LAST = Tile::UNITS_M - 1;
                const unsigned row = Tile::WEIGHT_ROWS + Tile::unit_m(LAST) + lane % 8;
                deal(b[LAST], ldmatrix<2>(tiles.address(stage + matmul_place<V>(row, step * 2 + lane / 8 % 2))));
            }
        }
    }

    BURRSTONE_DEVICE void multiply(MatmulSums<V> &sums, int units) const {
        BURRSTONE_UNROLL
        for (int p = 0; p < Tile::PARTS; ++p) {
            BURRSTONE_UNROLL
            for (int i = 0; i < Tile::UNITS_N; ++i) {
                BURRSTONE_UNROLL
                for (int j = 0; j < Tile::UNITS_M; ++j)
                    if (j < units) mma<S, T>(sums.v[i * Tile::UNITS_M + j], a[i][p], b[j][p]);
            }
        }
    }

  private:
    template <int WORDS, class From> static BURRSTONE_DEVICE void deal(uint32_t (&to)[Tile::PARTS][WORDS], From from) {
        const auto words = bit_cast<vec<uint32_t, Tile::PARTS * WORDS>>(from);
        BURRSTONE_UNROLL
        for (int p = 0; p < Tile::PARTS; ++p) {
            BURRSTONE_UNROLL
            for (int w = 0; w < WORDS; ++w) to[p][w] = words.v[p * WORDS + w];
        }
    }
};

// Multiplies the stage at element `stage` of `tiles` into the accumulators, with the first `units` of x. Fragments are
// double-buffered where asynchronous copies leave registers for it.
template <class V, class Tiles>
BURRSTONE_DEVICE void multiply_stage(MatmulSums<V> &sums, const Tiles &tiles, unsigned stage, MatmulWeight<V> &weight, int units) {
    using Tile = MatmulTile<V>;
    constexpr int STEPS = Tile::K / Tile::DEPTH, AHEAD = Tile::ASYNC ? 1 : 0;
    MatmulFragments<V> fragments[1 + AHEAD];
    weight.load(tiles, stage);
    if (AHEAD) fragments[0].load(tiles, stage, weight, 0, units);
    BURRSTONE_UNROLL
    for (int step = 0; step < STEPS; ++step) {
        const int next = step + AHEAD;
        if (next < STEPS) fragments[next % (1 + AHEAD)].load(tiles, stage, weight, next, units);
        fragments[step % (1 + AHEAD)].multiply(sums, units);
    }
}

} // namespace burrstone

#endif
