// Warp-level matrix products (mma): d += a b.
//
// A shape defines the fragments: the words that a lane holds of each operand, and which element is where. Elements of
// `a` and `b` are packed from the low end of a word. Lane coordinates follow the PTX manual.
//
// On the simulator the sum of products and accumulator is exact to double precision and rounded once to the
// accumulator's type (s8: 32-bit integers that wrap). A GPU aligns the terms of a few products at a time and truncates
// them some bits below the largest, so the last bits of a sum may differ.
#ifndef BURRSTONE_COMMON_MMA_CUH
#define BURRSTONE_COMMON_MMA_CUH

#include "common/thread.cuh"
#include "common/types.cuh"

namespace burrstone {

// A coordinate in an operand's matrix.
struct Element {
    int row;
    int column;
};

// Common to the shapes m16n8kK: rows in groups of four lanes, with PER_WORD consecutive elements of a row per word.
template <int DEPTH, int PER_WORD> struct mma_16x8 {
    static constexpr int M = 16, N = 8, K = DEPTH;
    static constexpr int A_WORDS = M * K / PER_WORD / 32, B_WORDS = N * K / PER_WORD / 32, D_WORDS = 4;
    static constexpr int LANES_PER_PRODUCT = 32;

    // Element `i` of the lane's fragment (counted over all its words).
    static BURRSTONE_DEVICE constexpr Element a(int lane, int i) {
        int word = i / PER_WORD;
        return {lane / 4 + word % 2 * 8, word / 2 * 4 * PER_WORD + lane % 4 * PER_WORD + i % PER_WORD};
    }
    static BURRSTONE_DEVICE constexpr Element b(int lane, int i) {
        return {i / PER_WORD * 4 * PER_WORD + lane % 4 * PER_WORD + i % PER_WORD, lane / 4};
    }
    static BURRSTONE_DEVICE constexpr Element d(int lane, int i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }
};

// f16 in, f32 sum: sm_75 and later.
struct m16n8k8 : mma_16x8<8, 2> {};
// f16 or bf16 in, f32 sum: sm_80 and later.
struct m16n8k16 : mma_16x8<16, 2> {};
// i8 in, 32-bit integer sum: sm_80 and later. e4m3 or e5m2 in, f32 sum: sm_89 and later.
struct m16n8k32 : mma_16x8<32, 4> {};

// f16 in, f32 sum: Volta's shape (sm_70 and later; slow from sm_75 on). A warp computes four products at once: lanes 4q
// to 4q+3 and 16+4q to 16+4q+3 hold product q. B_ROWS: lanes hold rows of b instead of columns.
template <bool B_ROWS> struct mma_8x8x4 {
    static constexpr int M = 8, N = 8, K = 4;
    static constexpr int A_WORDS = 2, B_WORDS = 2, D_WORDS = 8;
    static constexpr int LANES_PER_PRODUCT = 8;

    static BURRSTONE_DEVICE constexpr Element a(int lane, int i) { return {lane % 4 + lane / 16 * 4, i}; }
    static BURRSTONE_DEVICE constexpr Element b(int lane, int i) {
        return B_ROWS ? Element{lane % 4, i + lane / 16 * 4} : Element{i, lane % 4 + lane / 16 * 4};
    }
    static BURRSTONE_DEVICE constexpr Element d(int lane, int i) {
        return {(lane & 1) + (i & 2) + lane / 16 * 4, (i & 4) + (lane & 2) + (i & 1)};
    }
};
struct m8n8k4 : mma_8x8x4<false> {};
struct m8n8k4_rows : mma_8x8x4<true> {};
// The same with f16 sums, two in a word.
struct m8n8k4_f16 : mma_8x8x4<false> {
    static constexpr int D_WORDS = 4;
    static BURRSTONE_DEVICE constexpr Element d(int lane, int i) { return {lane % 4 + lane / 16 * 4, i}; }
};

namespace detail {

#ifdef BURRSTONE_SIM

template <class S, class D> struct MmaRecord {
    D *d;
    const uint32_t *a, *b;
};

inline float unpack(const uint32_t *words, int i, f16) { return to_float(f16{uint16_t(words[i / 2] >> i % 2 * 16)}); }
inline float unpack(const uint32_t *words, int i, bf16) { return to_float(bf16{uint16_t(words[i / 2] >> i % 2 * 16)}); }
inline float unpack(const uint32_t *words, int i, e4m3) { return to_float(e4m3{uint8_t(words[i / 4] >> i % 4 * 8)}); }
inline float unpack(const uint32_t *words, int i, e5m2) { return to_float(e5m2{uint8_t(words[i / 4] >> i % 4 * 8)}); }
inline float unpack(const uint32_t *words, int i, i8) { return float(i8(words[i / 4] >> i % 4 * 8)); }

// How an accumulator is stored in a lane's registers, and the type in which it is summed.
inline double read_sum(const float *d, int i) { return d[i]; }
inline double read_sum(const int32_t *d, int i) { return d[i]; }
inline double read_sum(const uint32_t *d, int i) { return unpack(d, i, f16{}); }
inline void write_sum(float *d, int i, double sum) { d[i] = float(sum); }
inline void write_sum(int32_t *d, int i, double sum) { d[i] = int32_t(uint32_t(int64_t(sum))); }
inline void write_sum(uint32_t *d, int i, double sum) {
    uint32_t bits = from_float<f16>(float(sum)).bits, shift = i % 2 * 16;
    d[i / 2] = (d[i / 2] & ~(0xffffu << shift)) | bits << shift;
}

template <class S, class T, class D> void run_mma(void *const *records) {
    constexpr int PRODUCTS = WARP / S::LANES_PER_PRODUCT;
    constexpr int PER_WORD = int(sizeof(uint32_t) / sizeof(T));
    constexpr int SUMS = S::M * S::N / S::LANES_PER_PRODUCT;
    double a[PRODUCTS][S::M][S::K], b[PRODUCTS][S::K][S::N], d[PRODUCTS][S::M][S::N];
    for (int lane = 0; lane < int(WARP); ++lane) {
        auto *record = static_cast<MmaRecord<S, D> *>(records[lane]);
        int product = lane / 4 % PRODUCTS;
        for (int i = 0; i < S::A_WORDS * PER_WORD; ++i) {
            Element e = S::a(lane, i);
            a[product][e.row][e.column] = unpack(record->a, i, T{});
        }
        for (int i = 0; i < S::B_WORDS * PER_WORD; ++i) {
            Element e = S::b(lane, i);
            b[product][e.row][e.column] = unpack(record->b, i, T{});
        }
        for (int i = 0; i < SUMS; ++i) {
            Element e = S::d(lane, i);
            d[product][e.row][e.column] = read_sum(record->d, i);
        }
    }
    for (int product = 0; product < PRODUCTS; ++product)
        for (int row = 0; row < S::M; ++row)
            for (int k = 0; k < S::K; ++k)
                for (int column = 0; column < S::N; ++column)
                    d[product][row][column] += a[product][row][k] * b[product][k][column];
    for (int lane = 0; lane < int(WARP); ++lane) {
        auto *record = static_cast<MmaRecord<S, D> *>(records[lane]);
        for (int i = 0; i < SUMS; ++i) {
            Element e = S::d(lane, i);
            write_sum(record->d, i, d[lane / 4 % PRODUCTS][e.row][e.column]);
        }
    }
}

#else

#define BURRSTONE_MMA_16(SHAPE, TYPE, SUM, LETTER)                                                                     \
    asm volatile("mma.sync.aligned." SHAPE ".row.col." SUM "." TYPE "." TYPE "." SUM                                   \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                    \
                 : "+" LETTER(d[0]), "+" LETTER(d[1]), "+" LETTER(d[2]), "+" LETTER(d[3])                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

__device__ __forceinline__ void mma_on_gpu(m16n8k16, f16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    BURRSTONE_MMA_16("m16n8k16", "f16", "f32", "f");
}
__device__ __forceinline__ void mma_on_gpu(m16n8k16, bf16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    BURRSTONE_MMA_16("m16n8k16", "bf16", "f32", "f");
}
__device__ __forceinline__ void mma_on_gpu(m16n8k32, i8, int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    BURRSTONE_MMA_16("m16n8k32", "s8", "s32", "r");
}
__device__ __forceinline__ void mma_on_gpu(m16n8k32, e4m3, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    BURRSTONE_MMA_16("m16n8k32", "e4m3", "f32", "f");
}
__device__ __forceinline__ void mma_on_gpu(m16n8k32, e5m2, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    BURRSTONE_MMA_16("m16n8k32", "e5m2", "f32", "f");
}
#undef BURRSTONE_MMA_16

__device__ __forceinline__ void mma_on_gpu(m16n8k8, f16, float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

#define BURRSTONE_MMA_8(LAYOUT)                                                                                        \
    asm volatile("mma.sync.aligned.m8n8k4." LAYOUT ".f32.f16.f16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, "     \
                 "{%10, %11}, {%0, %1, %2, %3, %4, %5, %6, %7};"                                                       \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])      \
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]))

