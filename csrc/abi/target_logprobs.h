#ifndef BURRSTONE_ABI_TARGET_LOGPROBS_H
#define BURRSTONE_ABI_TARGET_LOGPROBS_H
#include "types.h"

/* out[i] = log softmax(logits[i])[targets[i]]; NaN where a logit of the row is NaN or +infinity. */
typedef struct target_logprobs_args {
    device_ptr logits;  /* f32 [rows, vocab] */
    device_ptr targets; /* u32 [rows] */
    device_ptr out;     /* f32 [rows] */
    uint32_t rows;
    uint32_t vocab;
} target_logprobs_args;

#endif
