#ifndef BURRSTONE_ABI_ROTARY_KV_WRITE_H
#define BURRSTONE_ABI_ROTARY_KV_WRITE_H
#include "types.h"

/* Norms (where asked) and rotates queries and keys; writes keys and values to their slots in the cache. */
typedef struct rotary_kv_write_args {
    device_ptr qkv;          /* [tokens, heads + 2 kv_heads, head_dim] */
    device_ptr query;        /* [tokens, heads, head_dim] */
    device_ptr keys;         /* one layer: [pages, kv_heads, page_size, head_dim] */
    device_ptr values;       /* the same */
    device_ptr key_scales;   /* int8 cache: f32 [pages, kv_heads, page_size]; else 0 */
    device_ptr value_scales; /* the same */
    device_ptr slots;        /* u32 [tokens]: page * page_size + offset; nothing is written for one from slot_count on */
    device_ptr rope_rows;    /* u32 [tokens]: of rope_table and, behind its last, of rope; nothing is written for another */
    device_ptr rope_table;   /* f32 [table_rows, 2, rotary_dim / 2]: cosines, sines */
    device_ptr rope;         /* f32 [rows, 2, rotary_dim / 2] */
    device_ptr query_gain;   /* [head_dim] or 0: no norm */
    device_ptr key_gain;     /* [head_dim] or 0 */
    uint32_t tokens;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t rotary_dim; /* element i pairs with i + rotary_dim / 2 */
    uint32_t page_size;
    float eps;
    float gain_offset;
    float key_scale; /* fp8 cache: stored = x / scale, one for the whole layer */
    float value_scale;
    uint32_t slot_count; /* pages * page_size, at most BURRSTONE_NO_SLOT */
    uint32_t table_rows;
    uint32_t rows;
    uint32_t padding;
} rotary_kv_write_args;

#endif
