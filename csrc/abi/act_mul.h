#ifndef BURRSTONE_ABI_ACT_MUL_H
#define BURRSTONE_ABI_ACT_MUL_H
#include "types.h"

/* out[t, i] = activation(gate_up[t, i]) * gate_up[t, width + i]. */
typedef struct act_mul_args {
    device_ptr gate_up; /* [rows, 2 width] */
    device_ptr out;     /* [rows, width] */
    uint32_t rows;
    uint32_t width;
    uint32_t activation; /* 0 SiLU, 1 GELU by tanh, 2 GELU by erf */
    uint32_t padding;
} act_mul_args;

#endif
