// Attention by warpgroups: Hopper's form (Shah et al., FlashAttention-3, 2024). Both products read the tiles where bulk
// copies have put them. A tile's scores are weighed while the weights of the tile before are multiplied by its values;
// two groups that share the tiles start their products in turn, so that one weighs while the other multiplies.
#ifndef BURRSTONE_KERNELS_ATTENTION_WARPGROUP_CUH
#define BURRSTONE_KERNELS_ATTENTION_WARPGROUP_CUH

#include "kernels/attention_ring.cuh"
#include "kernels/attention_softmax.cuh"

namespace burrstone {

template <class V> struct AttentionGroup {
    // A lane holds of the sums what it holds of m16n8k16's.
    using Fragments = AttentionFragments<m16n8k16, typename V::dtype, typename V::cache>;
    static constexpr int OUT_BLOCKS = V::head_dim / BLOCK_SIDE;

    template <int SHARE, class Args>
    using Softmax = AttentionSoftmax<V, AttentionShared<V, SHARE>, Fragments, OUT_BLOCKS, Args>;
};

template <class V, int SHARE, class Args>
class AttentionWarpgroups : AttentionGroup<V>::template Softmax<SHARE, Args> {
    using Softmax = typename AttentionGroup<V>::template Softmax<SHARE, Args>;
    using typename Softmax::Scores;
    using typename Softmax::Scoring;
    using typename Softmax::T;
    using typename Softmax::Weights;
    using Softmax::args;
    using Softmax::BLOCKS;
    using Softmax::first_row;
    using Softmax::part;
    using Softmax::rows;
    using Softmax::shared;
    using Softmax::state;
    using Softmax::TILE;
    using Memory = AttentionShared<V, SHARE>;
    using Place = typename Memory::Place;
    using Fragments = typename AttentionGroup<V>::Fragments;
    static constexpr int OUT_BLOCKS = AttentionGroup<V>::OUT_BLOCKS, BOXES = Memory::BOXES;
    // Bytes of 16 columns, and of eight rows, of a box.
    static constexpr uint32_t STEP_BYTES = BLOCK_SIDE * sizeof(T), EIGHT_ROWS = 8 * BOX_COLUMNS * sizeof(T);
    static constexpr uint32_t BOX_BYTES = TILE * BOX_COLUMNS * sizeof(T);
    static constexpr int STEPS = BOX_COLUMNS / BLOCK_SIDE;

    const uint32_t group;

    // By way of a shuffle: the compiler sees that lanes do not part where it decides.
    static BURRSTONE_DEVICE uint32_t own_warp() { return shfl(warp_index(), 0); }

    BURRSTONE_DEVICE AttentionWarpgroups(const Args &args, const AttentionPart &part, Memory &shared, uint32_t warp)
        : Softmax(args, part, shared, part.begin + warp * BLOCK_SIDE, 0), group(Memory::GROUPS > 1 ? warp / 4 : 0) {}

  public:
    BURRSTONE_DEVICE AttentionWarpgroups(const Args &args, const AttentionPart &part, Memory &shared)
        : AttentionWarpgroups(args, part, shared, own_warp()) {}

    // What the rows see of positions from..until, of which `from` begins a split; `each` as each_result has it. `place`
    // is where the ring stands.
    template <class Each> BURRSTONE_DEVICE void run(Place &place, uint32_t from, uint32_t until, Each each) {
        BURRSTONE_ROLLED
        for (int o = 0; o < OUT_BLOCKS; ++o) {
            BURRSTONE_UNROLL
            for (int i = 0; i < 8; ++i) this->totals.set(o, i, 0.0f);
        }
        walk(AttentionRange<TILE>(rows, part, from, until), place);
        this->each_result(each);
    }

