// Permutes the columns of a matrix of 16-bit elements. Elements are copied, so one variant serves f16 and bf16.
#ifndef BURRSTONE_KERNELS_PERMUTE_COLUMNS_CU
#define BURRSTONE_KERNELS_PERMUTE_COLUMNS_CU

#include "abi/permute_columns.h"
#include "kernels/row.cuh"

namespace burrstone {

template <class V> struct permute_columns_shared {};

// Grid [rows, pieces of a row]. A row is read from L1 or L2 in any order, and written in order.
template <class V> BURRSTONE_DEVICE void permute_columns(const permute_columns_args &args, permute_columns_shared<V> &) {
    const uint64_t row = uint64_t(block_index_x()) * args.width;
    const uint32_t step = grid_size_y() * V::threads * VEC8;
    const auto *x = pointer<const uint16_t>(args.x) + row;
    auto *out = pointer<uint16_t>(args.out) + row;
    for (uint32_t at = (block_index_y() * V::threads + thread_index()) * VEC8; at < args.width; at += step) {
        const Vec8<uint32_t> from = load_vec8(pointer<const uint32_t>(args.order), args.width, at, true);
        Vec8<uint16_t> elements;
        BURRSTONE_UNROLL
        for (int e = 0; e < VEC8; ++e) elements.v[e] = from.v[e] < args.width ? load_cached(x + from.v[e]) : uint16_t(0xffff);
        store(reinterpret_cast<Vec8<uint16_t> *>(out + at), elements);
    }
}

} // namespace burrstone

#endif