__device__ __forceinline__ void mma_on_gpu(m8n8k4, f16, float (&d)[8], const uint32_t (&a)[2], const uint32_t (&b)[2]) {
    BURRSTONE_MMA_8("row.col");
}
__device__ __forceinline__ void mma_on_gpu(m8n8k4_rows, f16, float (&d)[8], const uint32_t (&a)[2], const uint32_t (&b)[2]) {
    BURRSTONE_MMA_8("row.row");
}
#undef BURRSTONE_MMA_8

__device__ __forceinline__ void mma_on_gpu(m8n8k4_f16, f16, uint32_t (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f16.f16.f16.f16 {%0, %1, %2, %3}, {%4, %5}, {%6, %7}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]));
}

#endif

} // namespace detail

// d += a b in shape S with elements of type T; `d` is float, int32_t (T = i8), or words of two f16 (m8n8k4_f16).
template <class S, class T, class D>
BURRSTONE_DEVICE void mma(D (&d)[S::D_WORDS], const uint32_t (&a)[S::A_WORDS], const uint32_t (&b)[S::B_WORDS],
                          Site site = here()) {
#ifdef BURRSTONE_SIM
    detail::MmaRecord<S, D> record{d, a, b};
    burrstone_sim.warp(FULL_WARP, true, detail::run_mma<S, T, D>, &record, "mma", site.file, site.line);
#else
    (void)site;
    detail::mma_on_gpu(S{}, T{}, d, a, b);
#endif
}

} // namespace burrstone

#endif
