#ifndef BURRSTONE_ABI_ACT_MUL_H
#define BURRSTONE_ABI_ACT_MUL_H
#include "abi/activation.h"
#include "abi/types.h"

/* out[t, i] = activation(gate_up[t, i]) * gate_up[t, width + i]. */
typedef struct act_mul_args {
    device_ptr gate_up; /* [rows, 2 width] */
    device_ptr out;     /* [rows, width] */
    device_ptr scales;  /* f32 [rows]: what a quantized output must be multiplied by; 0 where it is not quantized */
    uint32_t rows;
    uint32_t width;
    uint32_t activation; /* one of abi/activation.h */
    uint32_t padding;
} act_mul_args;

#endif