  private:
    BURRSTONE_DEVICE void walk(const AttentionRange<TILE> &range, Place &place) {
        if (range.begin >= range.end) return;
        load_queries();

        // Of the group: no warp gets on without the others. Rows that are not there see what the last one sees.
        const uint32_t group_row = part.begin + group * Memory::GROUP_ROWS;
        const AttentionExtent extent = rows.extent(group_row, min_of(group_row + Memory::GROUP_ROWS, part.end) - 1);
        const uint32_t last_row = min_of(first_row + BLOCK_SIDE, part.end) - 1;
        const Scoring scoring(args, rows, shared, first_row, last_row);

        // Tiles that the group sees lie beside each other.
        uint32_t base = range.begin;
        if (Memory::GROUPS > 1) skip(base, min_of(extent.some_from / TILE * TILE, range.end), range, place);
        // One group sees all that the block walks.
        const uint32_t first = base, end = Memory::GROUPS > 1 ? min_of(range.end, extent.some_to) : range.end;
        if (first < end) {
            // Of the tile before. Before the first there is none: then they are zeros.
            Weights weights[BLOCKS] = {};
            Place values = place;
            bool zeros = true;
            BURRSTONE_ROLLED
            for (; base < end; base += TILE) {
                const Place keys = place;
                place.advance();
                shared.wait_full(keys);
                begin_turn(base, range);
                // Without values: writing any would have the compiler wait for the products under way.
                Scores scores;
                start_scores(scores, keys);
                start_sums(weights, values, zeros);
                end_turn();
                wgmma_wait<1>(flat(scores));
                shared.release(keys);
                if (base > first && base % KV_SPLIT == 0) {
                    wgmma_wait<0>(flat(state.out));
                    this->end_split();
                }

                // While the products with the values run.
                scoring.finish(scores, base);
                if (!extent.has_all(base, base + TILE)) {
                    // Tiles like this are few; masks take the registers that the weights under way have.
                    wgmma_wait<0>(flat(state.out));
                    scoring.hide(scores, base);
                }
                float decay[2];
                this->raise_maxima(scores, decay);
                Weights next[BLOCKS];
                BURRSTONE_UNROLL
                for (int b = 0; b < BLOCKS; ++b) this->weigh(b, scores[b], next[b]);
                wgmma_wait<0>(flat(state.out));
                if (base > first) shared.release(values);
                this->decay_out(decay);
                values = place;
                place.advance();
                shared.wait_full(values);
                // Values that were loaded, but that some row does not see, may be infinite.
                const auto load_values = [&](int b, int o, uint32_t (&words)[Fragments::VALUE_WORDS]) {
                    Fragments::load_values(shared.tiles[values.at][o / STEPS], b * BLOCK_SIDE, o % STEPS, words);
                };
                const bool clean = extent.has_all(max_of(base, range.low), min_of(base + TILE, range.high));
                zeros = !clean && group_finds(load_values);
                if (zeros) this->add_by_rows(next, base, last_row, load_values);
                BURRSTONE_UNROLL
                for (int b = 0; b < BLOCKS; ++b) {
                    BURRSTONE_UNROLL
                    for (int w = 0; w < Fragments::WEIGHT_WORDS; ++w) weights[b][w] = zeros ? 0 : next[b][w];
                }
            }
            start_sums(weights, values, zeros);
            wgmma_wait<0>(flat(state.out));
            shared.release(values);
            this->end_split();
        }
        if (Memory::GROUPS > 1) skip(base, range.end, range, place);
        // The second group gives a turn after its last tile too. Taken here, both barriers are as the walk found them: a block
        // may walk again.
        if (Memory::GROUPS > 1 && group == 0) Memory::wait_turn(group);
    }

    // Tiles that no row of the group sees.
    BURRSTONE_DEVICE void skip(uint32_t &base, uint32_t end, const AttentionRange<TILE> &range, Place &place) const {
        BURRSTONE_ROLLED
        for (; base < end; base += TILE) {
            BURRSTONE_UNROLL
            for (int plane = 0; plane < 2; ++plane, place.advance()) {
                shared.wait_full(place);
                shared.release(place);
            }
            begin_turn(base, range);
            end_turn();
        }
    }

    // The group's turn of a tile; tiles that it skips have a turn as well. The first group does not wait for the first turn
    // of a walk.
    BURRSTONE_DEVICE void begin_turn(uint32_t base, const AttentionRange<TILE> &range) const {
        if (Memory::GROUPS > 1 && (group > 0 || base > range.begin)) Memory::wait_turn(group);
    }
    BURRSTONE_DEVICE void end_turn() const {
        if (Memory::GROUPS > 1) Memory::give_turn(group);
    }

