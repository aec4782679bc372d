#ifndef BURRSTONE_ABI_PAGE_COPY_H
#define BURRSTONE_ABI_PAGE_COPY_H
#include "types.h"

/* Copies KV pages: in each of `planes` planes, page pairs[i][0] to page pairs[i][1]. */
typedef struct page_copy_args {
    device_ptr cache; /* [planes, pages, page_bytes], planes plane_bytes apart */
    device_ptr pairs; /* u32 [count, 2]: from, to */
    uint64_t plane_bytes;
    uint64_t page_bytes;
    uint32_t count;
    uint32_t planes;
    uint32_t pages; /* of a plane; a pair that names another is left out */
    uint32_t padding;
} page_copy_args;

#endif
