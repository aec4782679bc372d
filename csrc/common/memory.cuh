// Access to global and shared memory. Kernels use only these functions, so that the simulator checks every access.
#ifndef BURRSTONE_COMMON_MEMORY_CUH
#define BURRSTONE_COMMON_MEMORY_CUH

#include "common/sync.cuh"
#include "common/types.cuh"

namespace burrstone {

// The typed form of an address in an argument struct.
template <class T> BURRSTONE_DEVICE T *pointer(device_ptr address) { return reinterpret_cast<T *>(address); }

namespace detail {

#ifndef BURRSTONE_SIM
// The register type of an access of BYTES.
template <int BYTES> struct Word;
template <> struct Word<1> { using type = uint8_t; };
template <> struct Word<2> { using type = uint16_t; };
template <> struct Word<4> { using type = uint32_t; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<16> { using type = uint4; };

#define BURRSTONE_GLOBAL_LOAD(NAME, OPERATION)                                                                         \
    template <class T> __device__ __forceinline__ T NAME(const T *address) {                                           \
        uint64_t at;                                                                                                   \
        asm("cvta.to.global.u64 %0, %1;" : "=l"(at) : "l"(address));                                                   \
        if constexpr (sizeof(T) == 16) {                                                                               \
            uint4 w;                                                                                                   \
            asm volatile(OPERATION ".v4.u32 {%0, %1, %2, %3}, [%4];"                                                   \
                         : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(at) : "memory");                           \
            return bit_cast<T>(w);                                                                                     \
        } else if constexpr (sizeof(T) == 8) {                                                                         \
            uint2 w;                                                                                                   \
            asm volatile(OPERATION ".v2.u32 {%0, %1}, [%2];" : "=r"(w.x), "=r"(w.y) : "l"(at) : "memory");             \
            return bit_cast<T>(w);                                                                                     \
        } else if constexpr (sizeof(T) == 4) {                                                                         \
            uint32_t w;                                                                                                \
            asm volatile(OPERATION ".u32 %0, [%1];" : "=r"(w) : "l"(at) : "memory");                                   \
            return bit_cast<T>(w);                                                                                     \
        } else if constexpr (sizeof(T) == 2) {                                                                         \
            uint16_t w;                                                                                                \
            asm volatile(OPERATION ".u16 %0, [%1];" : "=h"(w) : "l"(at) : "memory");                                   \
            return bit_cast<T>(w);                                                                                     \
        } else {                                                                                                       \
            static_assert(sizeof(T) == 1, "an access is 1, 2, 4, 8 or 16 bytes");                                      \
            uint32_t w;                                                                                                \
            asm volatile(OPERATION ".u8 %0, [%1];" : "=r"(w) : "l"(at) : "memory");                                    \
            return bit_cast<T>(uint8_t(w));                                                                            \
        }                                                                                                              \
    }

BURRSTONE_GLOBAL_LOAD(load_global, "ld.global")
BURRSTONE_GLOBAL_LOAD(load_no_allocate, "ld.global.L1::no_allocate")
BURRSTONE_GLOBAL_LOAD(load_read_only, "ld.global.nc")
#undef BURRSTONE_GLOBAL_LOAD

template <class T> __device__ __forceinline__ void store_global(T *address, T value) {
    uint64_t at;
    asm("cvta.to.global.u64 %0, %1;" : "=l"(at) : "l"(address));
    auto w = bit_cast<typename Word<sizeof(T)>::type>(value);
    if constexpr (sizeof(T) == 16)
        asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w) : "memory");
    else if constexpr (sizeof(T) == 8)
        asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(at), "r"(w.x), "r"(w.y) : "memory");
    else if constexpr (sizeof(T) == 4)
        asm volatile("st.global.u32 [%0], %1;" ::"l"(at), "r"(w) : "memory");
    else if constexpr (sizeof(T) == 2)
        asm volatile("st.global.u16 [%0], %1;" ::"l"(at), "h"(w) : "memory");
    else
        asm volatile("st.global.u8 [%0], %1;" ::"l"(at), "r"(uint32_t(w)) : "memory");
}
#endif

} // namespace detail

// One access of sizeof(T) bytes, aligned to its size.
template <class T> BURRSTONE_DEVICE T load(const T *address, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.global(address, sizeof(T), BURRSTONE_SIM_LOAD, site.file, site.line);
    return *address;
#else
    (void)site;
    return detail::load_global(address);
#endif
}

// A load of data that is read once: it is not kept in L1.
template <class T> BURRSTONE_DEVICE T load_streaming(const T *address, Site site = here()) {
#ifdef BURRSTONE_SIM
    return load(address, site);
#else
    (void)site;
    return detail::load_no_allocate(address);
#endif
}

// A load of data that no thread writes while the kernel runs.
template <class T> BURRSTONE_DEVICE T load_cached(const T *address, Site site = here()) {
#ifdef BURRSTONE_SIM
    return load(address, site);
#else
    (void)site;
    return detail::load_read_only(address);
#endif
}

template <class T> BURRSTONE_DEVICE void store(T *address, T value, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.global(address, sizeof(T), BURRSTONE_SIM_STORE, site.file, site.line);
    *address = value;
#else
    (void)site;
    detail::store_global(address, value);
#endif
}

