// out[t] = op(a[t], b[t], n): `a` is the value, `b` the lane, delta or predicate, `n` the width of segments.
#ifndef BURRSTONE_PROBES_WARP_CU
#define BURRSTONE_PROBES_WARP_CU

#include "abi/probe.h"
#include "common/kernel.cuh"

using warp_args = probe_args;

namespace burrstone {

template <class V> struct warp_shared {
    Shared<uint32_t, V::threads / 32> partial;
};

#define BURRSTONE_WARP_OP(NAME, EXPRESSION)                                                                            \
    struct op_##NAME {                                                                                                 \
        template <class S>                                                                                             \
        static BURRSTONE_DEVICE uint32_t run([[maybe_unused]] uint32_t a, [[maybe_unused]] uint32_t b,                 \
                                             [[maybe_unused]] int n, [[maybe_unused]] S &partial) {                    \
            return EXPRESSION;                                                                                         \
        }                                                                                                              \
    };
BURRSTONE_WARP_OP(shfl, shfl(a, b, n))
BURRSTONE_WARP_OP(shfl_xor, shfl_xor(a, b, n))
BURRSTONE_WARP_OP(shfl_up, shfl_up(a, b, n))
BURRSTONE_WARP_OP(shfl_down, shfl_down(a, b, n))
BURRSTONE_WARP_OP(ballot, ballot(b % 2))
BURRSTONE_WARP_OP(any, any(b % 32 == 5))
BURRSTONE_WARP_OP(all, all(b % 32 < 31))
BURRSTONE_WARP_OP(match_any, match_any(a % 7))
BURRSTONE_WARP_OP(sum, reduce_sum(a))
BURRSTONE_WARP_OP(max, reduce_max(a))
BURRSTONE_WARP_OP(sum_block, reduce_sum_block(a, partial))
BURRSTONE_WARP_OP(max_block, reduce_max_block(a, partial))
#undef BURRSTONE_WARP_OP

template <class V> BURRSTONE_DEVICE void warp(const warp_args &args, warp_shared<V> &shared) {
    unsigned t = thread_index();
    uint32_t a = load(pointer<uint32_t>(args.a) + t), b = load(pointer<uint32_t>(args.b) + t);
    store(pointer<uint32_t>(args.out) + t, V::op::run(a, b, int(args.n), shared.partial));
}

} // namespace burrstone

#endif
