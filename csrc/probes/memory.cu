// out[t] = a[t] of `bytes` per thread, loaded in three ways and passed through shared memory. Then, in words: the old
// values that thread t's atomics returned (global add, shared add), the final values of all (global add and max, shared
// add and max), and the old values of ordered adds to a third word of b.
#ifndef BURRSTONE_PROBES_MEMORY_CU
#define BURRSTONE_PROBES_MEMORY_CU

#include "abi/probe.h"
#include "common/kernel.cuh"

using memory_args = probe_args;

namespace burrstone {

template <class V> struct memory_shared {
    Shared<uint8_t, V::threads * V::bytes> through;
    Shared<uint32_t, 1> sum;
    Shared<int32_t, 1> most;
};

template <class V> BURRSTONE_DEVICE void memory(const memory_args &args, memory_shared<V> &shared) {
    using Bytes = vec<uint8_t, V::bytes>;
    unsigned t = thread_index();
    const Bytes *in = pointer<Bytes>(args.a) + t;
    Bytes value = t % 3 == 0 ? load(in) : t % 3 == 1 ? load_streaming(in) : load_cached(in);
    shared.through.template store_vec<V::bytes>(t * V::bytes, value);
    if (t == 0) {
        shared.sum.store(0, 0);
        shared.most.store(0, -1000);
    }
    sync_block();
    store(pointer<Bytes>(args.out) + t, shared.through.template load_vec<V::bytes>(t * V::bytes));

    // b: a sum and a maximum in global memory.
    uint32_t *words = pointer<uint32_t>(args.out + V::threads * V::bytes);
    store(words + t, atomic_add(pointer<uint32_t>(args.b), 1u));
    store(words + V::threads + t, shared.sum.atomic_add(0, 2u));
    int32_t mine = int32_t(t * 37 % 128) - 200;
    store(words + 2 * V::threads + 4 + t, atomic_add_ordered(pointer<uint32_t>(args.b) + 2, 3u));
    atomic_max(pointer<int32_t>(args.b) + 1, mine);
    shared.most.atomic_max(0, mine);
    fence_global();
    sync_block();
    if (t == 0) {
        words += 2 * V::threads;
        store(words, load(pointer<uint32_t>(args.b)));
        store(words + 1, load(pointer<uint32_t>(args.b) + 1));
        store(words + 2, shared.sum.load(0));
        store(words + 3, uint32_t(shared.most.load(0)));
    }
}

} // namespace burrstone

#endif
