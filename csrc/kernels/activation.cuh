// Activations of gated feed-forward layers.
#ifndef BURRSTONE_KERNELS_ACTIVATION_CUH
#define BURRSTONE_KERNELS_ACTIVATION_CUH

#include "abi/activation.h"
#include "common/kernel.cuh"

namespace burrstone {

// SiLU and the tanh form of GELU are both x times a sigmoid: 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)). In this form
// nothing cancels for u far below 0. The fast functions are within a few f32 ulp, which rounding to the output hides.
BURRSTONE_DEVICE float activate(uint32_t activation, float x) {
    if (activation == BURRSTONE_GELU_ERF) return 0.5f * x * (1.0f + erf_(0.7071067811865476f * x));
    const float twice = 1.5957691216057308f * fma_(0.044715f * x * x, x, x);
    const float u = activation == BURRSTONE_SILU ? x : twice;
    return x * reciprocal_fast(1.0f + exp2_fast(-LOG2_E * u));
}

// activation(gate) * up.
template <class T> BURRSTONE_DEVICE float gated(uint32_t activation, T gate, T up) {
    return activate(activation, to_float(gate)) * to_float(up);
}

} // namespace burrstone

#endif
