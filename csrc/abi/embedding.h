#ifndef BURRSTONE_ABI_EMBEDDING_H
#define BURRSTONE_ABI_EMBEDDING_H
#include "types.h"

/* out[t] = table[rows[t]]; a gather of rows of any table. Rows that the table lacks come out with every bit set. */
typedef struct embedding_args {
    device_ptr out;   /* [tokens, width] */
    device_ptr table; /* [table_rows, width] */
    device_ptr rows;  /* u32 [tokens] */
    uint64_t row_bytes;
    uint32_t tokens;
    uint32_t table_rows;
} embedding_args;

#endif
