// Tiles of the paged cache in shared memory.
#ifndef BURRSTONE_KERNELS_ATTENTION_CACHE_CUH
#define BURRSTONE_KERNELS_ATTENTION_CACHE_CUH

#include "common/cp_async.cuh"
#include "common/kernel.cuh"
#include "common/mma.cuh"

namespace burrstone {

// Instructions of architectures that have cp.async.
template <class Instruction> constexpr bool HAS_CP_ASYNC = false;
template <> constexpr bool HAS_CP_ASYNC<m16n8k16> = true;

// An int8 cache has a scale per position, an fp8 cache one scale.
template <class KV> constexpr bool HAS_SCALES = false;
template <> constexpr bool HAS_SCALES<i8> = true;

// A matrix in shared memory in 16-byte units. A row's units are swizzled by its number, so that eight units of a
// column, or of eight columns of a row, lie in different banks.
template <class T, int ROWS, int COLUMNS, int ALIGN = 128> struct SwizzledRows {
    static constexpr uint32_t PIECE = 16 / sizeof(T);
    static constexpr uint32_t PIECES = COLUMNS / PIECE;
    // Rows that fill the banks once.
    static constexpr uint32_t LINE = PIECES < 8 ? 8 / PIECES : 1;

    Shared<T, ROWS * COLUMNS, ALIGN> data;

    // Index of an element. index(row, column ^ x) is index(row, column) ^ x, so the addresses of a loop over columns
    // take one register and constants.
    static BURRSTONE_DEVICE uint32_t index(uint32_t row, uint32_t column) {
        const uint32_t flip = row / LINE % (PIECES < 8 ? PIECES : 8);
        return row * COLUMNS + (column / PIECE ^ flip) * PIECE + column % PIECE;
    }
};

// Stands for a cache entry that must not be read: it loads as zeros.
constexpr uint32_t NO_ENTRY = 0xffffffffu;

// Keys and values of one sequence and one key head, TILE positions at a time, loaded by V::threads threads.
template <class V, int TILE, class Args> class AttentionCache {
    using KV = typename V::cache;
    using Rows = SwizzledRows<KV, TILE, V::head_dim>;
    static constexpr bool ASYNC = HAS_CP_ASYNC<typename V::instruction>;

    const Args &args;
    const uint32_t pages;
    const uint32_t kv_head;
    // Positions that at least one row sees. Others may be unallocated.
    const uint32_t low;
    const uint32_t high;
    const bool aligned;

  public:
    BURRSTONE_DEVICE AttentionCache(const Args &args, uint32_t pages, uint32_t kv_head, uint32_t low, uint32_t high)
        : args(args), pages(pages), kv_head(kv_head), low(low), high(high),
          aligned(args.head_dim % Rows::PIECE == 0 && (args.keys | args.values) % 16 == 0) {}

    // The cache entry (one head's key or value) of this thread's position in the tile at `base`, for threads that have
    // one.
    BURRSTONE_DEVICE uint32_t entry(uint32_t base) const {
        const uint32_t position = base + thread_index();
        if (thread_index() >= TILE || position < low || high <= position) return NO_ENTRY;
        const uint32_t page = load(pointer<const uint32_t>(args.page_table) + pages + (position >> args.page_bits));
        const uint32_t within = position & ((1u << args.page_bits) - 1);
        return ((page * args.kv_heads + kv_head) << args.page_bits) + within;
    }

    // Starts loading a tile of `plane` (keys or values). Positions that no row sees, and columns beyond the head,
    // become zeros.
    BURRSTONE_DEVICE void load_tile(device_ptr plane, const Shared<uint32_t, TILE> &entries, Rows &rows) const {
        constexpr uint32_t COUNT = TILE * Rows::PIECES;
        // Loads in flight per thread, where loads are synchronous.
        constexpr uint32_t AHEAD = 4;
        static_assert(COUNT % (V::threads * AHEAD) == 0 || COUNT % V::threads == 0, "threads share a tile evenly");
        constexpr uint32_t EACH = COUNT / V::threads, STEP = EACH < AHEAD || ASYNC ? EACH : AHEAD;
        if (!aligned) {
            BURRSTONE_ROLLED
            for (uint32_t i = thread_index(); i < COUNT; i += V::threads) load_elements(plane, entries, rows, i);
            return;
        }
        BURRSTONE_ROLLED
        for (uint32_t first = 0; first < EACH; first += STEP) {
            vec<KV, Rows::PIECE> pieces[STEP];
            BURRSTONE_UNROLL
            for (uint32_t s = 0; s < STEP; ++s) {
                const uint32_t i = (first + s) * V::threads + thread_index();
                const uint32_t row = i / Rows::PIECES, column = i % Rows::PIECES * Rows::PIECE;
                const uint32_t entry = entries.load(row);
                const bool there = entry != NO_ENTRY && column < args.head_dim;
                const KV *from = pointer<const KV>(plane + (uint64_t(entry) * args.head_dim + column) * sizeof(KV));
                if constexpr (ASYNC) {
                    cp_async<16>(rows.data.address(Rows::index(row, column)), from, there ? 16 : 0);
                } else {
                    pieces[s] = {};
                    if (there) pieces[s] = load(reinterpret_cast<const vec<KV, Rows::PIECE> *>(from));
                }
            }
            if constexpr (!ASYNC) {
                BURRSTONE_UNROLL
                for (uint32_t s = 0; s < STEP; ++s) {
                    const uint32_t i = (first + s) * V::threads + thread_index();
                    const uint32_t row = i / Rows::PIECES, column = i % Rows::PIECES * Rows::PIECE;
                    rows.data.template store_vec<int(Rows::PIECE)>(Rows::index(row, column), pieces[s]);
                }
            }
        }
    }

    // Commits what load_tile started; waits for it.
    BURRSTONE_DEVICE void commit() const {
        if constexpr (ASYNC) cp_async_commit();
    }
    BURRSTONE_DEVICE void wait() const {
        if constexpr (ASYNC) cp_async_wait<0>();
    }

  private:
    // Unit i of the tile, for rows that are not aligned to 16 bytes.
    BURRSTONE_DEVICE void load_elements(device_ptr plane, const Shared<uint32_t, TILE> &entries, Rows &rows,
        uint32_t i) const {
        const uint32_t row = i / Rows::PIECES, column = i % Rows::PIECES * Rows::PIECE;
        const uint32_t entry = entries.load(row);
        vec<KV, Rows::PIECE> piece = {};
        if (entry != NO_ENTRY) {
            const KV *from = pointer<const KV>(plane) + uint64_t(entry) * args.head_dim;
            BURRSTONE_UNROLL
            for (uint32_t e = 0; e < Rows::PIECE; ++e)
                if (column + e < args.head_dim) piece.v[e] = load(from + column + e);
        }
        rows.data.template store_vec<int(Rows::PIECE)>(Rows::index(row, column), piece);
    }
};

} // namespace burrstone

#endif
