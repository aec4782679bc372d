#ifndef BURRSTONE_ABI_PROBE_H
#define BURRSTONE_ABI_PROBE_H

#include "abi/types.h"

struct first_lane_args {
    device_ptr out;
};

#endif
