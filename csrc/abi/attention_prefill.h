#ifndef BURRSTONE_ABI_ATTENTION_PREFILL_H
#define BURRSTONE_ABI_ATTENTION_PREFILL_H
#include "abi/tensor_map.h"
#include "abi/types.h"

/* A tile of queries of one sequence: with those behind it, or taken along with those before it. */
typedef struct attention_tile {
    uint32_t span;
    /* First query of the tile, counted from the span's start. */
    uint32_t first;
} attention_tile;

/* Softmax attention of many queries of each sequence over the paged cache. */
typedef struct attention_prefill_args {
    /* On Hopper, 16 bits, where entries lie at multiples of 16 bytes: keys and values as [entries, head_dim], in boxes
     * of box_rows entries of a page and 64 columns, with a swizzle of 128 bytes. Else zeros. */
    tensor_map key_boxes;
    tensor_map value_boxes;
    device_ptr query;        /* [tokens, heads, head_dim] */
    device_ptr out;          /* [tokens, heads, head_dim] */
    device_ptr keys;         /* one layer: [pages, kv_heads, page_size, head_dim] */
    device_ptr values;       /* the same */
    device_ptr key_scales;   /* int8 cache: f32 [pages, kv_heads, page_size]; else 0 */
    device_ptr value_scales; /* the same */
    device_ptr slopes;       /* f32 [heads]: a score rises by slope * (key's position - query's); or 0 */
    device_ptr sinks;        /* f32 [heads]: a score without a value, seen by every query of the head; or 0 */
    device_ptr masks;        /* attention_mask [tokens]; 0 where every query sees all before it and itself */
    device_ptr spans;        /* attention_span */
    device_ptr page_table;   /* u32 */
    device_ptr tiles;        /* attention_tile [tiles_len] */
    uint32_t tiles_len;
    uint32_t tile_queries; /* blocks work on as many queries of a span, from a multiple of as many on */
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t page_bits; /* log2 of the page size */
    uint32_t box_rows;  /* a power of two from 8 to 64; 0 where there are no boxes */
    uint32_t window;    /* a query at p sees p - window + 1 ..= p; 0 sees all */
    uint32_t chunk;     /* a query sees positions of its own chunk of so many; 0 sees all */
    float scale;        /* of the scores, before the softmax */
    float soft_cap;     /* scores become soft_cap * tanh(score / soft_cap); 0 leaves them */
    float key_scale;    /* fp8 cache: x = stored * scale; 1 for the others */
    float value_scale;
    uint32_t unused[11]; /* zeros: up to a multiple of the maps' alignment */
} attention_prefill_args;

#endif
