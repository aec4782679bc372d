#ifndef BURRSTONE_ABI_PERMUTE_COLUMNS_H
#define BURRSTONE_ABI_PERMUTE_COLUMNS_H
#include "abi/types.h"

/* out[r][j] = x[r][order[j]], elements of 16 bits. An index beyond a row comes out with every bit set. */
typedef struct permute_columns_args {
    device_ptr out;   /* [rows, width], at a multiple of 16 bytes */
    device_ptr x;     /* [rows, width] */
    device_ptr order; /* u32 [width], at a multiple of 16 bytes */
    uint32_t rows;
    uint32_t width; /* a multiple of 8 */
} permute_columns_args;

#endif
