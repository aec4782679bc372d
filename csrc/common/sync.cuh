// Barriers, and exchange of registers within a warp.
//
// Masks name the participating lanes, all of which must reach the same call. Only barriers order memory: after a
// shuffle or vote, another lane's writes to shared memory are not visible yet (sync_warp makes them so).
#ifndef BURRSTONE_COMMON_SYNC_CUH
#define BURRSTONE_COMMON_SYNC_CUH

#include "common/thread.cuh"

namespace burrstone {

// __syncthreads: every thread of the block, none of which may have exited. The lanes of a warp must arrive together, as
// for the named barriers below.
BURRSTONE_DEVICE void sync_block(Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.barrier(0, 0, true, site.file, site.line);
#else
    (void)site;
    asm volatile("barrier.sync.aligned 0;" ::: "memory");
#endif
}

BURRSTONE_DEVICE void sync_warp(uint32_t mask = FULL_WARP, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.sync_warp(mask, site.file, site.line);
#else
    (void)site;
    asm volatile("bar.warp.sync %0;" ::"r"(mask) : "memory");
#endif
}

// Barrier ID (1 to 15) for `threads` of the block's threads, a multiple of 32: whole warps wait until that many have
// arrived here or at barrier_arrive.
template <int ID> BURRSTONE_DEVICE void barrier_sync(unsigned threads, Site site = here()) {
    static_assert(ID >= 1 && ID <= 15, "barrier 0 is sync_block's");
#ifdef BURRSTONE_SIM
    burrstone_sim.barrier(ID, threads, true, site.file, site.line);
#else
    (void)site;
    asm volatile("barrier.sync.aligned %0, %1;" ::"n"(ID), "r"(threads) : "memory");
#endif
}

template <int ID> BURRSTONE_DEVICE void barrier_arrive(unsigned threads, Site site = here()) {
    static_assert(ID >= 1 && ID <= 15, "barrier 0 is sync_block's");
#ifdef BURRSTONE_SIM
    burrstone_sim.barrier(ID, threads, false, site.file, site.line);
#else
    (void)site;
    asm volatile("barrier.arrive.aligned %0, %1;" ::"n"(ID), "r"(threads) : "memory");
#endif
}

namespace detail {

#ifdef BURRSTONE_SIM

struct ShuffleRecord {
    uint32_t value;
    unsigned source;
    const char *file;
    unsigned line;
};

inline void run_shuffle(void *const *records) {
    uint32_t values[WARP];
    for (unsigned lane = 0; lane < WARP; ++lane)
        if (records[lane]) values[lane] = static_cast<ShuffleRecord *>(records[lane])->value;
    for (unsigned lane = 0; lane < WARP; ++lane) {
        auto *record = static_cast<ShuffleRecord *>(records[lane]);
        if (!record) continue;
        if (!records[record->source])
            burrstone_sim.fault("shuffle from a lane outside its mask", record->file, record->line);
        record->value = values[record->source];
    }
}

inline uint32_t shuffle(uint32_t mask, uint32_t value, unsigned source, const char *what, Site site) {
    ShuffleRecord record{value, source, site.file, site.line};
    burrstone_sim.warp(mask, false, run_shuffle, &record, what, site.file, site.line);
    return record.value;
}

struct VoteRecord {
    uint32_t value;
    uint32_t result;
};

inline void run_ballot(void *const *records) {
    uint32_t votes = 0;
    for (unsigned lane = 0; lane < WARP; ++lane)
        if (records[lane] && static_cast<VoteRecord *>(records[lane])->value) votes |= 1u << lane;
    for (unsigned lane = 0; lane < WARP; ++lane)
        if (records[lane]) static_cast<VoteRecord *>(records[lane])->result = votes;
}

inline void run_match(void *const *records) {
    for (unsigned lane = 0; lane < WARP; ++lane) {
        auto *record = static_cast<VoteRecord *>(records[lane]);
        if (!record) continue;
        record->result = 0;
        for (unsigned other = 0; other < WARP; ++other)
            if (records[other] && static_cast<VoteRecord *>(records[other])->value == record->value)
                record->result |= 1u << other;
    }
}

#endif

// The sources of the four shuffles, as the PTX manual gives them for segments of `width` lanes.
enum class Shuffle { INDEX, XOR, UP, DOWN };

template <Shuffle MODE> BURRSTONE_DEVICE uint32_t shuffle_word(uint32_t mask, uint32_t value, unsigned b, int width, Site site) {
#ifdef BURRSTONE_SIM
    unsigned lane = lane_index(), w = unsigned(width), first = lane & ~(w - 1), last = first | (w - 1);
    b %= WARP;
    unsigned source = lane;
    const char *what = "shfl";
    if (MODE == Shuffle::INDEX) source = first | (b & (w - 1));
    if (MODE == Shuffle::XOR) source = (lane ^ b) <= last ? lane ^ b : lane, what = "shfl_xor";
    if (MODE == Shuffle::UP) source = lane >= first + b ? lane - b : lane, what = "shfl_up";
    if (MODE == Shuffle::DOWN) source = lane + b <= last ? lane + b : lane, what = "shfl_down";
    return shuffle(mask, value, source, what, site);
#else
    (void)site;
    unsigned result, segment = (WARP - unsigned(width)) << 8;
    if (MODE == Shuffle::INDEX)
        asm volatile("shfl.sync.idx.b32 %0, %1, %2, %3, %4;"
                     : "=r"(result) : "r"(value), "r"(b), "r"(segment | 0x1f), "r"(mask));
    if (MODE == Shuffle::XOR)
        asm volatile("shfl.sync.bfly.b32 %0, %1, %2, %3, %4;"
                     : "=r"(result) : "r"(value), "r"(b), "r"(segment | 0x1f), "r"(mask));
    if (MODE == Shuffle::UP)
        asm volatile("shfl.sync.up.b32 %0, %1, %2, %3, %4;"
                     : "=r"(result) : "r"(value), "r"(b), "r"(segment), "r"(mask));
    if (MODE == Shuffle::DOWN)
        asm volatile("shfl.sync.down.b32 %0, %1, %2, %3, %4;"
                     : "=r"(result) : "r"(value), "r"(b), "r"(segment | 0x1f), "r"(mask));
    return result;
#endif
}

template <Shuffle MODE, class T> BURRSTONE_DEVICE T shuffle_value(uint32_t mask, T value, unsigned b, int width, Site site) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) % 4 == 0, "shuffles move words");
    if constexpr (sizeof(T) == 1) {
        return bit_cast<T>(uint8_t(shuffle_word<MODE>(mask, bit_cast<uint8_t>(value), b, width, site)));
    } else if constexpr (sizeof(T) == 2) {
        return bit_cast<T>(uint16_t(shuffle_word<MODE>(mask, bit_cast<uint16_t>(value), b, width, site)));
    } else {
        struct Words {
            uint32_t w[sizeof(T) / 4];
        };
        Words words = bit_cast<Words>(value);
        for (unsigned i = 0; i < sizeof(T) / 4; ++i)
            words.w[i] = shuffle_word<MODE>(mask, words.w[i], b, width, site);
        return bit_cast<T>(words);
    }
}

} // namespace detail

