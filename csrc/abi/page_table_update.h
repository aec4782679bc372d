#ifndef BURRSTONE_ABI_PAGE_TABLE_UPDATE_H
#define BURRSTONE_ABI_PAGE_TABLE_UPDATE_H
#include "types.h"

/* Writes entries of a page table. */
typedef struct page_table_update_args {
    device_ptr table;   /* u32 [entries] */
    device_ptr changes; /* u32 [count, 2]: entry, page; no entry twice */
    uint32_t count;
    uint32_t entries; /* a change of another one is left out */
} page_table_update_args;

#endif
