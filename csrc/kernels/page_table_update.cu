// Writes entries of a page table, one thread each.
#ifndef BURRSTONE_KERNELS_PAGE_TABLE_UPDATE_CU
#define BURRSTONE_KERNELS_PAGE_TABLE_UPDATE_CU

#include "abi/page_table_update.h"
#include "kernels/copy.cuh"

namespace burrstone {

template <class V> struct page_table_update_shared {};

template <class V> BURRSTONE_DEVICE void page_table_update(const page_table_update_args &args, page_table_update_shared<V> &) {
    const uint64_t i = uint64_t(block_index_x()) * V::threads + thread_index();
    if (i >= args.count) return;
    const uint32_t *change = pointer<const uint32_t>(args.changes) + 2 * i;
    const uint32_t entry = load_cached(change), page = load_cached(change + 1);
    // Entries come from the device and are unchecked.
    if (entry < args.entries) store(pointer<uint32_t>(args.table) + entry, page);
}

} // namespace burrstone

#endif
