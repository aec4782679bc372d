//! AVX-512, with bf16 pair products where the machine has them: sixteen lanes, 32 registers.

use std::arch::x86_64::*;

use super::{IntKernel, Integers, Kernel, PairKernel, Pairs, Simd};

/// Made only in [`run`] and [`run_pairs`], so a value proves that the machine has F, BW, VL and DQ.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Made only in [`run_pairs`] and [`run_integers_vnni`]: as [`Avx512`], with BF16 and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(());

/// # Safety
/// The machine has AVX-512 F, BW, VL and DQ, and AVX2, FMA and F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx512(()))
}

/// # Safety
/// As [`run`], and the machine has AVX-512 BF16 and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn run_pairs<K: PairKernel>(kernel: K) -> K::Out {
    kernel.run(Avx512Bf16(()))
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn run_integers<K: IntKernel>(kernel: K) -> K::Out {
    kernel.run(Avx512(()))
}

/// # Safety
/// As [`run_pairs`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn run_integers_vnni<K: IntKernel>(kernel: K) -> K::Out {
    kernel.run(Avx512Bf16(()))
}

/// An intrinsic whose only demand is the feature.
macro_rules! present {
    ($e:expr) => {
        // SAFETY: `self` proves that the machine has the features; no memory is touched.
        unsafe { $e }
    };
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        present!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: 64 bytes are readable, as the caller promises.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        // SAFETY: 32 bytes are readable, as the caller promises.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        // SAFETY: 32 bytes are readable, as the caller promises.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, p: *const u16) -> [__m512; 2] {
        // SAFETY: 64 bytes are readable, as the caller promises.
        unsafe {
            let pairs = _mm512_loadu_si512(p.cast());
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second)]
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: 64 bytes are writable, as the caller promises.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    // Not `vcvtneps2bf16`: it needs BF16, and flushes subnormals.
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m512) {
        let half = present!({
            let bits = _mm512_castps_si512(v);
            // Half a unit in the last place, less one when the kept part is even: ties go to even.
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            // A NaN must stay one: set its quiet bit and do not round.
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, rounded, quiet)))
        });
        // SAFETY: 32 bytes are writable, as the caller promises.
        unsafe { _mm256_storeu_si256(p.cast(), half) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: __m512) {
        // SAFETY: 32 bytes are writable, as the caller promises.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        present!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        present!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        present!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        present!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        present!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        present!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        present!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        present!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn exp2i(self, n: __m512) -> __m512 {
        present!({
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        present!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
    }
    #[inline(always)]
    unsafe fn broadcast4(self, p: *const f32) -> __m512 {
        // SAFETY: 16 bytes are readable, as the caller promises.
        unsafe { _mm512_broadcast_f32x4(_mm_loadu_ps(p)) }
    }
    #[inline(always)]
    fn regroup(self, [a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
        present!({
            let (ab, ab_high) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            let (cd, cd_high) = (_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
            [
                _mm512_shuffle_f32x4::<0x88>(ab, cd),
                _mm512_shuffle_f32x4::<0xdd>(ab, cd),
                _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high),
                _mm512_shuffle_f32x4::<0xdd>(ab_high, cd_high),
            ]
        })
    }
    #[inline(always)]
    unsafe fn store_sums(self, p: *mut f32, [a, b, c, d]: [__m512; 4]) {
        let sums = present!({
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (low, high) = (_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_ps(order, _mm512_add_ps(low, high))
        });
        // SAFETY: 64 bytes are writable, as the caller promises.
        unsafe { _mm512_storeu_ps(p, sums) };
    }
    #[inline(always)]
    fn reduce_max(self, v: __m512) -> f32 {
        present!(_mm512_reduce_max_ps(v))
    }
}

/// Everything but the pair products is [`Avx512`]'s.
macro_rules! inherit {
    ($(fn $name:ident($($arg:ident: $t:ty),*) -> $out:ty;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: $t),*) -> $out {
            Avx512(()).$name($($arg),*)
        })*
    };
    ($(unsafe fn $name:ident($($arg:ident: $t:ty),*) $(-> $out:ty)?;)*) => {
        $(#[inline(always)]
        unsafe fn $name(self, $($arg: $t),*) $(-> $out)? {
            // SAFETY: the caller's promise is the same, and BF16 machines have all that `Avx512` needs.
            unsafe { Avx512(()).$name($($arg),*) }
        })*
    };
}

impl Simd for Avx512Bf16 {
    type V = __m512;
    const LANES: usize = 16;
    const MANY_REGISTERS: bool = true;

    inherit! {
        unsafe fn load(p: *const f32) -> __m512;
        unsafe fn load_bf16(p: *const u16) -> __m512;
        unsafe fn load_f16(p: *const u16) -> __m512;
        unsafe fn load_bf16_pairs(p: *const u16) -> [__m512; 2];
        unsafe fn broadcast4(p: *const f32) -> __m512;
        unsafe fn store(p: *mut f32, v: __m512);
        unsafe fn store_bf16(p: *mut u16, v: __m512);
        unsafe fn store_f16(p: *mut u16, v: __m512);
        unsafe fn store_sums(p: *mut f32, v: [__m512; 4]);
    }
    inherit! {
        fn splat(x: f32) -> __m512;
        fn add(a: __m512, b: __m512) -> __m512;
        fn sub(a: __m512, b: __m512) -> __m512;
        fn mul(a: __m512, b: __m512) -> __m512;
        fn div(a: __m512, b: __m512) -> __m512;
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512;
        fn max(a: __m512, b: __m512) -> __m512;
        fn min(a: __m512, b: __m512) -> __m512;
        fn round(a: __m512) -> __m512;
        fn exp2i(n: __m512) -> __m512;
        fn select_lt(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512;
        fn regroup(v: [__m512; 4]) -> [__m512; 4];
        fn reduce_max(v: __m512) -> f32;
    }
}

impl Integers for Avx512 {
    type I = __m512i;

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> __m512i {
        // SAFETY: 64 bytes are readable, as the caller promises.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, a: __m512i) {
        // SAFETY: a vector is writable, as the caller promises.
        unsafe { _mm512_storeu_si512(p.cast(), a) }
    }
    #[inline(always)]
    unsafe fn broadcast_bytes(self, p: *const u8) -> __m512i {
        // SAFETY: four bytes are readable, as the caller promises.
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    fn zero_integers(self) -> __m512i {
        present!(_mm512_setzero_si512())
    }
    #[inline(always)]
    fn add_integers(self, a: __m512i, b: __m512i) -> __m512i {
        present!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn mul_integers(self, a: __m512i, b: __m512i) -> __m512i {
        present!(_mm512_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn times_128(self, a: __m512i) -> __m512i {
        present!(_mm512_slli_epi32::<7>(a))
    }
    #[inline(always)]
    fn to_floats(self, a: __m512i) -> __m512 {
        present!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn low_nibbles(self, bytes: __m512i) -> __m512i {
        present!(_mm512_and_si512(bytes, _mm512_set1_epi8(0xf)))
    }
    #[inline(always)]
    fn high_nibbles(self, bytes: __m512i) -> __m512i {
        present!(_mm512_and_si512(_mm512_srli_epi32::<4>(bytes), _mm512_set1_epi8(0xf)))
    }
    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> __m512i {
        // SAFETY: the table has 16 bytes.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())) }
    }
    #[inline(always)]
    fn look_up(self, table: __m512i, bytes: __m512i) -> __m512i {
        present!(_mm512_shuffle_epi8(table, bytes))
    }
    // In 16 bits, as sums of two products would not fit where codes are large.
    #[inline(always)]
    fn dot(self, sum: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        present!({
            let even = _mm512_and_si512(codes, _mm512_set1_epi16(0xff));
            let even = _mm512_madd_epi16(even, _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x)));
            let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(codes), _mm512_srai_epi16::<8>(x));
            _mm512_add_epi32(sum, _mm512_add_epi32(even, odd))
        })
    }
    #[inline(always)]
    fn dot_small(self, sum: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        present!({
            let pairs = _mm512_maddubs_epi16(codes, x);
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        })
    }
}

impl Integers for Avx512Bf16 {
    type I = __m512i;

    inherit! {
        unsafe fn load_bytes(p: *const u8) -> __m512i;
        unsafe fn broadcast_bytes(p: *const u8) -> __m512i;
        unsafe fn store_bytes(p: *mut u8, a: __m512i);
    }
    inherit! {
        fn zero_integers() -> __m512i;
        fn add_integers(a: __m512i, b: __m512i) -> __m512i;
        fn mul_integers(a: __m512i, b: __m512i) -> __m512i;
        fn times_128(a: __m512i) -> __m512i;
        fn to_floats(a: __m512i) -> __m512;
        fn low_nibbles(bytes: __m512i) -> __m512i;
        fn high_nibbles(bytes: __m512i) -> __m512i;
        fn table(table: &[u8; 16]) -> __m512i;
        fn look_up(table: __m512i, bytes: __m512i) -> __m512i;
    }
    #[inline(always)]
    fn dot(self, sum: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        present!(_mm512_dpbusd_epi32(sum, codes, x))
    }
    #[inline(always)]
    fn dot_small(self, sum: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        self.dot(sum, codes, x)
    }
}

impl Pairs for Avx512Bf16 {
    #[inline(always)]
    unsafe fn interleave(self, low: *const u16, high: *const u16) -> __m512 {
        // SAFETY: 32 bytes of each are readable, as the caller promises.
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(low.cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(high.cast()));
            _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
        }
    }
    #[inline(always)]
    fn dot_pairs(self, c: __m512, a: __m512, b: __m512) -> __m512 {
        // All are 64 bytes of plain bits.
        present!(_mm512_dpbf16_ps(
            c,
            std::mem::transmute::<__m512, __m512bh>(a),
            std::mem::transmute::<__m512, __m512bh>(b)
        ))
    }
}
