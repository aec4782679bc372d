//! 64-bit Arm: four lanes, 32 registers.

use std::arch::aarch64::*;

use super::{IntKernel, Integers, Kernel, Simd};

/// Made only in [`run`], so a value proves that the machine has the feature.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

/// # Safety
/// The machine has NEON.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Neon(()))
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "neon")]
pub(crate) unsafe fn run_integers<K: IntKernel>(kernel: K) -> K::Out {
    kernel.run(Neon(()))
}

/// An intrinsic whose only demand is the feature.
macro_rules! present {
    ($e:expr) => {
        // SAFETY: `self` proves that the machine has NEON; no memory is touched.
        unsafe { $e }
    };
}

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        present!(vdupq_n_f32(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        // SAFETY: 16 bytes are readable, as the caller promises; read as bytes because they may be unaligned.
        unsafe { vreinterpretq_f32_u8(vld1q_u8(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> float32x4_t {
        // SAFETY: 8 bytes are readable, as the caller promises.
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vreinterpret_u16_u8(vld1_u8(p.cast()))))) }
    }
    // The half-float conversions are not stable intrinsics everywhere: shift the exponent in place, scale, and mend
    // infinities and NaNs.
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> float32x4_t {
        // SAFETY: 8 bytes are readable, as the caller promises.
        let bits = unsafe { vmovl_u16(vreinterpret_u16_u8(vld1_u8(p.cast()))) };
        present!({
            let sign = vshlq_n_u32::<16>(vandq_u32(bits, vdupq_n_u32(0x8000)));
            let magnitude = vshlq_n_u32::<13>(vandq_u32(bits, vdupq_n_u32(0x7fff)));
            // 2^112 moves the exponent's bias from 15 to 127, subnormals included.
            let scaled = vmulq_f32(vreinterpretq_f32_u32(magnitude), vdupq_n_f32(f32::from_bits(0x7780_0000)));
            let special = vcgeq_u32(magnitude, vdupq_n_u32(0x0f80_0000));
            let infinite = vorrq_u32(magnitude, vdupq_n_u32(0x7f80_0000));
            let value = vbslq_u32(special, infinite, vreinterpretq_u32_f32(scaled));
            vreinterpretq_f32_u32(vorrq_u32(value, sign))
        })
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, p: *const u16) -> [float32x4_t; 2] {
        // SAFETY: 16 bytes are readable, as the caller promises.
        unsafe {
            let pairs = vreinterpretq_u32_u8(vld1q_u8(p.cast()));
            let second = vandq_u32(pairs, vdupq_n_u32(0xffff_0000));
            [vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)), vreinterpretq_f32_u32(second)]
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        // SAFETY: 16 bytes are writable, as the caller promises.
        unsafe { vst1q_u8(p.cast(), vreinterpretq_u8_f32(v)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: float32x4_t) {
        let half = present!({
            let bits = vreinterpretq_u32_f32(v);
            // Half a unit in the last place, less one when the kept part is even: ties go to even.
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            // A NaN must stay one: set its quiet bit and do not round.
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
            let number = vceqq_f32(v, v);
            vshrn_n_u32::<16>(vbslq_u32(number, rounded, quiet))
        });
        // SAFETY: 8 bytes are writable, as the caller promises.
        unsafe { vst1_u8(p.cast(), vreinterpret_u8_u16(half)) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: float32x4_t) {
        let mut lanes = [0f32; 4];
        // SAFETY: `lanes` has the 16 bytes that are written; 8 bytes are writable at `p`, as the caller promises.
        unsafe {
            vst1q_f32(lanes.as_mut_ptr(), v);
            p.cast::<[u16; 4]>().write_unaligned(lanes.map(|x| half::f16::from_f32(x).to_bits()));
        }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        present!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        present!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        present!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        present!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        present!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        present!(vmaxq_f32(a, b))
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        present!(vminq_f32(a, b))
    }
    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        present!(vrndnq_f32(a))
    }
    #[inline(always)]
    fn exp2i(self, n: float32x4_t) -> float32x4_t {
        present!({
            let biased = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        })
    }
    #[inline(always)]
    fn select_lt(self, a: float32x4_t, b: float32x4_t, x: float32x4_t, y: float32x4_t) -> float32x4_t {
        present!(vbslq_f32(vcltq_f32(a, b), x, y))
    }
    #[inline(always)]
    unsafe fn broadcast4(self, p: *const f32) -> float32x4_t {
        // SAFETY: as for `load`.
        unsafe { self.load(p) }
    }
    #[inline(always)]
    fn regroup(self, rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
        rows
    }
    #[inline(always)]
    unsafe fn store_sums(self, p: *mut f32, [a, b, c, d]: [float32x4_t; 4]) {
        let sums = present!({
            let ab = vreinterpretq_f64_f32(vaddq_f32(vzip1q_f32(a, b), vzip2q_f32(a, b)));
            let cd = vreinterpretq_f64_f32(vaddq_f32(vzip1q_f32(c, d), vzip2q_f32(c, d)));
            vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(ab, cd)), vreinterpretq_f32_f64(vzip2q_f64(ab, cd)))
        });
        // SAFETY: 16 bytes are writable, as the caller promises.
        unsafe { self.store(p, sums) };
    }
    #[inline(always)]
    fn reduce_max(self, v: float32x4_t) -> f32 {
        present!(vmaxvq_f32(v))
    }
}

