//! AVX2 with FMA and F16C: eight lanes, sixteen registers.

use std::arch::x86_64::*;

use super::{IntKernel, Integers, Kernel, Simd};

/// Made only in [`run`], so a value proves that the machine has the features.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// # Safety
/// The machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx2(()))
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn run_integers<K: IntKernel>(kernel: K) -> K::Out {
    kernel.run(Avx2(()))
}

/// An intrinsic whose only demand is the feature.
macro_rules! present {
    ($e:expr) => {
        // SAFETY: `self` proves that the machine has AVX2, FMA and F16C; no memory is touched.
        unsafe { $e }
    };
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        present!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: 32 bytes are readable, as the caller promises.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m256 {
        // SAFETY: 16 bytes are readable, as the caller promises.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m256 {
        // SAFETY: 16 bytes are readable, as the caller promises.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, p: *const u16) -> [__m256; 2] {
        // SAFETY: 32 bytes are readable, as the caller promises.
        unsafe {
            let pairs = _mm256_loadu_si256(p.cast());
            let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(second)]
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: 32 bytes are writable, as the caller promises.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m256) {
        let half = present!({
            let bits = _mm256_castps_si256(v);
            // Half a unit in the last place, less one when the kept part is even: ties go to even.
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            // A NaN must stay one: set its quiet bit and do not round.
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let high = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256::<1>(high))
        });
        // SAFETY: 16 bytes are writable, as the caller promises.
        unsafe { _mm_storeu_si128(p.cast(), half) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: __m256) {
        // SAFETY: 16 bytes are writable, as the caller promises.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        present!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        present!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        present!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        present!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        present!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        present!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        present!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        present!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn exp2i(self, n: __m256) -> __m256 {
        present!({
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    fn select_lt(self, a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
        present!(_mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }
    #[inline(always)]
    unsafe fn broadcast4(self, p: *const f32) -> __m256 {
        // SAFETY: 16 bytes are readable, as the caller promises.
        unsafe { _mm256_broadcast_ps(&p.cast::<__m128>().read_unaligned()) }
    }
    #[inline(always)]
    fn regroup(self, [a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
        present!([
            _mm256_permute2f128_ps::<0x20>(a, b),
            _mm256_permute2f128_ps::<0x20>(c, d),
            _mm256_permute2f128_ps::<0x31>(a, b),
            _mm256_permute2f128_ps::<0x31>(c, d),
        ])
    }
    #[inline(always)]
    unsafe fn store_sums(self, p: *mut f32, [a, b, c, d]: [__m256; 4]) {
        let sums = present!({
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let (low, high) = (_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
            _mm256_permutevar8x32_ps(_mm256_add_ps(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
        });
        // SAFETY: 32 bytes are writable, as the caller promises.
        unsafe { _mm256_storeu_ps(p, sums) };
    }
    #[inline(always)]
    fn reduce_max(self, v: __m256) -> f32 {
        present!({
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }
}

impl Integers for Avx2 {
    type I = __m256i;

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> __m256i {
        // SAFETY: 32 bytes are readable, as the caller promises.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, a: __m256i) {
        // SAFETY: a vector is writable, as the caller promises.
        unsafe { _mm256_storeu_si256(p.cast(), a) }
    }
    #[inline(always)]
    unsafe fn broadcast_bytes(self, p: *const u8) -> __m256i {
        // SAFETY: four bytes are readable, as the caller promises.
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    fn zero_integers(self) -> __m256i {
        present!(_mm256_setzero_si256())
    }
    #[inline(always)]
    fn add_integers(self, a: __m256i, b: __m256i) -> __m256i {
        present!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn mul_integers(self, a: __m256i, b: __m256i) -> __m256i {
        present!(_mm256_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn times_128(self, a: __m256i) -> __m256i {
        present!(_mm256_slli_epi32::<7>(a))
    }
    #[inline(always)]
    fn to_floats(self, a: __m256i) -> __m256 {
        present!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn low_nibbles(self, bytes: __m256i) -> __m256i {
        present!(_mm256_and_si256(bytes, _mm256_set1_epi8(0xf)))
    }
    #[inline(always)]
    fn high_nibbles(self, bytes: __m256i) -> __m256i {
        present!(_mm256_and_si256(_mm256_srli_epi32::<4>(bytes), _mm256_set1_epi8(0xf)))
    }
    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> __m256i {
        // SAFETY: the table has 16 bytes.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())) }
    }
    #[inline(always)]
    fn look_up(self, table: __m256i, bytes: __m256i) -> __m256i {
        present!(_mm256_shuffle_epi8(table, bytes))
    }
    // In 16 bits, as sums of two products would not fit where codes are large.
    #[inline(always)]
    fn dot(self, sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        present!({
            let even = _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
            let even = _mm256_madd_epi16(even, _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)));
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes), _mm256_srai_epi16::<8>(x));
            _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
        })
    }
    #[inline(always)]
    fn dot_small(self, sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        present!({
            let pairs = _mm256_maddubs_epi16(codes, x);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
}
