// Softmax attention over the paged cache, as decode and prefill both do it: a query gets the same bits from either.
//
// A row is one query of one head. The rows of a block share a key head, so that a group of heads loads keys and values
// once. Keys are walked in tiles at absolute positions, with the online softmax of Milakov and Gimelshein (2018); after
// every KV_SPLIT positions the state starts afresh and is merged in order into the total. What a row does not see
// leaves its state as it is, to the bit: its result depends on its own sequence alone.
#ifndef BURRSTONE_KERNELS_ATTENTION_ROW_CUH
#define BURRSTONE_KERNELS_ATTENTION_ROW_CUH

#include "common/kernel.cuh"

namespace burrstone {

// Positions of a tile: one a lane.
constexpr uint32_t KV_TILE = WARP;
// Short enough to give every multiprocessor one where sequences are few, once splits have blocks of their own; long
// enough that merging them is nothing beside walking them.
constexpr uint32_t KV_SPLIT = 16 * KV_TILE;
// The running maximum before any score: finite, so that differences with it are numbers.
constexpr float LOWEST_SCORE = -1e30f;

// An int8 cache has a scale for each position, an fp8 cache one for all.
template <class KV> constexpr bool HAS_SCALES = false;
template <> constexpr bool HAS_SCALES<i8> = true;

// Of a block whose warps have ROWS rows each at a time. V::head_dim is the most that the kernel takes.
template <class V, int ROWS> struct AttentionShared {
    static constexpr int BATCH = V::threads / int(WARP) * ROWS;
    // Eight elements of nothing between keys: lanes that read one column of 32 keys meet different banks.
    static constexpr int KEY_STRIDE = V::head_dim + 8;
    Shared<typename V::dtype, BATCH * V::head_dim> query;
    Shared<typename V::cache, int(KV_TILE) * KEY_STRIDE> keys;
    Shared<typename V::cache, int(KV_TILE) * V::head_dim> values;
    Shared<float, int(KV_TILE)> key_scales;
    Shared<float, int(KV_TILE)> value_scales;
    // Each warp's own.
    Shared<float, BATCH * int(KV_TILE)> weights;
};

// Queries first..first + queries of a span, in all heads that share kv_head.
struct AttentionPart {
    attention_span span;
    uint32_t first;
    uint32_t queries;
    uint32_t kv_head;
};

template <class V, int ROWS, class Args> class AttentionBlock {
    using T = typename V::dtype;
    using KV = typename V::cache;
    using Memory = AttentionShared<V, ROWS>;
    static constexpr uint32_t WARPS = V::threads / WARP;
    static constexpr uint32_t BATCH = Memory::BATCH;
    static constexpr uint32_t HEAD_DIM = V::head_dim;
    static constexpr uint32_t KEY_STRIDE = Memory::KEY_STRIDE;
    // Of an output row, a lane owns GRAIN elements out of every GRAIN * WARP: four bytes of a value.
    static constexpr uint32_t GRAIN = 4 / sizeof(KV);
    static constexpr uint32_t OWN = HEAD_DIM / WARP;
    static constexpr uint32_t STRIPE = GRAIN * WARP;

    // Of one row: sums are weighted by exp2(score - max).
    struct State {
        float max = LOWEST_SCORE;
        float sum = 0.0f;
        float out[OWN] = {};
    };

    template <uint32_t N> struct Eights {
        vec<KV, 8> v[N];
    };

    const Args &args;
    const AttentionPart &part;
    Memory &shared;
    const uint32_t group;
    // Columns from head_dim on to the end of the last stripe are zeros in shared memory.
    const uint32_t columns;
    const float key_factor;

  public:
    BURRSTONE_DEVICE AttentionBlock(const Args &args, const AttentionPart &part, Memory &shared)
        : args(args), part(part), shared(shared), group(args.heads / args.kv_heads),
          columns((args.head_dim + STRIPE - 1) / STRIPE * STRIPE),
          key_factor(mul_(mul_(args.scale, args.key_scale), args.soft_cap > 0.0f ? reciprocal_fast(args.soft_cap) : LOG2_E)) {}

    BURRSTONE_DEVICE void run() {
        const uint32_t rows = part.queries * group;
        for (uint32_t begin = 0; begin < rows; begin += BATCH) batch(begin, min_of(begin + BATCH, rows));
    }

  private:
    static BURRSTONE_DEVICE uint32_t min_of(uint32_t a, uint32_t b) { return a < b ? a : b; }
    static BURRSTONE_DEVICE uint32_t max_of(uint32_t a, uint32_t b) { return a < b ? b : a; }

    // Rows are the heads of the first query, then those of the next.
    BURRSTONE_DEVICE uint32_t query_of(uint32_t row) const { return part.first + row / group; }
    BURRSTONE_DEVICE uint32_t position_of(uint32_t row) const {
        return part.span.kv_len - part.span.len + query_of(row);
    }
    BURRSTONE_DEVICE uint32_t first_seen(uint32_t row) const {
        const uint32_t end = position_of(row) + 1;
        return args.window > 0 && args.window < end ? end - args.window : 0;
    }
    // Where a row of the query and of the output begins.
    BURRSTONE_DEVICE uint64_t place_of(uint32_t row) const {
        const uint64_t token = part.span.start + query_of(row);
        return (token * args.heads + part.kv_head * group + row % group) * args.head_dim;
    }
    // This warp's row r of the batch: neighbours go to different warps, so that few rows still use all of them.
    static BURRSTONE_DEVICE uint32_t slot(int r) { return r * WARPS + warp_index(); }

    // Rows begin..end, at most BATCH of them.
    BURRSTONE_DEVICE void batch(uint32_t begin, uint32_t end) {
        load_queries(begin, end);
        // Positions that some row sees; for each row of this warp, those that it sees, none if it is not there.
        const uint32_t low = first_seen(begin), high = position_of(end - 1) + 1;
        uint32_t from[ROWS], to[ROWS];
        BURRSTONE_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const uint32_t row = begin + slot(r);
            from[r] = row < end ? first_seen(row) : 0;
            to[r] = row < end ? position_of(row) + 1 : 0;
        }
        State total[ROWS];
        for (uint32_t split = low / KV_SPLIT * KV_SPLIT; split < high; split += KV_SPLIT) {
            const uint32_t split_end = min_of(split + KV_SPLIT, high);
            State state[ROWS];
            for (uint32_t base = max_of(split, low / KV_TILE * KV_TILE); base < split_end; base += KV_TILE) {
                load_tile(base, low, high);
                sync_block();
                tile(base, from, to, state);
                sync_block();
            }
            BURRSTONE_UNROLL
            for (int r = 0; r < ROWS; ++r)
                if (from[r] < split_end && split < to[r]) merge(total[r], state[r]);
        }
        BURRSTONE_UNROLL
        for (int r = 0; r < ROWS; ++r)
            if (begin + slot(r) < end) write(place_of(begin + slot(r)), total[r]);
    }

