#ifndef BURRSTONE_ABI_MATMUL_H
#define BURRSTONE_ABI_MATMUL_H
#include "abi/activation.h"
#include "abi/tensor_map.h"
#include "abi/types.h"

/* Elements of k whose products are one chain of additions; see csrc/kernels/matmul.cu. */
#define BURRSTONE_MATMUL_K_SLICE 512

/* Tiles whose arrivals a workspace counts. */
#define BURRSTONE_MATMUL_COUNTERS 4096

/* Gates lie so many rows before what they let through: a thread has both of them, in the fragments of every architecture
 * that keeps a tile in registers. */
#define BURRSTONE_MATMUL_GATES 8

/* Rows of codes are filled up to a multiple of this: tiles of every variant, and pairs of them, have whole ones. */
#define BURRSTONE_MATMUL_CODE_ROWS 256

/* What the two blocks of a pair both multiply, and bring each other halves of: neighbours along n the rows of x, along m those
 * of the weight. */
#define BURRSTONE_MATMUL_PAIR_X 1
#define BURRSTONE_MATMUL_PAIR_WEIGHT 2

/* Types of eight bits that out may have. */
#define BURRSTONE_MATMUL_E4M3 1
#define BURRSTONE_MATMUL_I8 2

/* out = x weight^T + bias. With an activation, out = activation(gate) * up, where gate and up are the results for rows
 * of the weight that alternate: BURRSTONE_MATMUL_GATES gates, as many ups, and so on; the last ones are filled up. Each
 * is rounded to x's type first, if out is not f32. With accumulate, which goes with neither an activation nor codes, what
 * out would be is rounded to its type, and added to what it holds. */
typedef struct matmul_args {
    /* x and the weight in boxes of 64 elements of k and a tile's rows, half of them of what a pair shares, with a swizzle of
     * 128 bytes: on Hopper, where rows are aligned to 16 bytes; zeros elsewhere. */
    tensor_map x_boxes;
    tensor_map weight_boxes;
    device_ptr x;        /* [m, k] */
    device_ptr weight;   /* [n, k]; or codes: see src/kernels/packed_weight.rs */
    device_ptr bias;     /* [n] or 0 */
    device_ptr out;      /* [m, columns] */
    device_ptr scale;    /* f32 [1]: with codes, what results are divided by; or 0 */
    /* u32 [BURRSTONE_MATMUL_COUNTERS]: arrivals at each tile, 0 before and after the launch; then f32 [tiles, K slices,
     * tile]: sums. At a multiple of 16 bytes; not used with one split. */
    device_ptr workspace;
    uint32_t m;
    uint32_t n;
    uint32_t k;
    uint32_t splits;     /* blocks that share the K slices of a tile: at least 1, at most their number */
    uint32_t columns;    /* n; with an activation the number of gates */
    uint32_t activation; /* one of abi/activation.h, for outputs of x's type; or 0 */
    /* One of the above in clusters of two blocks, on Hopper, with boxes and one split; or 0. */
    uint32_t pair;
    /* One of the types above that results of x's type are rounded to, saturating: then columns, and the address of out,
     * are multiples of 4; or 0. */
    uint32_t codes;
    uint32_t accumulate; /* 1 where results are added to what out holds; or 0 */
    /* Of codes: groups of 2^code_group_bits elements of k, at least 16. */
    uint32_t code_group_bits;
    /* u32 [groups, rows]: the scale in x's type in the lower half, the zero point in the upper one. With code_floats f32, and
     * all zero points are code_zero. */
    device_ptr code_scales;
    device_ptr code_table; /* f32 [16]: what codes of four bits stand for, with code_floats; or 0 */
    uint32_t code_floats;
    uint32_t code_zero;
    uint32_t padding[4];
} matmul_args;

#endif