    // The group's rows, zeros for those that are not there and for columns beyond the head.
    BURRSTONE_DEVICE void load_queries() {
        using Box = typename Memory::template Box<Memory::GROUP_ROWS>;
        constexpr uint32_t PIECE = Box::PIECE, PIECES = V::head_dim / PIECE;
        const bool aligned = args.head_dim % PIECE == 0 && args.query % 16 == 0;
        // The products with the queries before are done.
        Memory::sync_group();
        BURRSTONE_ROLLED
        for (uint32_t i = thread_index() % WARPGROUP; i < Memory::GROUP_ROWS * PIECES; i += WARPGROUP) {
            const uint32_t own = i / PIECES, column = i % PIECES * PIECE;
            const uint32_t row = part.begin + group * Memory::GROUP_ROWS + own;
            vec<T, PIECE> piece = {};
            if (row < part.end && column < args.head_dim) {
                const T *from = pointer<const T>(args.query) + rows.place(row) + column;
                if (aligned) {
                    piece = load(reinterpret_cast<const vec<T, PIECE> *>(from));
                } else {
                    BURRSTONE_UNROLL
                    for (uint32_t e = 0; e < PIECE; ++e)
                        if (column + e < args.head_dim) piece.v[e] = load(from + e);
                }
            }
            auto &box = shared.query[group][column / BOX_COLUMNS];
            box.data.template store_vec<int(PIECE)>(Box::index(own, column % BOX_COLUMNS), piece);
        }
        fence_async();
        Memory::sync_group();
    }

    // An accumulator as the instruction names its registers.
    template <int COUNT> static BURRSTONE_DEVICE float (&flat(float (&blocks)[COUNT][8]))[COUNT * 8] {
        return reinterpret_cast<float(&)[COUNT * 8]>(blocks);
    }

    // Queries times keys.
    BURRSTONE_DEVICE void start_scores(Scores &scores, const Place &keys) const {
        const auto rows_at = [](uint32_t start) {
            return matrix_descriptor(start, 0, EIGHT_ROWS, MatrixSwizzle::BYTES_128);
        };
        wgmma_fence();
        BURRSTONE_UNROLL
        for (int box = 0; box < BOXES; ++box) {
            const uint64_t query = rows_at(shared.query[group][box].data.address(0));
            const uint64_t key = rows_at(shared.tiles[keys.at][box].data.address(0));
            BURRSTONE_UNROLL
            for (int step = 0; step < STEPS; ++step) {
                const uint32_t at = step * STEP_BYTES >> 4;
                wgmma<int(TILE), T>(flat(scores), query + at, key + at, box + step > 0);
            }
        }
        wgmma_commit();
    }

    // Adds weights times values, or times zeros: products that are started in some turns of a loop and not in others
    // the compiler would wait for at once.
    BURRSTONE_DEVICE void start_sums(const Weights (&weights)[BLOCKS], const Place &values, bool zeros) {
        const uint32_t start = zeros ? shared.zeros.data.address(0) : shared.tiles[values.at][0].data.address(0);
        const uint32_t leading = zeros ? 0 : BOX_BYTES, stride = zeros ? 0 : EIGHT_ROWS;
        const uint64_t first = matrix_descriptor(start, leading, stride, MatrixSwizzle::BYTES_128);
        const uint32_t next = 2 * stride >> 4;
        wgmma_fence();
        BURRSTONE_UNROLL
        for (int b = 0; b < BLOCKS; ++b) {
            wgmma<V::head_dim, T, true>(flat(state.out), weights[b], first + b * next, true);
        }
        wgmma_commit();
    }

    // Whether the values of a tile have one that is not finite: each warp looks at 16 keys.
    template <class Load> BURRSTONE_DEVICE bool group_finds(Load load) {
        static_assert(BLOCKS == 4, "a block for each warp");
        const uint32_t own = own_warp() % 4;
        const bool found = any(this->not_finite(own, own + 1, load));
        if (lane_index() == 0) shared.found.store(group * 4 + own, found);
        Memory::sync_group();
        bool some = false;
        BURRSTONE_UNROLL
        for (int warp = 0; warp < 4; ++warp) some = some || shared.found.load(group * 4 + warp) != 0;
        Memory::sync_group();
        return any(some);
    }
};

// What a variant's instruction asks for.
template <class V, int SHARE, class Args, bool GROUP = BY_WARPGROUP<typename V::instruction>> struct AttentionCore;
template <class V, int SHARE, class Args> struct AttentionCore<V, SHARE, Args, false> {
    using Block = AttentionWarps<V, SHARE, Args>;
};
template <class V, int SHARE, class Args> struct AttentionCore<V, SHARE, Args, true> {
    using Block = AttentionWarpgroups<V, SHARE, Args>;
};
template <class V, int SHARE, class Args> using AttentionBlock = typename AttentionCore<V, SHARE, Args>::Block;

} // namespace burrstone

#endif
