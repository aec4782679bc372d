#ifndef BURRSTONE_ABI_MATMUL_H
#define BURRSTONE_ABI_MATMUL_H
#include "abi/tensor_map.h"
#include "abi/types.h"

/* Elements of k whose products are one chain of additions; see csrc/kernels/matmul.cu. */
#define BURRSTONE_MATMUL_SPAN 512

/* out = x weight^T + bias. */
typedef struct matmul_args {
    /* x and the weight in boxes of 64 elements of k and a tile's rows, with a swizzle of 128 bytes: on Hopper, where
     * rows are grains of 16 bytes; zeros elsewhere. */
    tensor_map x_boxes;
    tensor_map weight_boxes;
    device_ptr x;        /* [m, k] */
    device_ptr weight;   /* [n, k] */
    device_ptr bias;     /* [n] or 0 */
    device_ptr out;      /* [m, n] */
    device_ptr arrivals; /* u32 [tiles]: 0 before and after the launch; not used with one split */
    device_ptr partials; /* f32 [tiles, spans, tile], at a multiple of 16 bytes; not used with one split */
    uint32_t m;
    uint32_t n;
    uint32_t k;
    uint32_t splits; /* blocks that share the spans of a tile: at least 1, at most the spans */
} matmul_args;

#endif