// The value of lane `source` of the thread's segment of `width` lanes (a power of two).
template <class T> BURRSTONE_DEVICE T shfl(T value, unsigned source, int width = WARP, uint32_t mask = FULL_WARP, Site site = here()) {
    return detail::shuffle_value<detail::Shuffle::INDEX>(mask, value, source, width, site);
}

// The value of lane `lane ^ flip`.
template <class T> BURRSTONE_DEVICE T shfl_xor(T value, unsigned flip, int width = WARP, uint32_t mask = FULL_WARP, Site site = here()) {
    return detail::shuffle_value<detail::Shuffle::XOR>(mask, value, flip, width, site);
}

// The value of `delta` lanes below; the lowest lanes of a segment keep their own.
template <class T> BURRSTONE_DEVICE T shfl_up(T value, unsigned delta, int width = WARP, uint32_t mask = FULL_WARP, Site site = here()) {
    return detail::shuffle_value<detail::Shuffle::UP>(mask, value, delta, width, site);
}

// The value of `delta` lanes above; the highest lanes of a segment keep their own.
template <class T> BURRSTONE_DEVICE T shfl_down(T value, unsigned delta, int width = WARP, uint32_t mask = FULL_WARP, Site site = here()) {
    return detail::shuffle_value<detail::Shuffle::DOWN>(mask, value, delta, width, site);
}

// The lanes whose predicate holds.
BURRSTONE_DEVICE uint32_t ballot(bool predicate, uint32_t mask = FULL_WARP, Site site = here()) {
#ifdef BURRSTONE_SIM
    detail::VoteRecord record{predicate, 0};
    burrstone_sim.warp(mask, false, detail::run_ballot, &record, "ballot", site.file, site.line);
    return record.result;
#else
    (void)site;
    uint32_t votes;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; vote.sync.ballot.b32 %0, p, %2; }"
                 : "=r"(votes) : "r"(uint32_t(predicate)), "r"(mask));
    return votes;
#endif
}

BURRSTONE_DEVICE bool any(bool predicate, uint32_t mask = FULL_WARP, Site site = here()) {
    return ballot(predicate, mask, site) != 0;
}

BURRSTONE_DEVICE bool all(bool predicate, uint32_t mask = FULL_WARP, Site site = here()) {
    return ballot(predicate, mask, site) == mask;
}

// The lanes that hold the same value.
BURRSTONE_DEVICE uint32_t match_any(uint32_t value, uint32_t mask = FULL_WARP, Site site = here()) {
#ifdef BURRSTONE_SIM
    detail::VoteRecord record{value, 0};
    burrstone_sim.warp(mask, false, detail::run_match, &record, "match_any", site.file, site.line);
    return record.result;
#else
    (void)site;
    uint32_t lanes;
    asm volatile("match.any.sync.b32 %0, %1, %2;" : "=r"(lanes) : "r"(value), "r"(mask));
    return lanes;
#endif
}

} // namespace burrstone

#endif
