#ifndef BURRSTONE_ABI_RMS_NORM_H
#define BURRSTONE_ABI_RMS_NORM_H
#include "types.h"

/* residual += delta where given; out = norm(residual) * (weight + weight_offset) + bias. */
typedef struct rms_norm_args {
    device_ptr residual; /* [rows, width], written only where delta is given */
    device_ptr delta;    /* [rows, width] or 0 */
    device_ptr weight;   /* [width] */
    device_ptr bias;     /* [width] or 0 */
    device_ptr out;      /* [rows, width] */
    device_ptr scales;   /* f32 [rows]: what a quantized output must be multiplied by; 0 where it is not quantized */
    uint32_t rows;
    uint32_t width;
    float eps;
    float weight_offset; /* 1 where a checkpoint stores gains less one */
} rms_norm_args;

#endif
