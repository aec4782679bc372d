#ifndef BURRSTONE_ABI_EMBEDDING_H
#define BURRSTONE_ABI_EMBEDDING_H
#include "types.h"

/* out[t] = table[rows[t]]; a gather of rows of any table. */
typedef struct embedding_args {
    device_ptr out;   /* [tokens, width] */
    device_ptr table; /* [table_rows, width] */
    device_ptr rows;  /* u32 [tokens], each below table_rows */
    uint32_t tokens;
    uint32_t width;
    uint32_t table_rows;
    uint32_t padding;
} embedding_args;

#endif
