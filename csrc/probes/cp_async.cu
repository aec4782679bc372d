// Copies two groups of `bytes` per thread through shared memory; in the second group only n bytes of a thread's copy
// are valid. out = a, with zeros for the rest; each thread writes its neighbour's copy.
#ifndef BURRSTONE_PROBES_CP_ASYNC_CU
#define BURRSTONE_PROBES_CP_ASYNC_CU

#include "abi/probe.h"
#include "common/cp_async.cuh"
#include "common/kernel.cuh"

using cp_async_args = probe_args;

namespace burrstone {

struct copy_correct {};
struct copy_no_wait {};
struct copy_wait_too_few {};
struct copy_no_barrier {};
struct copy_over_read {};
template <class A, class B> constexpr bool same = false;
template <class A> constexpr bool same<A, A> = true;

template <class V> struct cp_async_shared {
    Shared<uint8_t, 2 * V::threads * V::bytes> tile;
};

template <class V> BURRSTONE_DEVICE void cp_async(const cp_async_args &args, cp_async_shared<V> &shared) {
    using P = typename V::plant;
    constexpr unsigned N = V::bytes, HALF = V::threads * N;
    unsigned t = thread_index(), other = t ^ 33;
    const uint8_t *in = pointer<uint8_t>(args.a);
    uint8_t *out = pointer<uint8_t>(args.out);
    if (same<P, copy_over_read>) {
        shared.tile.store(t * N, uint8_t(1));
        sync_block();
        store(out, shared.tile.load(other * N));
    }
    cp_async<V::bytes>(shared.tile.address(t * N), in + t * N);
    cp_async_commit();
    cp_async<V::bytes>(shared.tile.address(HALF + t * N), in + HALF + t * N, args.n);
    cp_async_commit();
    if (!same<P, copy_no_wait>) cp_async_wait<1>();
    if (!same<P, copy_no_barrier>) sync_block();
    for (unsigned i = 0; i < N; ++i) store(out + other * N + i, shared.tile.load(other * N + i));
    if (!same<P, copy_wait_too_few>) cp_async_wait<0>();
    sync_block();
    for (unsigned i = 0; i < N; ++i) store(out + HALF + other * N + i, shared.tile.load(HALF + other * N + i));
}

} // namespace burrstone

#endif
