// wgmma (sm_90a): asynchronous products by a warpgroup, with operands in shared memory: d (+)= a b, where d is 64 x N,
// a is 64 x 16 and b is 16 x N.
//
// Usage: fence, issue products, commit them as a group, wait for groups. Until the wait no thread may access the
// accumulator, the registers of a, or the shared memory; but products of one shape may follow each other into one
// accumulator. On the simulator the accumulator is NaN until its first product has been waited for, and a product is
// computed in the wait, from what shared memory holds then, with the arithmetic of common/mma.cuh.
//
// Element i of d in lane l of warp w: row 16w + l/4 + 8(i/2 % 2), column 8(i/4) + 2(l%4) + i%2. a in registers: as
// m16n8k16, for rows 16w to 16w + 15.
#ifndef BURRSTONE_COMMON_WGMMA_CUH
#define BURRSTONE_COMMON_WGMMA_CUH

#include "common/mma.cuh"
#include "common/mbarrier.cuh"
#ifndef BURRSTONE_SIM
#include "common/wgmma_instructions.cuh"
#endif

namespace burrstone {

// The shape of these products as an axis value: 64 rows of a, and columns of b in multiples of 8.
struct m64k16 {
    static constexpr int M = 64, N = 8, K = 16;
    static constexpr int LANES_PER_PRODUCT = 32;
};

template <class Shape> constexpr bool BY_WARPGROUP = false;
template <> constexpr bool BY_WARPGROUP<m64k16> = true;

// Swizzle of an operand's 16-byte units; the same as the tensor_load's that wrote it.
enum class MatrixSwizzle : uint32_t { NONE = 0, BYTES_128 = 1, BYTES_64 = 2, BYTES_32 = 3 };

// Descriptor of an operand in shared memory. Without a swizzle the operand consists of 8 x 8 blocks of 128 bytes; with
// one, of blocks of 8 rows of 32, 64 or 128 bytes, aligned to their size (moving along K inside a block increases the
// start).
//
// K-major operand: `stride` is the distance in bytes between groups of eight rows (of M or N); `leading` that between
// groups of eight columns, used only without a swizzle.
// MN-major operand: without a swizzle `stride` is the distance between groups of eight M or N, `leading` between groups
// of eight K; with one, `leading` is the distance between block widths, `stride` between groups of eight K.
BURRSTONE_DEVICE uint64_t matrix_descriptor(uint32_t start, uint32_t leading, uint32_t stride, MatrixSwizzle swizzle) {
    return uint64_t((start & 0x3ffff) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 |
           uint64_t(swizzle) << 62;
}

namespace detail {

#ifdef BURRSTONE_SIM

constexpr int GROUP = 128;

struct WgmmaRecord {
    float *d;
    uint64_t a, b;
    const uint32_t *words;
    bool accumulate;
    Site site;
};

template <int N> struct WgmmaWork {
    float *d[GROUP];
    float before[GROUP][N / 2];
    uint32_t words[GROUP][4];
    uint64_t a, b;
    bool accumulate, chained;
    Site site;
};

inline Element wgmma_d(int thread, int i) {
    int warp = thread / 32, lane = thread % 32;
    return {16 * warp + lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2};
}

// Reads `count` rows of 16 values (K-major) or 16 rows of `count` values into values[row or column][k].
template <class T, bool MN> void read_operand(uint64_t descriptor, int count, float (*values)[16], Site site) {
    uint32_t start = uint32_t(descriptor & 0x3fff) << 4, leading = uint32_t(descriptor >> 16 & 0x3fff) << 4;
    uint32_t stride = uint32_t(descriptor >> 32 & 0x3fff) << 4, mode = uint32_t(descriptor >> 62);
    uint32_t width = mode == 0 ? 16 : 256u >> mode; // bytes of a block's row
    uint32_t mask = mode == 0 ? 0 : width - 16;
    if (descriptor >> 49 & 7) burrstone_sim.fault("matrix descriptor with a base offset", site.file, site.line);
    auto piece = [&](uint32_t address, uint16_t(&elements)[8]) {
        address ^= address >> 3 & mask;
        __builtin_memcpy(elements, burrstone_sim.shared_at(address, 16, BURRSTONE_SIM_ASYNC_LOAD, site.file, site.line), 16);
    };
    uint16_t elements[8];
    if (!MN) {
        for (int row = 0; row < count; ++row)
            for (int half = 0; half < 2; ++half) {
                piece(start + row / 8 * stride + row % 8 * width + half * (mode == 0 ? leading : 16), elements);
                for (int i = 0; i < 8; ++i) values[row][half * 8 + i] = to_float(T{elements[i]});
            }
    } else {
        uint32_t pieces = width / 16;
        uint32_t along = mode == 0 ? stride : leading, down = mode == 0 ? leading : stride;
        for (int k = 0; k < 16; ++k)
            for (int eight = 0; eight < count / 8; ++eight) {
                piece(start + eight / pieces * along + eight % pieces * 16 + k / 8 * down + k % 8 * width, elements);
                for (int i = 0; i < 8; ++i) values[eight * 8 + i][k] = to_float(T{elements[i]});
            }
    }
}

template <int N, class T, bool A_REGISTERS, bool A_MN, bool B_MN> void work_wgmma(const void *data) {
    const auto &work = *static_cast<const WgmmaWork<N> *>(data);
    float a[64][16], b[N][16];
    if (A_REGISTERS) {
        for (int thread = 0; thread < GROUP; ++thread)
            for (int i = 0; i < 8; ++i) {
                Element e = m16n8k16::a(thread % 32, i);
                a[thread / 32 * 16 + e.row][e.column] = unpack(work.words[thread], i, T{});
            }
    } else {
        read_operand<T, A_MN>(work.a, 64, a, work.site);
    }
    read_operand<T, B_MN>(work.b, N, b, work.site);
    for (int thread = 0; thread < GROUP; ++thread)
        for (int i = 0; i < N / 2; ++i) {
            Element e = wgmma_d(thread, i);
            double sum = work.accumulate ? (work.chained ? work.d[thread][i] : work.before[thread][i]) : 0.0;
            for (int k = 0; k < 16; ++k) sum += double(a[e.row][k]) * b[e.column][k];
            work.d[thread][i] = float(sum);
        }
}

template <int N, class T, bool A_REGISTERS, bool A_MN, bool B_MN> void run_wgmma(void *const *records) {
    auto *first = static_cast<WgmmaRecord *>(records[0]);
    WgmmaWork<N> work;
    work.a = first->a, work.b = first->b, work.accumulate = first->accumulate, work.site = first->site;
    work.chained = burrstone_sim.deferred(first->d);
    for (int thread = 0; thread < GROUP; ++thread) {
        auto *record = static_cast<WgmmaRecord *>(records[thread]);
        if (record->a != work.a || record->b != work.b || record->accumulate != work.accumulate)
            burrstone_sim.fault("threads of a warpgroup give different operands", record->site.file, record->site.line);
        work.d[thread] = record->d;
        __builtin_memcpy(work.before[thread], record->d, sizeof work.before[thread]);
        if (A_REGISTERS) __builtin_memcpy(work.words[thread], record->words, sizeof work.words[thread]);
        // One that others still add to keeps what those that are done have left.
        if (!work.chained) __builtin_memset(record->d, 0xff, sizeof work.before[thread]);
    }
    burrstone_sim.defer(work_wgmma<N, T, A_REGISTERS, A_MN, B_MN>, &work, sizeof work, first->d);
}

inline void run_wgmma_commit(void *const *) { burrstone_sim.defer_commit(); }
template <int PENDING> void run_wgmma_wait(void *const *) { burrstone_sim.defer_wait(PENDING); }

#endif

} // namespace detail

// Before the first product, and after threads have written an accumulator or registers of a.
BURRSTONE_DEVICE void wgmma_fence() {
#ifndef BURRSTONE_SIM
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Both operands in shared memory. A_MN, B_MN: the operand is MN-major instead of K-major.
template <int N, class T, bool A_MN = false, bool B_MN = false>
BURRSTONE_DEVICE void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate, Site site = here()) {
    static_assert(N >= 8 && N <= 256 && N % 8 == 0, "8 to 256 columns, in eights");
#ifdef BURRSTONE_SIM
    detail::WgmmaRecord record{d, a, b, nullptr, accumulate, site};
    burrstone_sim.warpgroup(detail::run_wgmma<N, T, false, A_MN, B_MN>, &record, "wgmma", site.file, site.line);
#else
    (void)site;
    detail::WgmmaInstruction<N>::template run<A_MN, B_MN>(T{}, d, a, b, accumulate);
#endif
}

// a in registers.
template <int N, class T, bool B_MN = false>
BURRSTONE_DEVICE void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate, Site site = here()) {
    static_assert(N >= 8 && N <= 256 && N % 8 == 0, "8 to 256 columns, in eights");
#ifdef BURRSTONE_SIM
    detail::WgmmaRecord record{d, 0, b, a, accumulate, site};
    burrstone_sim.warpgroup(detail::run_wgmma<N, T, true, false, B_MN>, &record, "wgmma", site.file, site.line);
#else
    (void)site;
    detail::WgmmaInstruction<N>::template run<B_MN>(T{}, d, a, b, accumulate);
#endif
}

// Closes the group of the warpgroup's products since the last commit.
BURRSTONE_DEVICE void wgmma_commit(Site site = here()) {
#ifdef BURRSTONE_SIM
    char record = 0;
    burrstone_sim.warpgroup(detail::run_wgmma_commit, &record, "wgmma_commit", site.file, site.line);
#else
    (void)site;
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most PENDING of the latest groups still run.
template <int PENDING> BURRSTONE_DEVICE void wgmma_wait(Site site = here()) {
#ifdef BURRSTONE_SIM
    char record = 0;
    burrstone_sim.warpgroup(detail::run_wgmma_wait<PENDING>, &record, "wgmma_wait", site.file, site.line);
#else
    (void)site;
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#endif
}

// The same, before `d`, an accumulator, is read.
template <int PENDING, int COUNT> BURRSTONE_DEVICE void wgmma_wait([[maybe_unused]] float (&d)[COUNT], Site site = here()) {
    wgmma_wait<PENDING>(site);
#ifndef BURRSTONE_SIM
    // The compiler must not read the registers before the wait.
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

// Words of operands in registers, or what these are computed from: they are computed between the last wait and the next
// fence, not among products that run.
template <int COUNT> BURRSTONE_DEVICE void wgmma_hold([[maybe_unused]] uint32_t (&words)[COUNT]) {
#ifndef BURRSTONE_SIM
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(words[i])::"memory");
#endif
}

} // namespace burrstone

#endif
