#ifndef BURRSTONE_ABI_SCALE_H
#define BURRSTONE_ABI_SCALE_H

#include "abi/types.h"

// Multiplies `n` numbers at `values` by `factor`.
struct scale_args {
    device_ptr values;
    int32_t n;
    float factor;
};

#endif
