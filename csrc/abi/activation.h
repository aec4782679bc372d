#ifndef BURRSTONE_ABI_ACTIVATION_H
#define BURRSTONE_ABI_ACTIVATION_H

/* What a gate goes through before it is multiplied; 0 is left for no gate at all. */
#define BURRSTONE_SILU 1u
#define BURRSTONE_GELU_TANH 2u
#define BURRSTONE_GELU_ERF 3u

#endif