    BURRSTONE_DEVICE void load_queries(uint32_t begin, uint32_t end) {
        constexpr uint32_t PIECE = 16 / sizeof(T);
        const bool aligned = args.head_dim % PIECE == 0 && args.query % 16 == 0;
        const uint32_t pieces = columns / PIECE;
        BURRSTONE_ROLLED
        for (uint32_t i = thread_index(); i < (end - begin) * pieces; i += V::threads) {
            const uint32_t row = i / pieces, column = i % pieces * PIECE, to = row * HEAD_DIM + column;
            const T *from = pointer<const T>(args.query) + place_of(begin + row) + column;
            if (aligned) {
                vec<T, PIECE> piece = {};
                if (column < args.head_dim) piece = load(reinterpret_cast<const vec<T, PIECE> *>(from));
                shared.query.template store_vec<PIECE>(to, piece);
            } else {
                BURRSTONE_ROLLED
                for (uint32_t e = 0; e < PIECE; ++e)
                    shared.query.store(to + e, column + e < args.head_dim ? load(from + e) : T{});
            }
        }
    }

    // Keys and values of the tile's positions; zeros for those outside low..high, which may be nobody's.
    BURRSTONE_DEVICE void load_tile(uint32_t base, uint32_t low, uint32_t high) {
        constexpr uint32_t PIECE = 16 / sizeof(KV);
        const bool aligned = args.head_dim % PIECE == 0 && (args.keys | args.values) % 16 == 0;
        const uint32_t pieces = columns / PIECE;
        BURRSTONE_ROLLED
        for (uint32_t i = thread_index(); i < KV_TILE * pieces; i += V::threads) {
            const uint32_t row = i / pieces, column = i % pieces * PIECE;
            const bool seen = low <= base + row && base + row < high;
            const uint64_t at = (seen ? slot_in_cache(base + row) * args.head_dim : 0) + column;
            const KV *from_keys = pointer<const KV>(args.keys) + at, *from_values = pointer<const KV>(args.values) + at;
            const uint32_t to_keys = row * KEY_STRIDE + column, to_values = row * HEAD_DIM + column;
            if (aligned) {
                vec<KV, PIECE> key = {}, value = {};
                if (seen && column < args.head_dim) {
                    key = load(reinterpret_cast<const vec<KV, PIECE> *>(from_keys));
                    value = load(reinterpret_cast<const vec<KV, PIECE> *>(from_values));
                }
                // A key's row begins at a multiple of eight elements, which is not always one of 16 bytes.
                const auto eights = bit_cast<Eights<PIECE / 8>>(key);
                BURRSTONE_UNROLL
                for (uint32_t h = 0; h < PIECE / 8; ++h)
                    shared.keys.template store_vec<8>(to_keys + 8 * h, eights.v[h]);
                shared.values.template store_vec<PIECE>(to_values, value);
            } else {
                BURRSTONE_ROLLED
                for (uint32_t e = 0; e < PIECE; ++e) {
                    const bool there = seen && column + e < args.head_dim;
                    shared.keys.store(to_keys + e, there ? load(from_keys + e) : KV{});
                    shared.values.store(to_values + e, there ? load(from_values + e) : KV{});
                }
            }
        }
        if (HAS_SCALES<KV> && thread_index() < KV_TILE) {
            const uint32_t position = base + thread_index();
            const bool seen = low <= position && position < high;
            const uint64_t at = seen ? slot_in_cache(position) : 0;
            shared.key_scales.store(thread_index(), seen ? load(pointer<const float>(args.key_scales) + at) : 0.0f);
            shared.value_scales.store(thread_index(), seen ? load(pointer<const float>(args.value_scales) + at) : 0.0f);
        }
    }

