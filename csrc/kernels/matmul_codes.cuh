// Codes of a quantized weight, and how they become elements of the activations' type.
//
// An element is (code - zero) * scale or table[code] * scale in f32, rounded once to the activations' type: exactly what a
// dequantized weight holds, so that products have the bits of a dense one.
#ifndef BURRSTONE_KERNELS_MATMUL_CODES_CUH
#define BURRSTONE_KERNELS_MATMUL_CODES_CUH

#include "abi/matmul.h"
#include "common/math.cuh"
#include "common/memory.cuh"
#include "common/pairs.cuh"

namespace burrstone {

// What a weight consists of: elements of x's type, or codes of so many bits.
struct dense {
    static constexpr int BITS = 0;
};
struct u4 {
    static constexpr int BITS = 4;
};
struct u8 {
    static constexpr int BITS = 8;
};

namespace detail {

template <bool CODED, class Coded, class Dense> struct if_coded {
    using type = Coded;
};
template <class Coded, class Dense> struct if_coded<false, Coded, Dense> {
    using type = Dense;
};

} // namespace detail

template <class V, class Coded, class Dense>
using IfCoded = typename detail::if_coded<(V::weight::BITS > 0), Coded, Dense>::type;

// Eight codes of a lane, dequantized to four pairs. Of four bits, elements 2p and 2p + 1 are at bits 4p and 16 + 4p of their
// word; of eight bits, they are bytes in order, in two words.
template <class T, class W> struct MatmulDecoder {
    // Words of eight codes.
    static constexpr int WORDS = W::BITS / 4;

    // A row's scale and minus the biased zero point: both twice in pairs of T, or as floats. With scales of type T, arithmetic
    // on pairs is exact until the product is rounded.
    struct Scale {
        uint32_t scale, minus;
    };

    const float *table;
    uint32_t zero;
    bool floats;

    BURRSTONE_DEVICE explicit MatmulDecoder(const matmul_args &args)
        : table(pointer<const float>(args.code_table)), zero(args.code_zero), floats(args.code_floats) {}

    // From a word of args.code_scales.
    BURRSTONE_DEVICE Scale scale_of(uint32_t word) const {
        if (floats) return {word, MINUS_F32 | zero};
        const uint32_t scale = permute(word, 0, 0x1010);
        if constexpr (IN_MANTISSA) {
            return {scale, permute(word, 0, 0x3232) | BIAS | MINUS_ZERO};
        } else {
            const float minus = 128.0f - float(word >> 16);
            return {scale, pack<T>(minus, minus)};
        }
    }

    // Pair p belongs to the row of scale p % ROWS.
    template <int ROWS>
    BURRSTONE_DEVICE vec<uint32_t, 4> pairs(const uint32_t (&codes)[WORDS], const Scale (&scales)[ROWS]) const {
        vec<uint32_t, 4> to;
        if (!floats) {
            BURRSTONE_UNROLL
            for (int p = 0; p < 4; ++p) {
                const Scale &of = scales[p % ROWS];
                const uint32_t code = fma_pair<T>(biased(codes, p), ONE, of.minus);
                to.v[p] = fma_pair<T>(code, of.scale, MINUS_ZERO);
            }
        } else {
            BURRSTONE_UNROLL
            for (int p = 0; p < 4; ++p) {
                const Scale &of = scales[p % ROWS];
                const float scale = bit_cast<float>(of.scale);
                to.v[p] = pack<T>(mul_(value(code(codes, 2 * p), of), scale), mul_(value(code(codes, 2 * p + 1), of), scale));
            }
        }
        return to;
    }

  private:
    // Whether T's mantissa has room for a code.
    static constexpr bool IN_MANTISSA = W::BITS == 4 || !IS_BF16<T>;
    // Of a number whose mantissa's last bit is 1: a code in its mantissa is added to it.
    static constexpr uint32_t BIAS = IS_BF16<T> ? 0x43004300 : 0x64006400, MINUS_ZERO = 0x80008000;
    static constexpr uint32_t ONE = IS_BF16<T> ? 0x3f803f80 : 0x3c003c00;
    static constexpr uint32_t BIAS_F32 = 0x4b000000, MINUS_F32 = 0xcb000000;

    // A pair of codes as T, with BIAS or, as integers of a sign, minus 128.
    static BURRSTONE_DEVICE uint32_t biased(const uint32_t (&codes)[WORDS], int p) {
        if constexpr (W::BITS == 4) {
            return (codes[0] >> 4 * p & 0x000f000f) | BIAS;
        } else if constexpr (IN_MANTISSA) {
            return permute(codes[p / 2], BIAS >> 8, detail::lower_bytes(p % 2));
        } else {
            uint32_t wide[2];
            widen<T, i8>(codes[p / 2] ^ 0x80808080, wide);
            return wide[p % 2];
        }
    }
    static BURRSTONE_DEVICE uint32_t code(const uint32_t (&codes)[WORDS], int e) {
        if constexpr (W::BITS == 4) return codes[0] >> (4 * (e / 2) + 16 * (e % 2)) & 0xf;
        else return codes[e / 4] >> 8 * (e % 4) & 0xff;
    }
    BURRSTONE_DEVICE float value(uint32_t code, const Scale &of) const {
        if (W::BITS == 4 && table) return load_cached(table + code);
        return bit_cast<float>(BIAS_F32 | code) + bit_cast<float>(of.minus);
    }
};

} // namespace burrstone

#endif
