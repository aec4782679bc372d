#ifndef BURRSTONE_ABI_MATMUL_H
#define BURRSTONE_ABI_MATMUL_H
#include "types.h"

/* out = x weight^T + bias. */
typedef struct matmul_args {
    device_ptr x;      /* [m, k] */
    device_ptr weight; /* [n, k] */
    device_ptr bias;   /* [n] or 0 */
    device_ptr out;    /* [m, n] */
    uint32_t m;
    uint32_t n;
    uint32_t k;
    uint32_t padding;
} matmul_args;

#endif