    // Of this block's key head.
    BURRSTONE_DEVICE uint64_t slot_in_cache(uint32_t position) const {
        const uint32_t entry = part.span.pages + (position >> args.page_bits);
        const uint64_t page = load(pointer<const uint32_t>(args.page_table) + entry);
        const uint32_t within = position & ((1u << args.page_bits) - 1);
        return ((page * args.kv_heads + part.kv_head) << args.page_bits) + within;
    }

    BURRSTONE_DEVICE void tile(uint32_t base, const uint32_t (&from)[ROWS], const uint32_t (&to)[ROWS],
                               State (&state)[ROWS]) {
        bool sees[ROWS], some = false;
        BURRSTONE_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            sees[r] = from[r] < base + KV_TILE && base < to[r];
            some = some || sees[r];
        }
        if (!some) return;
        float score[ROWS];
        scores(sees, score);
        const uint32_t position = base + lane_index();
        BURRSTONE_UNROLL
        for (int r = 0; r < ROWS; ++r)
            if (sees[r]) weigh(r, score[r], from[r] <= position && position < to[r], state[r]);
        sync_warp();
        add_values(base, from, to, sees, state);
    }

    // The lane's key times each row: even and odd columns in a sum each, for two chains are faster than one.
    BURRSTONE_DEVICE void scores(const bool (&sees)[ROWS], float (&score)[ROWS]) const {
        float even[ROWS] = {}, odd[ROWS] = {};
        BURRSTONE_ROLLED
        for (uint32_t column = 0; column < columns; column += 8) {
            const auto key = shared.keys.template load_vec<8>(lane_index() * KEY_STRIDE + column);
            float k[8];
            BURRSTONE_UNROLL
            for (int e = 0; e < 8; ++e) k[e] = to_float(key.v[e]);
            BURRSTONE_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                if (!sees[r]) continue;
                const auto query = shared.query.template load_vec<8>(slot(r) * HEAD_DIM + column);
                BURRSTONE_UNROLL
                for (int e = 0; e < 8; e += 2) {
                    even[r] = fma_(to_float(query.v[e]), k[e], even[r]);
                    odd[r] = fma_(to_float(query.v[e + 1]), k[e + 1], odd[r]);
                }
            }
        }
        float factor = key_factor;
        if constexpr (HAS_SCALES<KV>) factor = mul_(factor, shared.key_scales.load(lane_index()));
        BURRSTONE_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            score[r] = mul_(even[r] + odd[r], factor);
            if (args.soft_cap > 0.0f) score[r] = mul_(mul_(args.soft_cap, LOG2_E), tanh_(score[r]));
        }
    }

    // Brings the state of row r up to a tile's scores, base 2, and leaves its weights in shared memory.
    BURRSTONE_DEVICE void weigh(int r, float score, bool seen, State &state) {
        const float max = max_(state.max, reduce_max(seen ? score : LOWEST_SCORE));
        const float decay = exp2_fast(state.max - max);
        float weight = seen ? exp2_fast(score - max) : 0.0f;
        state.max = max;
        state.sum = fma_(state.sum, decay, reduce_sum(weight));
        BURRSTONE_UNROLL
        for (uint32_t i = 0; i < OWN; ++i) state.out[i] = mul_(state.out[i], decay);
        if constexpr (HAS_SCALES<KV>) weight = mul_(weight, shared.value_scales.load(lane_index()));
        shared.weights.store(slot(r) * KV_TILE + lane_index(), weight);
    }

    BURRSTONE_DEVICE void add_values(uint32_t base, const uint32_t (&from)[ROWS], const uint32_t (&to)[ROWS],
                                     const bool (&sees)[ROWS], State (&state)[ROWS]) const {
        constexpr uint32_t STEP = 2;
        BURRSTONE_ROLLED
        for (uint32_t at = 0; at < KV_TILE; at += STEP) {
            vec<float, STEP> weight[ROWS];
            BURRSTONE_UNROLL
            for (int r = 0; r < ROWS; ++r)
                if (sees[r]) weight[r] = shared.weights.template load_vec<STEP>(slot(r) * KV_TILE + at);
            BURRSTONE_UNROLL
            for (uint32_t j = 0; j < STEP; ++j) {
                const uint32_t position = base + at + j;
                BURRSTONE_UNROLL
                for (uint32_t own = 0; own < OWN; own += GRAIN) {
                    const uint32_t column = own * WARP + lane_index() * GRAIN;
                    if (own * WARP >= columns) continue;
                    const auto value = shared.values.template load_vec<GRAIN>((at + j) * HEAD_DIM + column);
                    BURRSTONE_UNROLL
                    for (int r = 0; r < ROWS; ++r) {
                        // A value that the row does not see may be infinite: a weight of 0 is not enough.
                        if (position < from[r] || to[r] <= position) continue;
                        BURRSTONE_UNROLL
                        for (uint32_t e = 0; e < GRAIN; ++e) {
                            float &out = state[r].out[own + e];
                            out = fma_(weight[r].v[j], to_float(value.v[e]), out);
                        }
                    }
                }
            }
        }
    }

    static BURRSTONE_DEVICE void merge(State &total, const State &split) {
        const float max = max_(total.max, split.max);
        const float a = exp2_fast(total.max - max), b = exp2_fast(split.max - max);
        total.max = max;
        total.sum = fma_(split.sum, b, mul_(total.sum, a));
        BURRSTONE_UNROLL
        for (uint32_t i = 0; i < OWN; ++i) total.out[i] = fma_(split.out[i], b, mul_(total.out[i], a));
    }

    BURRSTONE_DEVICE void write(uint64_t place, const State &total) const {
        T *out = pointer<T>(args.out) + place;
        const bool aligned = args.head_dim % GRAIN == 0 && args.out % 16 == 0;
        const float factor = mul_(args.value_scale, reciprocal_fast(total.sum));
        BURRSTONE_UNROLL
        for (uint32_t own = 0; own < OWN; own += GRAIN) {
            const uint32_t column = own * WARP + lane_index() * GRAIN;
            vec<T, GRAIN> grain;
            BURRSTONE_UNROLL
            for (uint32_t e = 0; e < GRAIN; ++e) grain.v[e] = from_float<T>(mul_(total.out[own + e], factor));
            if (aligned) {
                if (column < args.head_dim) store(reinterpret_cast<vec<T, GRAIN> *>(out + column), grain);
            } else {
                BURRSTONE_UNROLL
                for (uint32_t e = 0; e < GRAIN; ++e)
                    if (column + e < args.head_dim) store(out + column + e, grain.v[e]);
            }
        }
    }
};

} // namespace burrstone

#endif
