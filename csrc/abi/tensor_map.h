#ifndef BURRSTONE_ABI_TENSOR_MAP_H
#define BURRSTONE_ABI_TENSOR_MAP_H
#include "abi/types.h"

/* A tensor and the boxes it is copied in. Made by the device: CUDA's CUtensorMap, or the simulator's own. Opaque, 128
 * bytes at a multiple of 64. */
typedef struct tensor_map {
#ifdef __cplusplus
    alignas(64)
#else
    _Alignas(64)
#endif
        uint64_t opaque[16];
} tensor_map;

#endif
