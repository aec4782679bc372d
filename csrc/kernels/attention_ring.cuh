// Hopper's KV pipeline: one producer warp copies KV tiles by TMA into a ring of stages and runs ahead across work
// items; warpgroups consume them. A stage holds the keys of a tile, the next one its values.
#ifndef BURRSTONE_KERNELS_ATTENTION_RING_CUH
#define BURRSTONE_KERNELS_ATTENTION_RING_CUH

#include "common/register_budget.cuh"
#include "common/tma.cuh"
#include "kernels/attention_shared.cuh"

namespace burrstone {

constexpr int WARPGROUP = 4 * int(WARP);
// Columns of a box: one row of the 128-byte swizzle.
constexpr int BOX_COLUMNS = 64;

// One consumer warpgroup per 64 rows, and a producer warp; with two consumers, a producer warpgroup of which one warp
// copies, so that it can release its registers. The sums of the current split are in registers, those of earlier ones
// in shared memory.
template <class V, int SHARE> struct AttentionShared<V, SHARE, true> {
    static constexpr int TILE = KV_TILE<V>;
    static constexpr int BLOCKS = TILE / BLOCK_SIDE;
    static constexpr int GROUPS = (V::threads - int(WARP)) / WARPGROUP;
    static constexpr int WORKERS = GROUPS * WARPGROUP;
    static constexpr int GROUP_ROWS = 64;
    static constexpr int ROWS = GROUPS * GROUP_ROWS;
    static constexpr int BOXES = V::head_dim / BOX_COLUMNS;
    // 48 KiB in flight for heads of 64 columns. An SM of an H200 gets about 36 bytes per nanosecond from memory with a
    // latency of 700 ns, so half would do; the rest covers slow products. For heads of 256 columns only four stages
    // fit: values of a tile and keys of the next in use, two in flight.
    static constexpr int PLACES = V::head_dim <= 128 ? 6 : 4;

    // 64 columns of each row, as boxes with a 128-byte swizzle are laid out.
    template <int COUNT> using Box = SwizzledRows<typename V::dtype, COUNT, BOX_COLUMNS, 1024>;
    using Tile = Box<TILE>;

    Box<GROUP_ROWS> query[GROUPS][BOXES];
    Tile tiles[PLACES][BOXES];
    // Zeros that replace eight keys' values in the product.
    Box<8> zeros;
    // By element of the rows' results, then by thread.
    Shared<float, V::head_dim / 2 * WORKERS> results;
    // Copies arrive at `full`, warps that have finished a stage at `empty`.
    Shared<uint64_t, PLACES> full, empty;
    // Whether a warp found a value that is not finite.
    Shared<uint32_t, GROUPS * 4> found;

    static constexpr bool IN_REGISTERS = false;
    template <int OUT_BLOCKS> struct Totals {
        AttentionShared &shared;

        BURRSTONE_DEVICE Totals(AttentionShared &shared) : shared(shared) {}
        BURRSTONE_DEVICE float get(int block, int i) const { return shared.results.load(at(block, i)); }
        BURRSTONE_DEVICE void set(int block, int i, float value) { shared.results.store(at(block, i), value); }
        static BURRSTONE_DEVICE uint32_t at(int block, int i) { return (block * 8 + i) * WORKERS + thread_index(); }
    };

    // A stage of the ring, and its phase parity.
    struct Place {
        uint32_t at = 0, parity = 0;

        BURRSTONE_DEVICE void advance() {
            at = at + 1 == PLACES ? 0 : at + 1;
            parity ^= at == 0;
        }
    };

    // Whether some threads hold no rows.
    static constexpr bool COPIES = true;

    // All threads, before anything else.
    BURRSTONE_DEVICE Place begin() {
        if (thread_index() == 0) {
            BURRSTONE_ROLLED
            for (int place = 0; place < PLACES; ++place) {
                mbarrier_init(full.address(place), 1);
                mbarrier_init(empty.address(place), WORKERS / int(WARP));
            }
            mbarrier_fence_init();
        }
        using Zeros = Box<8>;
        BURRSTONE_ROLLED
        for (uint32_t i = thread_index(); i < 8 * Zeros::PIECES; i += V::threads)
            zeros.data.template store_vec<int(Zeros::PIECE)>(i * Zeros::PIECE, {});
        fence_async();
        sync_block();
        return {};
    }
    static BURRSTONE_DEVICE bool has_no_rows() { return thread_index() >= uint32_t(WORKERS); }
    static BURRSTONE_DEVICE bool copies() { return thread_index() / WARP == WORKERS / WARP; }
    // Registers that the producer releases to the consumers.
    static BURRSTONE_DEVICE void share_registers() {
        if constexpr (GROUPS > 1) {
            if (has_no_rows()) give_registers<40>();
            else take_registers<232>();
        }
    }
    // Barrier of the threads that hold rows; of those of one warpgroup.
    static BURRSTONE_DEVICE void sync() { barrier_sync<1>(WORKERS); }
    static BURRSTONE_DEVICE void sync_group() {
        if (GROUPS == 1 || thread_index() < uint32_t(WARPGROUP)) barrier_sync<2>(WARPGROUP);
        else barrier_sync<3>(WARPGROUP);
    }

    // Ping-pong: two warpgroups issue the products of their tiles in turn, the first one first, one turn per tile. The
    // tensor cores then work for one while the other computes its softmax.
    static BURRSTONE_DEVICE void wait_turn(uint32_t group) {
        if (group == 0) barrier_sync<4>(WORKERS);
        else barrier_sync<5>(WORKERS);
    }
    static BURRSTONE_DEVICE void give_turn(uint32_t group) {
        if (group == 0) barrier_arrive<5>(WORKERS);
        else barrier_arrive<4>(WORKERS);
    }

    BURRSTONE_DEVICE void wait_full(const Place &place) const {
        mbarrier_wait(full.address(place.at), place.parity);
    }
    BURRSTONE_DEVICE void wait_empty(const Place &place) const {
        mbarrier_wait(empty.address(place.at), place.parity ^ 1);
    }
    // The thread's warp has finished a stage.
    BURRSTONE_DEVICE void release(const Place &place) const {
        sync_warp();
        if (lane_index() == 0) mbarrier_arrive(empty.address(place.at));
    }
};

// The producer warp.
template <class V, int SHARE, class Args> class AttentionCopies {
    using T = typename V::dtype;
    using Memory = AttentionShared<V, SHARE>;
    using Place = typename Memory::Place;
    static constexpr uint32_t TILE = Memory::TILE;
    static constexpr int BOXES = Memory::BOXES;
    // 16-byte units of a box's row.
    static constexpr uint32_t PIECES = Memory::Tile::PIECES, PIECE = Memory::Tile::PIECE;

    const Args &args;
    const AttentionPart &part;
    Memory &shared;
    const AttentionRange<TILE> range;
    const bool aligned;

  public:
    // Of positions from..until.
    BURRSTONE_DEVICE AttentionCopies(const Args &args, const AttentionPart &part, Memory &shared, uint32_t from,
                                     uint32_t until)
        : args(args), part(part), shared(shared),
          range(AttentionRows<Args>(args, part.span, part.kv_head), part, from, until),
          aligned(args.head_dim % PIECE == 0 && (args.keys | args.values) % 16 == 0) {}

    // Copies keys and values of all tiles, in order. Tiles that reach beyond the visible range may include unallocated
    // positions and pages: those are copied row by row, with zeros in place of the missing ones.
    BURRSTONE_DEVICE void run(Place &place) const {
        BURRSTONE_ROLLED
        for (uint32_t base = range.begin; base < range.end; base += TILE) {
            if (args.box_rows > 0 && range.low <= base && base + TILE <= range.high) copy_boxes(base, place);
            else copy_rows(base, place);
        }
    }

  private:
    // Cache entry of one head's key or value of a position.
    BURRSTONE_DEVICE uint32_t entry(uint32_t position) const {
        const uint32_t page = load(pointer<const uint32_t>(args.page_table) + part.span.pages +
                                   (position >> args.page_bits));
        const uint32_t within = position & ((1u << args.page_bits) - 1);
        return ((page * args.kv_heads + part.kv_head) << args.page_bits) + within;
    }

    // One lane per box: rows of a page by 64 columns.
    BURRSTONE_DEVICE void copy_boxes(uint32_t base, Place &place) const {
        const uint32_t row = lane_index() / BOXES * args.box_rows, column = lane_index() % BOXES;
        const bool has_box = row < TILE;
        const uint32_t from = has_box ? entry(base + row) : 0;
        BURRSTONE_UNROLL
        for (int plane = 0; plane < 2; ++plane, place.advance()) {
            const uint32_t full = shared.full.address(place.at);
            shared.wait_empty(place);
            if (lane_index() == 0) mbarrier_arrive_expect(full, TILE * V::head_dim * sizeof(T));
            sync_warp();
            if (has_box) {
                const uint32_t to = shared.tiles[place.at][column].data.address(row * BOX_COLUMNS);
                const Coordinates at{int32_t(column * BOX_COLUMNS), int32_t(from)};
                tensor_load(to, plane == 0 ? args.key_boxes : args.value_boxes, at, full);
            }
        }
    }

    BURRSTONE_DEVICE void copy_rows(uint32_t base, Place &place) const {
        static_assert(TILE == 2 * WARP, "a lane has the entries of two positions");
        uint32_t entries[2];
        BURRSTONE_UNROLL
        for (int half = 0; half < 2; ++half) {
            const uint32_t position = base + half * WARP + lane_index();
            const bool there = range.low <= position && position < range.high;
            entries[half] = there ? entry(position) : NO_ENTRY;
        }
        BURRSTONE_UNROLL
        for (int plane = 0; plane < 2; ++plane, place.advance()) {
            shared.wait_empty(place);
            BURRSTONE_UNROLL
            for (int half = 0; half < 2; ++half)
                copy_half(plane == 0 ? args.keys : args.values, entries[half], half * WARP, shared.tiles[place.at]);
            cp_async_commit();
            cp_async_wait<0>();
            fence_async();
            sync_warp();
            if (lane_index() == 0) mbarrier_arrive(shared.full.address(place.at));
        }
    }

    // 32 rows of a tile, one entry per lane: rows with NO_ENTRY, and columns beyond the head, become zeros.
    BURRSTONE_DEVICE void copy_half(device_ptr plane, uint32_t entries, uint32_t first_row,
                                    typename Memory::Tile (&tile)[BOXES]) const {
        BURRSTONE_ROLLED
        for (uint32_t row = 0; row < WARP; row += WARP / PIECES) {
            const uint32_t own = row + lane_index() / PIECES, entry = shfl(entries, own);
            BURRSTONE_UNROLL
            for (uint32_t box = 0; box < uint32_t(BOXES); ++box) {
                const uint32_t within = lane_index() % PIECES * PIECE, column = box * BOX_COLUMNS + within;
                const uint32_t to = Memory::Tile::index(first_row + own, within);
                const T *from = pointer<const T>(plane) + uint64_t(entry) * args.head_dim + column;
                const uint32_t left = entry != NO_ENTRY && column < args.head_dim ? args.head_dim - column : 0;
                if (aligned) {
                    cp_async<16>(tile[box].data.address(to), from, left > 0 ? 16 : 0);
                } else {
                    vec<T, PIECE> piece = {};
                    BURRSTONE_UNROLL
                    for (uint32_t e = 0; e < PIECE; ++e)
                        if (e < left) piece.v[e] = load(from + e);
                    tile[box].data.template store_vec<int(PIECE)>(to, piece);
                }
            }
        }
    }
};

} // namespace burrstone

#endif
