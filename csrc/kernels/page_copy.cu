// Copies pages of the KV cache. Grid [pairs, planes, pieces of a page].
#ifndef BURRSTONE_KERNELS_PAGE_COPY_CU
#define BURRSTONE_KERNELS_PAGE_COPY_CU

#include "abi/page_copy.h"
#include "kernels/copy.cuh"

namespace burrstone {

template <class V> struct page_copy_shared {};

template <class V> BURRSTONE_DEVICE void page_copy(const page_copy_args &args, page_copy_shared<V> &) {
    const uint32_t *pair = pointer<const uint32_t>(args.pairs) + uint64_t(block_index_x()) * 2;
    const uint32_t from = load_cached(pair), to = load_cached(pair + 1);
    // Page numbers come from the device and are unchecked.
    if (from >= args.pages || to >= args.pages) return;
    const uint64_t plane = args.cache + block_index_y() * args.plane_bytes;
    copy_bytes(plane + to * args.page_bytes, plane + from * args.page_bytes, args.page_bytes,
               uint64_t(block_index_z()) * V::threads + thread_index(), uint64_t(grid_size_z()) * V::threads);
}

} // namespace burrstone

#endif
