// Softmax attention over the paged cache on tensor cores, shared by decode and prefill: a query gets the same bits from
// both.
//
// A row is one query of one head; the heads of a group share keys and values. 16 rows are a row tile: the products'
// short side (Dao, FlashAttention-2, 2023). Keys are walked in tiles at absolute positions, with the online softmax of
// Milakov and Gimelshein (2018); every KV_SPLIT positions the state is restarted, and the states are merged in
// ascending order. A row's result depends only on its own sequence: masked keys have weight zero, which changes no bit
// of its sums; for values that are not finite, where that fails, rows are multiplied one by one.
#ifndef BURRSTONE_KERNELS_ATTENTION_TILE_CUH
#define BURRSTONE_KERNELS_ATTENTION_TILE_CUH

#include "kernels/attention_softmax.cuh"

namespace burrstone {

// A warp's share of the block's rows and columns, derived from the variant.
template <class V, int SHARE> struct AttentionWarp {
    using Memory = AttentionShared<V, SHARE>;
    using Fragments = AttentionFragments<typename V::instruction, typename V::dtype, typename V::cache>;
    // Blocks of columns in the second product.
    static constexpr int OUT_BLOCKS = V::head_dim / BLOCK_SIDE / SHARE;

    template <class Args> using Softmax = AttentionSoftmax<V, Memory, Fragments, OUT_BLOCKS, Args>;
};

// The mma form: each warp multiplies on its own.
template <class V, int SHARE, class Args>
class AttentionWarps : AttentionWarp<V, SHARE>::template Softmax<Args> {
    using Softmax = typename AttentionWarp<V, SHARE>::template Softmax<Args>;
    using typename Softmax::KV;
    using typename Softmax::Scores;
    using typename Softmax::Scoring;
    using typename Softmax::T;
    using typename Softmax::Weights;
    using Softmax::args;
    using Softmax::BLOCKS;
    using Softmax::first_out;
    using Softmax::first_row;
    using Softmax::part;
    using Softmax::rows;
    using Softmax::shared;
    using Softmax::state;
    using Softmax::TILE;
    using Memory = AttentionShared<V, SHARE>;
    using Fragments = typename AttentionWarp<V, SHARE>::Fragments;
    using Cache = AttentionCache<V, Memory::TILE, Args>;

    // Blocks of a warp in the first product, of all its warps' in the softmax, and of columns in the second.
    static constexpr int OWN_BLOCKS = BLOCKS < SHARE ? 1 : BLOCKS / SHARE;
    static constexpr int OUT_BLOCKS = AttentionWarp<V, SHARE>::OUT_BLOCKS;
    static constexpr int STEPS = V::head_dim / BLOCK_SIDE;
    // The query stays in registers if they suffice for it and both sums of the output.
    static constexpr int QUERY_REGISTERS = STEPS * Fragments::QUERY_WORDS, SUM_REGISTERS = 2 * 8 * OUT_BLOCKS;
    static constexpr bool KEEP_QUERY = QUERY_REGISTERS <= 32 && QUERY_REGISTERS + SUM_REGISTERS <= 96;

    // The warp's row tile, and its index among the warps that share it.
    const uint32_t row_tile;
    const uint32_t share;
    uint32_t query[KEEP_QUERY ? STEPS : 1][Fragments::QUERY_WORDS];

  public:
    BURRSTONE_DEVICE AttentionWarps(const Args &args, const AttentionPart &part, Memory &shared)
        : Softmax(args, part, shared, part.begin + warp_index() / SHARE * BLOCK_SIDE,
                  warp_index() % SHARE * OUT_BLOCKS),
          row_tile(warp_index() / SHARE), share(warp_index() % SHARE) {}

    // Walks positions from..until, where `from` starts a split; `each` as in each_result.
    template <class Each>
    BURRSTONE_DEVICE void run(typename Memory::Place &, uint32_t from, uint32_t until, Each each) {
        walk(AttentionRange<TILE>(rows, part, from, until));
        this->each_result(each);
    }