namespace detail {

#ifdef BURRSTONE_SIM
template <class T> inline T max_of(T a, T b) { return a < b ? b : a; }
#else
BURRSTONE_DEVICE int max_in_place(int *at, int value) { return ::atomicMax(at, value); }
BURRSTONE_DEVICE uint32_t max_in_place(uint32_t *at, uint32_t value) { return ::atomicMax(at, value); }
#endif

} // namespace detail

// Atomic on one word of global memory; the old value comes back. Integers only in results: sums of floats that are
// added in no order differ from run to run.
template <class T> BURRSTONE_DEVICE T atomic_add(T *address, T value, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.global(address, sizeof(T), BURRSTONE_SIM_ATOMIC, site.file, site.line);
    T old = *address;
    *address = T(old + value);
    return old;
#else
    (void)site;
    return ::atomicAdd(address, value);
#endif
}

// The same, ordered at the scope of the whole GPU: what this thread has written or seen before, whoever finds the new value by
// such an add sees afterwards. With a barrier before it, that holds for the block's writes; with one behind it, for its reads.
BURRSTONE_DEVICE uint32_t atomic_add_ordered(uint32_t *address, uint32_t value, Site site = here()) {
#ifdef BURRSTONE_SIM
    return atomic_add(address, value, site);
#else
    (void)site;
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(value) : "memory");
    return old;
#endif
}

template <class T> BURRSTONE_DEVICE T atomic_max(T *address, T value, Site site = here()) {
#ifdef BURRSTONE_SIM
    burrstone_sim.global(address, sizeof(T), BURRSTONE_SIM_ATOMIC, site.file, site.line);
    T old = *address;
    *address = detail::max_of(old, value);
    return old;
#else
    (void)site;
    return detail::max_in_place(address, value);
#endif
}

// Makes this thread's writes to global memory visible to the whole GPU before its later ones.
BURRSTONE_DEVICE void fence_global() {
#ifndef BURRSTONE_SIM
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// N values in shared memory, uninitialised.
template <class T, int N, int ALIGN = 16> struct alignas(ALIGN) Shared {
    T data[N];

    static constexpr int size = N;

    BURRSTONE_DEVICE T load(unsigned i, Site site = here()) const { return load_vec<T>(i, site); }
    BURRSTONE_DEVICE void store(unsigned i, T value, Site site = here()) { store_vec<T>(i, value, site); }

    // M values from index i on, as one access of at most 16 bytes, aligned to its size.
    template <int M> BURRSTONE_DEVICE vec<T, M> load_vec(unsigned i, Site site = here()) const {
        return load_vec<vec<T, M>>(i, site);
    }
    template <int M> BURRSTONE_DEVICE void store_vec(unsigned i, vec<T, M> value, Site site = here()) {
        store_vec<vec<T, M>>(i, value, site);
    }

    // The old value comes back.
    BURRSTONE_DEVICE T atomic_add(unsigned i, T value, Site site = here()) {
#ifdef BURRSTONE_SIM
        check(i, sizeof(T), BURRSTONE_SIM_ATOMIC, site);
        T old = data[i];
        data[i] = T(old + value);
        return old;
#else
        (void)site;
        return ::atomicAdd(&data[i], value);
#endif
    }
    BURRSTONE_DEVICE T atomic_max(unsigned i, T value, Site site = here()) {
#ifdef BURRSTONE_SIM
        check(i, sizeof(T), BURRSTONE_SIM_ATOMIC, site);
        T old = data[i];
        data[i] = detail::max_of(old, value);
        return old;
#else
        (void)site;
        return detail::max_in_place(&data[i], value);
#endif
    }

    // The shared-window address of value i, for instructions that take one. Not an access.
    BURRSTONE_DEVICE uint32_t address(unsigned i, Site site = here()) const {
#ifdef BURRSTONE_SIM
        if (i > unsigned(N)) burrstone_sim.fault("address beyond the end of a shared array", site.file, site.line);
        return burrstone_sim.shared_address(data, site.file, site.line) + i * uint32_t(sizeof(T));
#else
        (void)site;
        return uint32_t(__cvta_generic_to_shared(data)) + i * uint32_t(sizeof(T));
#endif
    }

  private:
#ifdef BURRSTONE_SIM
    void check(unsigned i, uint32_t bytes, uint32_t access, Site site) const {
        burrstone_sim.shared(data, sizeof data, uint64_t(i) * sizeof(T), bytes, access, site.file, site.line);
    }
#endif
    template <class A> BURRSTONE_DEVICE A load_vec(unsigned i, Site site) const {
#ifdef BURRSTONE_SIM
        check(i, sizeof(A), BURRSTONE_SIM_LOAD, site);
        A value;
        __builtin_memcpy(&value, data + i, sizeof(A));
        return value;
#else
        (void)site;
        return bit_cast<A>(*reinterpret_cast<const typename detail::Word<sizeof(A)>::type *>(data + i));
#endif
    }
    template <class A> BURRSTONE_DEVICE void store_vec(unsigned i, A value, Site site) {
#ifdef BURRSTONE_SIM
        check(i, sizeof(A), BURRSTONE_SIM_STORE, site);
        __builtin_memcpy(static_cast<void *>(data + i), &value, sizeof(A));
#else
        (void)site;
        using W = typename detail::Word<sizeof(A)>::type;
        *reinterpret_cast<W *>(data + i) = bit_cast<W>(value);
#endif
    }
};

} // namespace burrstone

#endif
