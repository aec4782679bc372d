// d = 1 + a b over K = 32, as two products into one accumulator. `c` holds words: the bytes of the images of a and b;
// then for each its leading distance, its stride, and the distance between the starts of the two products. `a` and `b`
// are images of shared memory; for a in registers, words [step][thread][4]. out[thread] is the thread's registers.
#ifndef BURRSTONE_PROBES_WGMMA_CU
#define BURRSTONE_PROBES_WGMMA_CU

#include "abi/probe.h"
#include "common/kernel.cuh"
#include "common/wgmma.cuh"

using wgmma_args = probe_args;

namespace burrstone {

struct a_k {
    static constexpr bool registers = false, mn = false;
};
struct a_mn {
    static constexpr bool registers = false, mn = true;
};
struct a_registers {
    static constexpr bool registers = true, mn = false;
};
struct b_k {
    static constexpr bool mn = false;
};
struct b_mn {
    static constexpr bool mn = true;
};
struct product_correct {
    static constexpr bool wait = true, early_write = false, fence = true, grouped = true;
};
struct product_no_wait {
    static constexpr bool wait = false, early_write = false, fence = true, grouped = true;
};
struct product_early_write {
    static constexpr bool wait = true, early_write = true, fence = true, grouped = true;
};
struct product_no_fence {
    static constexpr bool wait = true, early_write = false, fence = false, grouped = true;
};
// Each product twice, in a group of its own: the next one starts while one runs.
struct product_chained {
    static constexpr bool wait = true, early_write = false, fence = true, grouped = false;
};

template <class V> struct wgmma_shared {
    Shared<uint32_t, 64 * 64 / 2, 1024> a;
    Shared<uint32_t, V::n * 64 / 2, 1024> b;
};

template <class V> BURRSTONE_DEVICE void wgmma(const wgmma_args &args, wgmma_shared<V> &shared) {
    using T = typename V::dtype;
    constexpr MatrixSwizzle SWIZZLE = V::swizzle == 0    ? MatrixSwizzle::NONE
                                      : V::swizzle == 32 ? MatrixSwizzle::BYTES_32
                                      : V::swizzle == 64 ? MatrixSwizzle::BYTES_64
                                                         : MatrixSwizzle::BYTES_128;
    unsigned t = thread_index();
    uint32_t c[8];
    for (int i = 0; i < 8; ++i) c[i] = load(pointer<uint32_t>(args.c) + i);
    for (unsigned i = t; i < c[0] / 4; i += 128)
        if (!V::a::registers) shared.a.store(i, load(pointer<uint32_t>(args.a) + i));
    for (unsigned i = t; i < c[1] / 4; i += 128) shared.b.store(i, load(pointer<uint32_t>(args.b) + i));
    if (V::plant::fence) fence_async();
    sync_block();

    float d[V::n / 2];
    for (int i = 0; i < V::n / 2; ++i) d[i] = 1.0f;
    wgmma_fence();
    for (int i = 0; i < (V::plant::grouped ? 2 : 4); ++i) {
        const int step = i % 2;
        uint64_t b = matrix_descriptor(shared.b.address(0) + step * c[7], c[5], c[6], SWIZZLE);
        if constexpr (V::a::registers) {
            uint32_t a[4];
            for (int w = 0; w < 4; ++w) a[w] = load(pointer<uint32_t>(args.a) + (step * 128 + t) * 4 + w);
            wgmma<V::n, T, V::b::mn>(d, a, b, true);
        } else {
            uint64_t a = matrix_descriptor(shared.a.address(0) + step * c[4], c[2], c[3], SWIZZLE);
            wgmma<V::n, T, V::a::mn, V::b::mn>(d, a, b, true);
        }
        if (V::plant::grouped) continue;
        wgmma_commit();
        wgmma_wait<1>();
    }
    wgmma_commit();
    if (V::plant::early_write) {
        for (unsigned i = t; i < shared.b.size; i += 128) shared.b.store(i, 0);
        fence_async();
        sync_block();
    }
    if (V::plant::wait) wgmma_wait<0>(d);
    for (int i = 0; i < V::n / 2; ++i) store(pointer<float>(args.out) + t * V::n / 2 + i, d[i]);
    if (!V::plant::wait) wgmma_wait<0>(d);
}

} // namespace burrstone

#endif
