// Queries and keys: optional head norm and rotary embedding; keys and values: written to their slots in the paged
// cache. A group of lanes handles a head, so no block-wide barrier is needed.
#ifndef BURRSTONE_KERNELS_ROTARY_KV_WRITE_CU
#define BURRSTONE_KERNELS_ROTARY_KV_WRITE_CU

#include "abi/rotary_kv_write.h"
#include "kernels/row.cuh"

namespace burrstone {

template <class V> struct rotary_kv_write_shared {};

// What a lane handles at a time: eight elements of the first rotated half with their partners in the second; or, beyond
// the rotated part, eight elements alone.
template <class T> struct HeadUnit {
    Vec8<T> low;
    Vec8<T> high;
};

// How a head is divided into units.
struct HeadShape {
    // Rotated pairs, and elements that are not rotated.
    unsigned half, rest;
    unsigned pairs;
    bool whole;

    BURRSTONE_DEVICE HeadShape(unsigned half, unsigned dim, bool whole)
        : half(half), rest(dim - 2 * half), pairs((half + VEC8 - 1) / VEC8), whole(whole) {}
    BURRSTONE_DEVICE unsigned units() const { return pairs + (rest + VEC8 - 1) / VEC8; }
};

template <class T> BURRSTONE_DEVICE HeadUnit<T> load_unit(const HeadShape &shape, const T *head, unsigned u, Site site = here()) {
    HeadUnit<T> x = {};
    if (u < shape.pairs) {
        x.low = load_vec8(head, shape.half, u * VEC8, shape.whole, site);
        x.high = load_vec8(head + shape.half, shape.half, u * VEC8, shape.whole, site);
    } else {
        x.low = load_vec8(head + 2 * shape.half, shape.rest, (u - shape.pairs) * VEC8, shape.whole, site);
    }
    return x;
}

template <class T>
BURRSTONE_DEVICE void store_unit(const HeadShape &shape, T *head, unsigned u, HeadUnit<float> y, Site site = here()) {
    if (u < shape.pairs) {
        store_vec8(head, shape.half, u * VEC8, shape.whole, y.low, site);
        store_vec8(head + shape.half, shape.half, u * VEC8, shape.whole, y.high, site);
    } else {
        store_vec8(head + 2 * shape.half, shape.rest, (u - shape.pairs) * VEC8, shape.whole, y.low, site);
    }
}

// The sum over a head has a fixed order, as over a row: unit u belongs to chain u % HEAD_CHAINS.
constexpr int HEAD_CHAINS = 16;

// Scales of an 8-bit cache: floats have one per layer, integers one per head of each token.
template <class T> constexpr bool SCALED_BY_LAYER = false;
template <> constexpr bool SCALED_BY_LAYER<e4m3> = true;
template <> constexpr bool SCALED_BY_LAYER<e5m2> = true;
template <class T> constexpr bool SCALED_BY_ENTRY = false;
template <> constexpr bool SCALED_BY_ENTRY<i8> = true;

// Grid [tokens, groups of heads]: query heads, then key heads, then value heads.
template <class V> BURRSTONE_DEVICE void rotary_kv_write(const rotary_kv_write_args &args, rotary_kv_write_shared<V> &) {
    using T = typename V::dtype;
    using Cache = typename V::cache;
    constexpr unsigned LANES = V::lanes;
    constexpr int OWN_CHAINS = HEAD_CHAINS / V::lanes;
    static_assert(OWN_CHAINS * V::lanes == HEAD_CHAINS, "each lane has whole chains");

    const uint64_t token = block_index_x();
    const unsigned lane = thread_index() % LANES;
    const unsigned head = block_index_y() * (V::threads / LANES) + thread_index() / LANES;
    const unsigned heads = args.heads + 2 * args.kv_heads, d = args.head_dim;
    const bool query = head < args.heads, value = head >= args.heads + args.kv_heads;
    const uint32_t slot = load_cached(pointer<const uint32_t>(args.slots) + token);
    const uint32_t row = load_cached(pointer<const uint32_t>(args.rope_rows) + token);
    // Slots and rows come from the device and are unchecked; BURRSTONE_NO_SLOT means none.
    const bool absent = head >= heads || slot >= args.slot_count || (args.rotary_dim && row >= args.table_rows + args.rows);

    const bool whole = (args.rotary_dim / 2) % VEC8 == 0 && is_vectorizable<float>(args.rope_table | args.rope, d) &&
                       is_vectorizable<T>(args.qkv | args.query | args.query_gain | args.key_gain, d) &&
                       is_vectorizable<Cache>(args.keys | args.values, d);
    const HeadShape shape(value ? 0 : args.rotary_dim / 2, d, whole);
    const unsigned units = absent ? 0 : shape.units();

    const T *x = pointer<const T>(args.qkv) + (token * heads + head) * d;
    const device_ptr gain = query ? args.query_gain : value ? 0 : args.key_gain;

    float norm = 1.0f;
    // Uniform in a warp, because its groups meet in the reduction.
    if (args.query_gain || args.key_gain) {
        float squares[OWN_CHAINS] = {};
        for (unsigned first = lane; first < units; first += HEAD_CHAINS) {
            BURRSTONE_UNROLL
            for (int c = 0; c < OWN_CHAINS; ++c) {
                if (first + c * LANES >= units) break;
                const HeadUnit<T> v = load_unit(shape, x, first + c * LANES);
                BURRSTONE_UNROLL
                for (int e = 0; e < VEC8; ++e) {
                    const float low = to_float(v.low.v[e]), high = to_float(v.high.v[e]);
                    squares[c] = fma_(high, high, fma_(low, low, squares[c]));
                }
            }
        }
        BURRSTONE_UNROLL
        for (int step = OWN_CHAINS / 2; step > 0; step /= 2) {
            BURRSTONE_UNROLL
            for (int c = 0; c < step; ++c) squares[c] += squares[c + step];
        }
        const float sum = reduce_sum<V::lanes>(squares[0]);
        if (gain) norm = rsqrt_(sum / float(d) + args.eps);
    }

    const bool is_in_table = row < args.table_rows;
    const float *cosines = pointer<const float>(is_in_table ? args.rope_table : args.rope) +
                           uint64_t(is_in_table ? row : row - args.table_rows) * args.rotary_dim;
    const auto turned = [&](unsigned u) {
        const HeadUnit<T> raw = load_unit(shape, x, u);
        HeadUnit<float> y;
        BURRSTONE_UNROLL
        for (int e = 0; e < VEC8; ++e) y.low.v[e] = to_float(raw.low.v[e]), y.high.v[e] = to_float(raw.high.v[e]);
        if (gain) {
            const HeadUnit<T> g = load_unit(shape, pointer<const T>(gain), u);
            BURRSTONE_UNROLL
            for (int e = 0; e < VEC8; ++e) {
                y.low.v[e] *= norm * (to_float(g.low.v[e]) + args.gain_offset);
                y.high.v[e] *= norm * (to_float(g.high.v[e]) + args.gain_offset);
            }
        }
        if (u < shape.pairs) {
            const Vec8<float> cosine = load_vec8(cosines, shape.half, u * VEC8, whole);
            const Vec8<float> sine = load_vec8(cosines + shape.half, shape.half, u * VEC8, whole);
            BURRSTONE_UNROLL
            for (int e = 0; e < VEC8; ++e) {
                const float low = y.low.v[e], high = y.high.v[e];
                y.low.v[e] = fma_(low, cosine.v[e], -(high * sine.v[e]));
                y.high.v[e] = fma_(high, cosine.v[e], low * sine.v[e]);
            }
        }
        return y;
    };

    const unsigned kv_head = head - args.heads - (value ? args.kv_heads : 0);
    const uint64_t page = slot / args.page_size, place = slot % args.page_size;
    const uint64_t entry = (page * args.kv_heads + kv_head) * args.page_size + place;
    float factor = 1.0f;
    if constexpr (SCALED_BY_LAYER<Cache>) factor = 1.0f / (value ? args.value_scale : args.key_scale);
    if constexpr (SCALED_BY_ENTRY<Cache>) {
        float largest = 0.0f;
        for (unsigned u = lane; u < units && !query; u += LANES) {
            const HeadUnit<float> y = turned(u);
            BURRSTONE_UNROLL
            for (int e = 0; e < VEC8; ++e) largest = max_(largest, max_(abs_(y.low.v[e]), abs_(y.high.v[e])));
        }
        largest = reduce_max<V::lanes>(largest);
        factor = quantizer<Cache>(largest);
        if (lane == 0 && !query && !absent)
            store(pointer<float>(value ? args.value_scales : args.key_scales) + entry, dequantizer<Cache>(largest));
    }

    for (unsigned u = lane; u < units; u += LANES) {
        const HeadUnit<float> y = turned(u);
        if (query)
            store_unit(shape, pointer<T>(args.query) + (token * args.heads + head) * d, u, y);
        else
            store_unit(shape, pointer<Cache>(value ? args.values : args.keys) + entry * d, u,
                       {times(y.low, factor), times(y.high, factor)});
    }
}

} // namespace burrstone

#endif
