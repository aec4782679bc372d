// Softmax attention over the paged cache on tensor cores, as decode and prefill both do it: a query gets the same bits
// from either.
//
// A row is one query of one head; the heads of a group share keys and values. 16 rows are a row tile: the products'
// short side (Dao, FlashAttention-2, 2023). Keys are walked in tiles at absolute positions, with the online softmax of
// Milakov and Gimelshein (2018); every KV_SPLIT positions the state starts afresh, and the states are merged in
// ascending order. A row's result depends on its own sequence alone: what a row does not see has weight zero, which
// changes no bit of its sums; and where that would not be so, for values that are not finite, rows are multiplied one
// by one.
#ifndef BURRSTONE_KERNELS_ATTENTION_TILE_CUH
#define BURRSTONE_KERNELS_ATTENTION_TILE_CUH

#include "kernels/attention_scores.cuh"

namespace burrstone {

template <class V, int SHARE, class Args> class AttentionBlock {
    using T = typename V::dtype;
    using KV = typename V::cache;
    using Memory = AttentionShared<V, SHARE>;
    using Fragments = AttentionFragments<typename V::instruction, T, KV>;
    using Cache = AttentionCache<V, Memory::TILE, Args>;

    static constexpr uint32_t TILE = Memory::TILE;
    static constexpr int BLOCKS = Memory::BLOCKS;
    // Blocks of a warp in the first product, of all its warps' in the softmax, and of columns in the second.
    static constexpr int OWN_BLOCKS = BLOCKS < SHARE ? 1 : BLOCKS / SHARE;
    static constexpr int OUT_BLOCKS = V::head_dim / BLOCK_SIDE / SHARE;
    static constexpr int STEPS = V::head_dim / BLOCK_SIDE;
    // The query stays in registers where they last for it and both sums of the output.
    static constexpr int QUERY_REGISTERS = STEPS * Fragments::QUERY_WORDS, SUM_REGISTERS = 2 * 8 * OUT_BLOCKS;
    static constexpr bool KEEP_QUERY = QUERY_REGISTERS <= 32 && QUERY_REGISTERS + SUM_REGISTERS <= 96;

    using Scores = float[BLOCKS][8];
    using Scoring = AttentionScoring<V, Memory, Fragments, Args>;
    using Weights = uint32_t[Fragments::WEIGHT_WORDS];

    // A lane's part of two rows. The sum is of the lane's keys until the split ends.
    struct State {
        AttentionSum sums[2] = {{LOWEST_SCORE, 0.0f}, {LOWEST_SCORE, 0.0f}};
        float out[OUT_BLOCKS][8] = {};
    };

    const Args &args;
    const AttentionPart &part;
    Memory &shared;
    const AttentionRows<Args> rows;
    // Of this warp: its row tile, and which of the warps that share it.
    const uint32_t row_tile;
    const uint32_t share;
    const uint32_t first_row;
    uint32_t query[KEEP_QUERY ? STEPS : 1][Fragments::QUERY_WORDS];
    State state;
    State total;

  public:
    BURRSTONE_DEVICE AttentionBlock(const Args &args, const AttentionPart &part, Memory &shared)
        : args(args), part(part), shared(shared), rows(args, part.span, part.kv_head), row_tile(warp_index() / SHARE),
          share(warp_index() % SHARE), first_row(part.begin + row_tile * BLOCK_SIDE) {}

    // What the rows see of positions from..until, of which `from` begins a split. Then calls `each` with row, column,
    // the row's sums and the elements of this column and the next, for all rows and columns.
    template <class Each> BURRSTONE_DEVICE void run(uint32_t from, uint32_t until, Each each) {
        walk(from, until);
        BURRSTONE_UNROLL
        for (int half = 0; half < 2; ++half) {
            const uint32_t row = first_row + Fragments::row(half);
            if (row >= part.end) continue;
            BURRSTONE_UNROLL
            for (int o = 0; o < OUT_BLOCKS; ++o) {
                BURRSTONE_UNROLL
                for (int pair = 0; pair < 2; ++pair) {
                    const float out[2] = {total.out[o][Fragments::element(pair, half, 0)],
                                          total.out[o][Fragments::element(pair, half, 1)]};
                    each(row, (share * OUT_BLOCKS + o) * BLOCK_SIDE + Fragments::column(pair), total.sums[half], out);
                }
            }
        }
    }

  private:
    static BURRSTONE_DEVICE uint32_t min_of(uint32_t a, uint32_t b) { return a < b ? a : b; }
    static BURRSTONE_DEVICE uint32_t max_of(uint32_t a, uint32_t b) { return a < b ? b : a; }

    BURRSTONE_DEVICE void walk(uint32_t from, uint32_t until) {
        const uint32_t low = rows.bounds(part.begin).least_from;
        const uint32_t high = min_of(rows.bounds(part.end - 1).most_to, part.span.kv_len);
        const uint32_t begin = max_of(from, low / TILE * TILE), end = min_of(until, high);
        if (begin >= end) return;

        // What the row tile sees: nothing where it has no rows. Rows that are not there see what the last one sees.
        const uint32_t last_row = min_of(first_row + BLOCK_SIDE, part.end) - 1;
        const AttentionBounds top = rows.bounds(min_of(first_row, last_row)), bottom = rows.bounds(last_row);
        const uint32_t some_from = top.least_from, some_to = first_row < part.end ? bottom.most_to : 0;
        const uint32_t all_from = bottom.most_from, all_to = top.least_to;
        const Scoring scoring(args, rows, shared, first_row, last_row);

        const Cache cache(args, part.span.pages, part.kv_head, low, high);
        load_queries();
        // Tiles take turns by their positions.
        store_entry(begin / TILE % 2, cache.entry(begin));
        uint32_t next_entry = cache.entry(begin + TILE);
        sync_block();
        cache.load_tile(args.keys, shared.entries[begin / TILE % 2], shared.keys);
        cache.commit();
        keep_query();
        for (uint32_t base = begin; base < end; base += TILE) {
            const uint32_t turn = base / TILE % 2;
            const bool sees = some_from < base + TILE && base < some_to;
            cache.wait();
            sync_block();
            // The keys are here, and nobody needs the values of the tile before.
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
            // The values are here, and nobody needs the keys.
            if (base + TILE < end) cache.load_tile(args.keys, shared.entries[turn ^ 1], shared.keys);
            cache.commit();
            if (sees) {
                if constexpr (SHARE > 1) collect_scores(scores);
                scoring.finish(scores, base);
                if (base < all_from || all_to < base + TILE) scoring.hide(scores, base);
                raise_maxima(scores);
                // Values that were loaded, but that some row does not see, may be infinite.
                const bool clean = all_from <= max_of(base, low) && min_of(base + TILE, high) <= all_to;
                Weights weights[BLOCKS];
                BURRSTONE_UNROLL
                for (int b = 0; b < BLOCKS; ++b) weigh(b, scores[b], weights[b]);
                if (!clean && any(values_not_finite()))
                    second_product_by_rows(weights, base, last_row);
                else
                    second_product(weights);
            }
            if ((base + TILE) % KV_SPLIT == 0 || base + TILE >= end) end_split();
        }
    }

    // Merges the state into the total and begins a new one. The first split's sums come out as they are.
    BURRSTONE_DEVICE void end_split() {
        BURRSTONE_UNROLL
        for (int half = 0; half < 2; ++half) {
            AttentionSum &sums = state.sums[half];
            BURRSTONE_UNROLL
            for (int i = 0; i < 2; ++i) sums.sum += shfl_xor(sums.sum, Fragments::row_peer(i));
            const AttentionMerge merge(total.sums[half], sums);
            BURRSTONE_UNROLL
            for (int o = 0; o < OUT_BLOCKS; ++o) {
                BURRSTONE_UNROLL
                for (int i = 0; i < 8; ++i)
                    if (i / 2 % 2 == half) total.out[o][i] = merge(total.out[o][i], state.out[o][i]);
            }
        }
        state = State{};
    }

    // The block's rows, zeros for those that are not there and for columns beyond the head.
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

    // Queries times keys: this warp's blocks, or all where it has the row tile to itself.
    BURRSTONE_DEVICE void first_product(Scores &all) {
        float own[OWN_BLOCKS][8] = {};
        const uint32_t first = share * OWN_BLOCKS;
        if (SHARE > BLOCKS && first >= BLOCKS) return;
        if constexpr (KEEP_QUERY) {
            BURRSTONE_UNROLL
            for (int step = 0; step < STEPS; step += Fragments::STEPS) add_step(step, own);
        } else {
            // Queries come from shared memory: more steps at a time would only take registers.
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

    // Brings the state up to the tile's scores.
    BURRSTONE_DEVICE void raise_maxima(const Scores &scores) {
        float decay[2];
        BURRSTONE_UNROLL
        for (int half = 0; half < 2; ++half) {
            float &before = state.sums[half].max, max = before;
            BURRSTONE_UNROLL
            for (int b = 0; b < BLOCKS; ++b) {
                BURRSTONE_UNROLL
                for (int i = 0; i < 8; ++i) {
                    if (i / 2 % 2 != half) continue;
                    float score = scores[b][i];
                    // Where each value has a scale, it is weights times scales that are at most 1: they are what is
                    // rounded.
                    if constexpr (HAS_SCALES<KV>) score += shared.value_logs.load(b * BLOCK_SIDE + Fragments::key(i));
                    max = max_(max, score);
                }
            }
            BURRSTONE_UNROLL
            for (int i = 0; i < 2; ++i) max = max_(max, shfl_xor(max, Fragments::row_peer(i)));
            decay[half] = exp2_fast(before - max);
            before = max;
        }
        // A factor of one changes nothing, and maxima change seldom.
        if (any(decay[0] != 1.0f || decay[1] != 1.0f)) {
            BURRSTONE_UNROLL
            for (int half = 0; half < 2; ++half) state.sums[half].sum = mul_(state.sums[half].sum, decay[half]);
            BURRSTONE_UNROLL
            for (int b = 0; b < OUT_BLOCKS; ++b) {
                BURRSTONE_UNROLL
                for (int i = 0; i < 8; ++i) state.out[b][i] = mul_(state.out[b][i], decay[i / 2 % 2]);
            }
        }
    }

    // Weights of a block's scores, which are added to the sums.
    BURRSTONE_DEVICE void weigh(int b, const float (&scores)[8], Weights &words) {
        float weights[8];
        BURRSTONE_UNROLL
        for (int i = 0; i < 8; ++i) {
            AttentionSum &sums = state.sums[i / 2 % 2];
            weights[i] = exp2_fast(scores[i] - sums.max);
            sums.sum += weights[i];
            if constexpr (HAS_SCALES<KV>) {
                const float scale = shared.value_scales.load(b * BLOCK_SIDE + Fragments::key(i));
                weights[i] = weights[i] > 0.0f ? mul_(weights[i], scale) : weights[i];
            }
        }
        Fragments::pack_weights(weights, words);
    }

    // Weights of all keys times this warp's columns of their values.
    BURRSTONE_DEVICE void second_product(const Weights (&weights)[BLOCKS]) {
        BURRSTONE_UNROLL
        for (int b = 0; b < BLOCKS; ++b) {
            BURRSTONE_UNROLL
            for (int o = 0; o < OUT_BLOCKS; ++o) {
                uint32_t values[Fragments::VALUE_WORDS];
                Fragments::load_values(shared.values, b * BLOCK_SIDE, share * OUT_BLOCKS + o, values);
                Fragments::add_values(weights[b], values, state.out[o]);
            }
        }
    }

    BURRSTONE_DEVICE bool values_not_finite() const {
        bool found = false;
        BURRSTONE_ROLLED
        for (uint32_t b = 0; b < BLOCKS; ++b) {
            BURRSTONE_ROLLED
            for (uint32_t o = 0; o < OUT_BLOCKS; ++o) {
                uint32_t values[Fragments::VALUE_WORDS];
                Fragments::load_values(shared.values, b * BLOCK_SIDE, share * OUT_BLOCKS + o, values);
                BURRSTONE_UNROLL
                for (const uint32_t word : values) found = found || detail::not_finite<T>(word);
            }
        }
        return found;
    }

    // The same sums, each row with the values that it sees alone: for a weight of zero does not hide an infinite one.
    BURRSTONE_DEVICE void second_product_by_rows(const Weights (&weights)[BLOCKS], uint32_t base, uint32_t last_row) {
        // Of four blocks one body costs fewer registers, of two it would cost Volta more.
        BURRSTONE_UNROLL_BY(BLOCKS > 2 ? 1 : BLOCKS)
        for (int b = 0; b < BLOCKS; ++b) {
            Weights own = {};
            BURRSTONE_UNROLL
            for (int other = 0; other < BLOCKS; ++other) {
                BURRSTONE_UNROLL
                for (int w = 0; w < Fragments::WEIGHT_WORDS; ++w) own[w] = other == b ? weights[other][w] : own[w];
            }
            BURRSTONE_ROLLED
            for (uint32_t r = 0; r < BLOCK_SIDE && first_row + r <= last_row; ++r) {
                const uint32_t seen = rows.seen(rows.sight(first_row + r), base + b * BLOCK_SIDE);
                BURRSTONE_UNROLL
                for (int o = 0; o < OUT_BLOCKS; ++o) {
                    uint32_t values[Fragments::VALUE_WORDS];
                    Fragments::load_values(shared.values, b * BLOCK_SIDE, share * OUT_BLOCKS + o, values);
                    Fragments::clear_values(values, seen);
                    float out[8];
                    BURRSTONE_UNROLL
                    for (int i = 0; i < 8; ++i) out[i] = state.out[o][i];
                    Fragments::add_values(own, values, out);
                    BURRSTONE_UNROLL
                    for (int i = 0; i < 8; ++i)
                        if (Fragments::row(i / 2 % 2) == r) state.out[o][i] = out[i];
                }
            }
        }
    }
};

} // namespace burrstone

#endif