  private:
    BURRSTONE_DEVICE void walk(const AttentionRange<TILE> &range) {
        const uint32_t begin = range.begin, end = range.end;
        if (begin >= end) return;

        // Padding rows see what the last row sees.
        const uint32_t last_row = min_of(first_row + BLOCK_SIDE, part.end) - 1;
        const AttentionExtent extent = rows.extent(first_row, last_row);
        const Scoring scoring(args, rows, shared, first_row, last_row);

        const Cache cache(args, part.span.pages, part.kv_head, range.low, range.high);
        load_queries();
        // Buffers alternate by tile position.
        store_entry(begin / TILE % 2, cache.entry(begin));
        uint32_t next_entry = cache.entry(begin + TILE);
        sync_block();
        cache.load_tile(args.keys, shared.entries[begin / TILE % 2], shared.keys);
        cache.commit();
        keep_query();
        for (uint32_t base = begin; base < end; base += TILE) {
            const uint32_t turn = base / TILE % 2;
            const bool sees = extent.some_from < base + TILE && base < extent.some_to;
            cache.wait();
            sync_block();
            // The keys have arrived, and all warps have finished the values of the previous tile.
            cache.load_tile(args.values, shared.entries[turn], shared.values);
            cache.commit();
            const Scales scales = load_scales(shared.entries[turn]);
            store_entry(turn ^ 1, next_entry);
            next_entry = cache.entry(base + 2 * TILE);
            Scores scores;
            if (sees) first_product(scores);
            store_scales(scales);
            cache.wait();
            sync_block();
            // The values have arrived, and all warps have finished the keys.
            if (base + TILE < end) cache.load_tile(args.keys, shared.entries[turn ^ 1], shared.keys);
            cache.commit();
            if (sees) {
                if constexpr (SHARE > 1) collect_scores(scores);
                scoring.finish(scores, base);
                if (!extent.has_all(base, base + TILE)) scoring.hide(scores, base);
                float decay[2];
                this->raise_maxima(scores, decay);
                this->decay_out(decay);
                // Loaded values that are masked for some row may be infinite.
                const bool clean = extent.has_all(max_of(base, range.low), min_of(base + TILE, range.high));
                Weights weights[BLOCKS];
                BURRSTONE_UNROLL
                for (int b = 0; b < BLOCKS; ++b) this->weigh(b, scores[b], weights[b]);
                const auto load_values = [&](int b, int o, uint32_t (&words)[Fragments::VALUE_WORDS]) {
                    Fragments::load_values(shared.values, b * BLOCK_SIDE, first_out + o, words);
                };
                if (!clean && any(this->not_finite(0, BLOCKS, load_values)))
                    this->add_by_rows(weights, base, last_row, load_values);
                else
                    second_product(weights);
            }
            if ((base + TILE) % KV_SPLIT == 0 || base + TILE >= end) this->end_split();
        }
    }

    // Loads the block's rows, with zeros for padding rows and columns beyond the head.
    BURRSTONE_DEVICE void load_queries() {
        constexpr uint32_t PAIRS = V::head_dim / 2;
        const bool aligned = args.head_dim % 2 == 0 && args.query % 4 == 0;
        BURRSTONE_ROLLED
        for (uint32_t i = thread_index(); i < Memory::ROWS * PAIRS; i += V::threads) {
            const uint32_t row = i / PAIRS, pair = i % PAIRS, column = 2 * pair;
            vec<T, 2> loaded = {};
            if (part.begin + row < part.end && column < args.head_dim) {
                const T *from = pointer<const T>(args.query) + rows.place(part.begin + row) + column;
                if (aligned) {
                    loaded = load(reinterpret_cast<const vec<T, 2> *>(from));
                } else {
                    loaded.v[0] = load(from);
                    if (column + 1 < args.head_dim) loaded.v[1] = load(from + 1);
                }
            }
            shared.query.data.template store_vec<2>(shared.query.index(row, 2 * Fragments::query_pair(pair)), loaded);
        }
    }

    BURRSTONE_DEVICE void keep_query() {
        if constexpr (KEEP_QUERY) {
            BURRSTONE_UNROLL
            for (int step = 0; step < STEPS; ++step)
                Fragments::load_query(shared.query, row_tile * BLOCK_SIDE, step, query[step]);
        }
    }

    BURRSTONE_DEVICE void store_entry(uint32_t turn, uint32_t entry) {
        if (thread_index() < TILE) shared.entries[turn].store(thread_index(), entry);
    }

