// Loads of 8x8 matrices of 16-bit elements from shared memory into mma fragments (sm_75 and later).
#ifndef BURRSTONE_COMMON_LDMATRIX_CUH
#define BURRSTONE_COMMON_LDMATRIX_CUH

#include "common/memory.cuh"

namespace burrstone {

namespace detail {

#ifdef BURRSTONE_SIM
struct MatrixRecord {
    const void *row; // what the lane's address names; null for lanes whose address is not used
    uint32_t words[4];
};

template <int N, bool TRANSPOSE> void run_ldmatrix(void *const *records) {
    for (unsigned matrix = 0; matrix < N; ++matrix) {
        uint16_t elements[8][8];
        for (unsigned row = 0; row < 8; ++row)
            __builtin_memcpy(elements[row], static_cast<MatrixRecord *>(records[matrix * 8 + row])->row, 16);
        for (unsigned lane = 0; lane < WARP; ++lane) {
            unsigned group = lane / 4, pair = lane % 4 * 2;
            uint16_t low = TRANSPOSE ? elements[pair][group] : elements[group][pair];
            uint16_t high = TRANSPOSE ? elements[pair + 1][group] : elements[group][pair + 1];
            static_cast<MatrixRecord *>(records[lane])->words[matrix] = low | uint32_t(high) << 16;
        }
    }
}
#endif

} // namespace detail

// N (1, 2, 4) matrices. Lanes 8i to 8i+7 give the shared addresses of the eight rows of matrix i, 16 bytes each; the
// other lanes' addresses are not used. Lane l gets of each matrix elements 2(l%4) and 2(l%4)+1 of row l/4; or, with
// TRANSPOSE, of column l/4.
template <int N, bool TRANSPOSE = false> BURRSTONE_DEVICE vec<uint32_t, N> ldmatrix(uint32_t address, Site site = here()) {
    static_assert(N == 1 || N == 2 || N == 4, "ldmatrix loads 1, 2 or 4 matrices");
    vec<uint32_t, N> words;
#ifdef BURRSTONE_SIM
    detail::MatrixRecord record{};
    if (lane_index() < 8 * N)
        record.row = burrstone_sim.shared_at(address, 16, BURRSTONE_SIM_LOAD, site.file, site.line);
    burrstone_sim.warp(FULL_WARP, true, detail::run_ldmatrix<N, TRANSPOSE>, &record, "ldmatrix", site.file, site.line);
    for (int i = 0; i < N; ++i) words.v[i] = record.words[i];
#else
    (void)site;
    if constexpr (N == 1 && !TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(words.v[0]) : "r"(address) : "memory");
    if constexpr (N == 1 && TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                     : "=r"(words.v[0]) : "r"(address) : "memory");
    if constexpr (N == 2 && !TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(words.v[0]), "=r"(words.v[1]) : "r"(address) : "memory");
    if constexpr (N == 2 && TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(words.v[0]), "=r"(words.v[1]) : "r"(address) : "memory");
    if constexpr (N == 4 && !TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words.v[0]), "=r"(words.v[1]), "=r"(words.v[2]), "=r"(words.v[3]) : "r"(address) : "memory");
    if constexpr (N == 4 && TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words.v[0]), "=r"(words.v[1]), "=r"(words.v[2]), "=r"(words.v[3]) : "r"(address) : "memory");
#endif
    return words;
}

} // namespace burrstone

#endif
