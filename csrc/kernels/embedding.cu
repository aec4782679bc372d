// Gathers rows of a table. Bytes are copied, so one variant serves every dtype on every architecture.
#ifndef BURRSTONE_KERNELS_EMBEDDING_CU
#define BURRSTONE_KERNELS_EMBEDDING_CU

#include "abi/embedding.h"
#include "kernels/copy.cuh"

namespace burrstone {

template <class V> struct embedding_shared {};

// Grid [rows, pieces of a row].
template <class V> BURRSTONE_DEVICE void embedding(const embedding_args &args, embedding_shared<V> &) {
    const uint64_t to = args.out + block_index_x() * args.row_bytes;
    const uint32_t row = load_cached(pointer<const uint32_t>(args.rows) + block_index_x());
    const uint64_t first = uint64_t(block_index_y()) * V::threads + thread_index();
    const uint64_t step = uint64_t(grid_size_y()) * V::threads;
    if (row < args.table_rows) {
        copy_bytes(to, args.table + row * args.row_bytes, args.row_bytes, first, step);
    } else {
        // Indices come from the device and are unchecked. An invalid one gives NaN, which cannot be mistaken for a
        // result.
        for (uint64_t i = first; i < args.row_bytes; i += step) store(pointer<uint8_t>(to) + i, uint8_t(0xff));
    }
}

} // namespace burrstone

#endif