    // The scales of this thread's position of a tile.
    struct Scales {
        float key = 0.0f;
        float value = 0.0f;
    };
    BURRSTONE_DEVICE Scales load_scales(const Shared<uint32_t, int(TILE)> &entries) const {
        Scales scales;
        if constexpr (HAS_SCALES<KV>) {
            const uint32_t entry = thread_index() < TILE ? entries.load(thread_index()) : NO_ENTRY;
            if (entry != NO_ENTRY) {
                scales.key = load(pointer<const float>(args.key_scales) + entry);
                scales.value = load(pointer<const float>(args.value_scales) + entry);
            }
        }
        return scales;
    }
    BURRSTONE_DEVICE void store_scales(const Scales &scales) {
        if constexpr (HAS_SCALES<KV>) {
            if (thread_index() < TILE) {
                shared.key_scales.store(thread_index(), scales.key);
                shared.value_scales.store(thread_index(), scales.value);
                shared.value_logs.store(thread_index(), log2_fast(scales.value));
            }
        }
    }

    // Queries times keys: this warp's blocks, or all if no other warp shares the row tile.
    BURRSTONE_DEVICE void first_product(Scores &all) {
        float own[OWN_BLOCKS][8] = {};
        const uint32_t first = share * OWN_BLOCKS;
        if (SHARE > BLOCKS && first >= BLOCKS) return;
        if constexpr (KEEP_QUERY) {
            BURRSTONE_UNROLL
            for (int step = 0; step < STEPS; step += Fragments::STEPS) add_step(step, own);
        } else {
            // Queries come from shared memory: unrolling further would only take registers.
            BURRSTONE_ROLLED
            for (int step = 0; step < STEPS; step += 4) {
                BURRSTONE_UNROLL
                for (int s = 0; s < 4; s += Fragments::STEPS) add_step(step + s, own);
            }
        }
        BURRSTONE_UNROLL
        for (int b = 0; b < OWN_BLOCKS; ++b) {
            if constexpr (SHARE == 1) {
                BURRSTONE_UNROLL
                for (int i = 0; i < 8; ++i) all[b][i] = own[b][i];
            } else {
                BURRSTONE_UNROLL
                for (int h = 0; h < 2; ++h)
                    shared.scores.template store_vec<4>(scores_at(first + b, h),
                                                        {{own[b][4 * h], own[b][4 * h + 1], own[b][4 * h + 2],
                                                            own[b][4 * h + 3]}});
            }
        }
    }
    // 16 columns of this warp's blocks, or 32.
    BURRSTONE_DEVICE void add_step(int step, float (&own)[OWN_BLOCKS][8]) const {
        uint32_t words[Fragments::STEPS][Fragments::QUERY_WORDS];
        BURRSTONE_UNROLL
        for (int s = 0; s < Fragments::STEPS; ++s) {
            if constexpr (KEEP_QUERY) {
                BURRSTONE_UNROLL
                for (int w = 0; w < Fragments::QUERY_WORDS; ++w) words[s][w] = query[step + s][w];
            } else {
                Fragments::load_query(shared.query, row_tile * BLOCK_SIDE, step + s, words[s]);
            }
        }
        BURRSTONE_UNROLL
        for (int b = 0; b < OWN_BLOCKS; ++b)
            Fragments::add_scores(words, shared.keys, (share * OWN_BLOCKS + b) * BLOCK_SIDE, step, own[b]);
    }
    BURRSTONE_DEVICE uint32_t scores_at(uint32_t block, int h) const {
        return (((row_tile * BLOCKS + block) * 2 + h) * WARP + lane_index()) * 4;
    }
    BURRSTONE_DEVICE void collect_scores(Scores &all) const {
        BURRSTONE_UNROLL
        for (int b = 0; b < BLOCKS; ++b) {
            BURRSTONE_UNROLL
            for (int h = 0; h < 2; ++h) {
                const auto four = shared.scores.template load_vec<4>(scores_at(b, h));
                BURRSTONE_UNROLL
                for (int i = 0; i < 4; ++i) all[b][4 * h + i] = four.v[i];
            }
        }
    }

    // Weights of all keys times this warp's columns of their values.
    BURRSTONE_DEVICE void second_product(const Weights (&weights)[BLOCKS]) {
        BURRSTONE_UNROLL
        for (int b = 0; b < BLOCKS; ++b) {
            BURRSTONE_UNROLL
            for (int o = 0; o < OUT_BLOCKS; ++o) {
                uint32_t values[Fragments::VALUE_WORDS];
                Fragments::load_values(shared.values, b * BLOCK_SIDE, first_out + o, values);
                Fragments::add_values(weights[b], values, state.out[o]);
            }
        }
    }

};

} // namespace burrstone

#endif
