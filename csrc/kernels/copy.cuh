// Byte copies in the widest accesses that addresses and length allow.
#ifndef BURRSTONE_KERNELS_COPY_CUH
#define BURRSTONE_KERNELS_COPY_CUH

#include "common/kernel.cuh"

namespace burrstone {

namespace detail {

template <class Word>
BURRSTONE_DEVICE void copy_words(device_ptr to, device_ptr from, uint64_t bytes, uint64_t first, uint64_t step, Site site) {
    for (uint64_t i = first; i < bytes / sizeof(Word); i += step)
        store(pointer<Word>(to) + i, load(pointer<const Word>(from) + i, site), site);
}

} // namespace detail

// The share of thread `first` of `step` in a copy.
BURRSTONE_DEVICE void copy_bytes(device_ptr to, device_ptr from, uint64_t bytes, uint64_t first, uint64_t step, Site site = here()) {
    const uint64_t fit = to | from | bytes;
    if (fit % 16 == 0)
        detail::copy_words<vec<uint32_t, 4>>(to, from, bytes, first, step, site);
    else if (fit % 4 == 0)
        detail::copy_words<uint32_t>(to, from, bytes, first, step, site);
    else if (fit % 2 == 0)
        detail::copy_words<uint16_t>(to, from, bytes, first, step, site);
    else
        detail::copy_words<uint8_t>(to, from, bytes, first, step, site);
}

} // namespace burrstone

#endif
