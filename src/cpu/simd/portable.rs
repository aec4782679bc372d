//! Plain Rust over `N` lanes, eight or sixteen. What takes much code stays a function: it would be copied into every kernel.

use super::{Integers, Pairs, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Portable<const N: usize>;

impl<const N: usize> Portable<N> {
    #[inline(always)]
    fn map2(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }
}

impl<const N: usize> Simd for Portable<N> {
    type V = [f32; N];
    const LANES: usize = N;
    const MANY_REGISTERS: bool = N == 16;
    const IS_PORTABLE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; N] {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; N] {
        // SAFETY: readable for N elements, as the caller promises.
        unsafe { p.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> [f32; N] {
        // SAFETY: readable for N elements, as the caller promises.
        let bits = unsafe { p.cast::<[u16; N]>().read_unaligned() };
        bits.map(|b| f32::from_bits(u32::from(b) << 16))
    }
    #[inline(never)]
    unsafe fn load_f16(self, p: *const u16) -> [f32; N] {
        // SAFETY: readable for N elements, as the caller promises.
        let bits = unsafe { p.cast::<[u16; N]>().read_unaligned() };
        bits.map(|b| half::f16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, p: *const u16) -> [[f32; N]; 2] {
        // SAFETY: readable for N pairs, as the caller promises.
        let bits = unsafe { p.cast::<[u32; N]>().read_unaligned() };
        [bits.map(|b| f32::from_bits(b << 16)), bits.map(|b| f32::from_bits(b & 0xffff_0000))]
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: [f32; N]) {
        // SAFETY: writable for N elements, as the caller promises.
        unsafe { p.cast::<[f32; N]>().write_unaligned(v) }
    }
    #[inline(never)]
    unsafe fn store_bf16(self, p: *mut u16, v: [f32; N]) {
        // SAFETY: writable for N elements, as the caller promises.
        unsafe { p.cast::<[u16; N]>().write_unaligned(v.map(|x| half::bf16::from_f32(x).to_bits())) }
    }
    #[inline(never)]
    unsafe fn store_f16(self, p: *mut u16, v: [f32; N]) {
        // SAFETY: writable for N elements, as the caller promises.
        unsafe { p.cast::<[u16; N]>().write_unaligned(v.map(|x| half::f16::from_f32(x).to_bits())) }
    }
    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::map2(a, b, |a, b| a / b)
    }
    // Unfused: without the instruction `mul_add` is a library call per lane.
    #[inline(always)]
    fn fma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self, a: [f32; N]) -> [f32; N] {
        // Adding 1.5 · 2²³ leaves no bits behind the point, and rounds as every addition does.
        const MAGIC: f32 = 12_582_912.0;
        a.map(|x| (x + MAGIC) - MAGIC)
    }
    #[inline(always)]
    fn exp2i(self, n: [f32; N]) -> [f32; N] {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn select_lt(self, a: [f32; N], b: [f32; N], x: [f32; N], y: [f32; N]) -> [f32; N] {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn broadcast4(self, p: *const f32) -> [f32; N] {
        // SAFETY: readable for four elements, as the caller promises.
        let four = unsafe { p.cast::<[f32; 4]>().read_unaligned() };
        std::array::from_fn(|i| four[i % 4])
    }
    #[inline(never)]
    fn regroup(self, rows: [[f32; N]; 4]) -> [[f32; N]; 4] {
        std::array::from_fn(|vector| {
            std::array::from_fn(|lane| {
                let at = vector * N + lane;
                rows[at / 4 % 4][at / 16 * 4 + at % 4]
            })
        })
    }
    #[inline(never)]
    unsafe fn store_sums(self, p: *mut f32, v: [[f32; N]; 4]) {
        let sums: [f32; N] = std::array::from_fn(|i| {
            let lanes = &v[i / (N / 4)][i % (N / 4) * 4..][..4];
            (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
        });
        // SAFETY: writable for N elements, as the caller promises.
        unsafe { self.store(p, sums) };
    }
    #[inline(always)]
    fn reduce_max(self, v: [f32; N]) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
}

impl Pairs for Portable<16> {
    #[inline(always)]
    unsafe fn interleave(self, low: *const u16, high: *const u16) -> [f32; 16] {
        // SAFETY: both are readable for 16 elements, as the caller promises.
        let (low, high) =
            unsafe { (low.cast::<[u16; 16]>().read_unaligned(), high.cast::<[u16; 16]>().read_unaligned()) };
        std::array::from_fn(|i| f32::from_bits(u32::from(high[i]) << 16 | u32::from(low[i])))
    }
    #[inline(always)]
    fn dot_pairs(self, c: [f32; 16], a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        let upper = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
        let lower = |x: f32| f32::from_bits(x.to_bits() << 16);
        std::array::from_fn(|i| {
            let odd = c[i] + upper(a[i]) * upper(b[i]);
            odd + lower(a[i]) * lower(b[i])
        })
    }
}

impl<const N: usize> Portable<N> {
    #[inline(always)]
    fn bytes(a: [i32; N], b: [i32; N], f: impl Fn(u8, u8) -> u8) -> [i32; N] {
        std::array::from_fn(|i| {
            let (a, b) = (a[i].to_le_bytes(), b[i].to_le_bytes());
            i32::from_le_bytes(std::array::from_fn(|byte| f(a[byte], b[byte])))
        })
    }
}

impl<const N: usize> Integers for Portable<N> {
    type I = [i32; N];

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> [i32; N] {
        // SAFETY: readable for 4 · N bytes, as the caller promises.
        unsafe { p.cast::<[i32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8, a: [i32; N]) {
        // SAFETY: a vector is writable, as the caller promises.
        unsafe { p.cast::<[i32; N]>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn broadcast_bytes(self, p: *const u8) -> [i32; N] {
        // SAFETY: readable for four bytes, as the caller promises.
        [unsafe { p.cast::<i32>().read_unaligned() }; N]
    }
    #[inline(always)]
    fn zero_integers(self) -> [i32; N] {
        [0; N]
    }
    #[inline(always)]
    fn add_integers(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn mul_integers(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        std::array::from_fn(|i| a[i].wrapping_mul(b[i]))
    }
    #[inline(always)]
    fn times_128(self, a: [i32; N]) -> [i32; N] {
        a.map(|a| a << 7)
    }
    #[inline(always)]
    fn to_floats(self, a: [i32; N]) -> [f32; N] {
        a.map(|a| a as f32)
    }
    #[inline(always)]
    fn low_nibbles(self, bytes: [i32; N]) -> [i32; N] {
        bytes.map(|b| b & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn high_nibbles(self, bytes: [i32; N]) -> [i32; N] {
        bytes.map(|b| b >> 4 & 0x0f0f_0f0f)
    }
    // A vector has four entries of the table in a lane; with eight lanes, twice.
    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> [i32; N] {
        std::array::from_fn(|i| i32::from_le_bytes(std::array::from_fn(|byte| table[i % 4 * 4 + byte])))
    }
    #[inline(always)]
    fn look_up(self, table: [i32; N], bytes: [i32; N]) -> [i32; N] {
        Self::bytes(bytes, bytes, |code, _| table[usize::from(code) / 4].to_le_bytes()[usize::from(code) % 4])
    }
    #[inline(always)]
    fn dot(self, sum: [i32; N], codes: [i32; N], x: [i32; N]) -> [i32; N] {
        std::array::from_fn(|i| {
            let products = codes[i].to_le_bytes().into_iter().zip(x[i].to_le_bytes());
            products.fold(sum[i], |sum, (code, x)| sum.wrapping_add(i32::from(code) * i32::from(x as i8)))
        })
    }
    #[inline(always)]
    fn dot_small(self, sum: [i32; N], codes: [i32; N], x: [i32; N]) -> [i32; N] {
        self.dot(sum, codes, x)
    }
}
