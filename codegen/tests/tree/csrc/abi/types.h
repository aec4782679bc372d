#ifndef BURRSTONE_ABI_TYPES_H
#define BURRSTONE_ABI_TYPES_H

#if defined(__CUDACC_RTC__)
typedef int int32_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

// An address in the device's memory.
typedef uint64_t device_ptr;

#endif
