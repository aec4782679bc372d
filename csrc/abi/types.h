/* What argument structs are made of. Plain C with fixed widths: bindgen makes the Rust twin, src/kernels/abi.rs. */
#ifndef BURRSTONE_ABI_TYPES_H
#define BURRSTONE_ABI_TYPES_H

#ifdef __CUDACC_RTC__
/* NVRTC brings no <stdint.h>. */
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
#else
#include <stdint.h>
#endif

/* An address in the device's memory; 0 where an optional array is absent. */
typedef uint64_t device_ptr;

/* One sequence's share of a batch. */
typedef struct attention_span {
    /* First token of the sequence in the flat batch. */
    uint32_t start;
    /* Tokens of the sequence in this batch; 0 in a row that only pads a captured step. */
    uint32_t len;
    /* Tokens in the cache once this batch is written; the last query sits at position kv_len - 1. */
    uint32_t kv_len;
    /* First entry of the sequence in the page table. */
    uint32_t pages;
} attention_span;

/* What a query sees other than all before it and itself. Zeros for a query that sees just that. */
typedef struct attention_mask {
    /* A range of positions that the query's is in, all of which it sees, and those of its window and chunk besides: an
     * image's, say. Every query of the range has the same one, and its keys are in the cache. */
    uint32_t begin;
    uint32_t end;
    /* Where the queries of a sequence in this batch, at most 64, are nodes of a tree, parents before their children:
     * those on the way from the root to this one, itself included, from the lowest bit of branch[0] on. It sees them
     * and what is in the cache before the batch; window and chunk count from behind the nodes above it, slopes from
     * its key. */
    uint32_t branch[2];
} attention_mask;

/* The slot of a token that only pads a captured step: nothing is written for it. */
#define BURRSTONE_NO_SLOT 0xffffffffu

#endif