impl Integers for Neon {
    type I = int32x4_t;

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> int32x4_t {
        // SAFETY: 16 bytes are readable, as the caller promises.
        unsafe { vreinterpretq_s32_u8(vld1q_u8(p)) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, a: int32x4_t) {
        // SAFETY: a vector is writable, as the caller promises.
        unsafe { vst1q_u8(p, vreinterpretq_u8_s32(a)) }
    }
    #[inline(always)]
    unsafe fn broadcast_bytes(self, p: *const u8) -> int32x4_t {
        // SAFETY: four bytes are readable, as the caller promises.
        unsafe { vdupq_n_s32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    fn zero_integers(self) -> int32x4_t {
        present!(vdupq_n_s32(0))
    }
    #[inline(always)]
    fn add_integers(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        present!(vaddq_s32(a, b))
    }
    #[inline(always)]
    fn mul_integers(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        present!(vmulq_s32(a, b))
    }
    #[inline(always)]
    fn times_128(self, a: int32x4_t) -> int32x4_t {
        present!(vshlq_n_s32::<7>(a))
    }
    #[inline(always)]
    fn to_floats(self, a: int32x4_t) -> float32x4_t {
        present!(vcvtq_f32_s32(a))
    }
    #[inline(always)]
    fn low_nibbles(self, bytes: int32x4_t) -> int32x4_t {
        present!(vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(bytes), vdupq_n_u8(0xf))))
    }
    #[inline(always)]
    fn high_nibbles(self, bytes: int32x4_t) -> int32x4_t {
        present!(vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(bytes))))
    }
    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> int32x4_t {
        // SAFETY: the table has 16 bytes.
        unsafe { vreinterpretq_s32_u8(vld1q_u8(table.as_ptr())) }
    }
    #[inline(always)]
    fn look_up(self, table: int32x4_t, bytes: int32x4_t) -> int32x4_t {
        present!(vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(table), vreinterpretq_u8_s32(bytes))))
    }
    // A product of two bytes fits 16 bits.
    #[inline(always)]
    fn dot(self, sum: int32x4_t, codes: int32x4_t, x: int32x4_t) -> int32x4_t {
        present!({
            let (codes, x) = (vreinterpretq_u16_s32(codes), vreinterpretq_s16_s32(x));
            let even = vreinterpretq_s16_u16(vandq_u16(codes, vdupq_n_u16(0xff)));
            let odd = vreinterpretq_s16_u16(vshrq_n_u16::<8>(codes));
            let even = vmulq_s16(even, vshrq_n_s16::<8>(vshlq_n_s16::<8>(x)));
            let odd = vmulq_s16(odd, vshrq_n_s16::<8>(x));
            vpadalq_s16(vpadalq_s16(sum, even), odd)
        })
    }
    #[inline(always)]
    fn dot_small(self, sum: int32x4_t, codes: int32x4_t, x: int32x4_t) -> int32x4_t {
        self.dot(sum, codes, x)
    }
}
