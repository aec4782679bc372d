#ifndef BURRSTONE_ABI_PROBE_H
#define BURRSTONE_ABI_PROBE_H
#include "abi/tensor_map.h"
#include "abi/types.h"

/* What every probe of a primitive takes: what the words mean is the probe's own. */
typedef struct probe_args {
    tensor_map map;
    device_ptr a;
    device_ptr b;
    device_ptr c;
    device_ptr out;
    uint32_t n;
    uint32_t m;
    uint32_t padding[6];
} probe_args;

#endif
