//! One set of vector primitives, several instruction sets. Kernels are written once over [`Simd`] and compiled once per
//! set; [`Isa::run`] picks the copy at run time.

mod eight_bits;
mod element;
mod math;
mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use std::fmt;

pub(crate) use eight_bits::{E4m3, E5m2, I8, with_cache_element};
pub(crate) use element::{Bf16, Element, F16, F32, Paired, Product, Single, Weight, with_element};
pub(crate) use math::{exp, gelu, gelu_tanh, silu, tanh};

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust, eight lanes; the compiler does what it can.
    Portable,
    /// Plain Rust in the shape of AVX-512 BF16 (16 lanes, many registers, bf16 pair products): runs anywhere, slowly,
    /// the algorithms that otherwise need such a machine. For tests.
    PortableWide,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
    /// [`Isa::Avx512`] with products of bf16 pairs (BF16) and of bytes (VNNI): every machine with the first has the second.
    Avx512Bf16,
    /// 64-bit Arm.
    Neon,
}

impl Isa {
    /// All that a machine may have, best first.
    pub const ALL: [Isa; 6] = [Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable, Isa::PortableWide];

    /// Whether this machine has it.
    pub fn is_present(self) -> bool {
        match self {
            Self::Portable | Self::PortableWide => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_present()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                Self::Avx512.is_present()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// The best one present.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|isa| isa.is_present()).unwrap_or(Self::Portable)
    }

    /// Whether products of bf16 pairs are an instruction, so that bf16 × bf16 skips the conversion to f32.
    pub fn has_pairs(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::PortableWide)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::PortableWide => "portable-wide",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Neon => "neon",
        }
    }

    /// Runs `kernel` compiled for this set; on a machine without it, the portable copy.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 if self.is_present() => {
                // SAFETY: the features were just found.
                unsafe { avx2::run(kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 if self.is_present() => {
                // SAFETY: the features were just found.
                unsafe { avx512::run(kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 if self.is_present() => {
                // SAFETY: the features were just found, and include those of `Avx512`.
                unsafe { avx512::run(kernel) }
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon if self.is_present() => {
                // SAFETY: the feature was just found.
                unsafe { neon::run(kernel) }
            }
            Self::PortableWide => kernel.run(portable::Portable::<16>),
            _ => kernel.run(portable::Portable::<8>),
        }
    }

    /// Like [`Isa::run`] for a kernel that needs [`Pairs`]; on a set without them, emulated.
    pub(crate) fn run_pairs<K: PairKernel>(self, kernel: K) -> K::Out {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 if self.is_present() => {
                // SAFETY: the features were just found.
                unsafe { avx512::run_pairs(kernel) }
            }
            _ => kernel.run(portable::Portable::<16>),
        }
    }
}

impl Isa {
    /// Like [`Isa::run`] for a kernel that needs [`Integers`].
    pub(crate) fn run_integers<K: IntKernel>(self, kernel: K) -> K::Out {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 if self.is_present() => {
                // SAFETY: the features were just found.
                unsafe { avx2::run_integers(kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 if self.is_present() => {
                // SAFETY: the features were just found.
                unsafe { avx512::run_integers(kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 if self.is_present() => {
                // SAFETY: the features were just found.
                unsafe { avx512::run_integers_vnni(kernel) }
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon if self.is_present() => {
                // SAFETY: the feature was just found.
                unsafe { neon::run_integers(kernel) }
            }
            Self::PortableWide => kernel.run(portable::Portable::<16>),
            _ => kernel.run(portable::Portable::<8>),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Work to be compiled once per instruction set. `run`, and all it calls that touches vectors, must be
/// `#[inline(always)]`: only then does it land inside the function that has the features.
pub(crate) trait Kernel {
    type Out;
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// A [`Kernel`] over sets with bf16 pair products.
pub(crate) trait PairKernel {
    type Out;
    fn run<S: Pairs>(self, s: S) -> Self::Out;
}

/// The primitives. A value of the type is the proof that the machine has the set: it is made only in the entry points
/// that [`Isa::run`] guards. Pointers need no alignment.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// A vector of [`Simd::LANES`] f32.
    type V: Copy;
    const LANES: usize;
    /// Whether there are 32 vector registers rather than 16.
    const MANY_REGISTERS: bool;
    /// Whether this is plain Rust, which is compiled for correctness: fewer copies of a kernel will do.
    const IS_PORTABLE: bool = false;

    fn splat(self, x: f32) -> Self::V;

    /// # Safety
    /// `p` is readable for `LANES` elements; the same holds for the loads below.
    unsafe fn load(self, p: *const f32) -> Self::V;
    unsafe fn load_bf16(self, p: *const u16) -> Self::V;
    unsafe fn load_f16(self, p: *const u16) -> Self::V;

    /// `LANES` pairs of bf16: the first of each, and the second.
    ///
    /// # Safety
    /// `p` is readable for `2 · LANES` elements.
    unsafe fn load_bf16_pairs(self, p: *const u16) -> [Self::V; 2];

    /// One element in every lane.
    ///
    /// # Safety
    /// `p` is readable for an element.
    #[inline(always)]
    unsafe fn broadcast(self, p: *const f32) -> Self::V {
        // SAFETY: as the caller promises.
        self.splat(unsafe { p.read_unaligned() })
    }

    /// Four elements, again and again.
    ///
    /// # Safety
    /// `p` is readable for four elements.
    unsafe fn broadcast4(self, p: *const f32) -> Self::V;

    /// # Safety
    /// `p` is writable for `LANES` elements; the same holds for the stores below, which round to nearest even.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    unsafe fn store_bf16(self, p: *mut u16, v: Self::V);
    unsafe fn store_f16(self, p: *mut u16, v: Self::V);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, fused where the set can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Where either is NaN: `b`, or NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even; |a| < 2²².
    fn round(self, a: Self::V) -> Self::V;
    /// `2ⁿ` for integral `n` in −126 ..= 127.
    fn exp2i(self, n: Self::V) -> Self::V;
    /// `a < b ? x : y` per lane.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    fn reduce_max(self, v: Self::V) -> f32;

    /// Reorders four rows of `LANES` elements by fours: the first four elements of each row, then the next four of
    /// each, and so on.
    fn regroup(self, rows: [Self::V; 4]) -> [Self::V; 4];

    /// Adds each group of four lanes, `(l0 + l2) + (l1 + l3)`, and stores the sums of the four vectors one after another.
    ///
    /// # Safety
    /// `p` is writable for `LANES` elements.
    unsafe fn store_sums(self, p: *mut f32, v: [Self::V; 4]);

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// The sum over the lanes, in the set's one order.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut sums = [0f32; 16];
        // SAFETY: no vector has more than 16 lanes.
        unsafe { self.store_sums(sums.as_mut_ptr(), [v; 4]) };
        sums[..Self::LANES / 4].iter().sum()
    }
}

/// Fetches the cache line at `p`, which need not be memory of ours, into the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_l2(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which every x86-64 has; it touches nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Products of bytes, accumulated in 32-bit integers.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Integers: Simd {
    /// [`Simd::LANES`] integers of 32 bits, or four bytes in each lane.
    type I: Copy;

    /// # Safety
    /// `p` is readable for `4 · LANES` bytes.
    unsafe fn load_bytes(self, p: *const u8) -> Self::I;

    /// # Safety
    /// `p` is writable for `4 · LANES` bytes.
    unsafe fn store_bytes(self, p: *mut u8, a: Self::I);

    /// Four bytes in every lane.
    ///
    /// # Safety
    /// `p` is readable for four bytes.
    unsafe fn broadcast_bytes(self, p: *const u8) -> Self::I;

    fn zero_integers(self) -> Self::I;
    fn add_integers(self, a: Self::I, b: Self::I) -> Self::I;
    fn mul_integers(self, a: Self::I, b: Self::I) -> Self::I;
    fn times_128(self, a: Self::I) -> Self::I;
    fn to_floats(self, a: Self::I) -> Self::V;

    /// The lower half of each byte.
    fn low_nibbles(self, bytes: Self::I) -> Self::I;
    /// The upper half of each byte.
    fn high_nibbles(self, bytes: Self::I) -> Self::I;

    /// A table for [`look_up`](Self::look_up).
    fn table(self, table: &[u8; 16]) -> Self::I;
    /// `table[byte]` for each byte, all below 16.
    fn look_up(self, table: Self::I, bytes: Self::I) -> Self::I;

    /// `sum + Σ codes[i] · x[i]` over the four bytes of each lane: codes from 0 to 255, `x` from −127 to 127.
    fn dot(self, sum: Self::I, codes: Self::I, x: Self::I) -> Self::I;
    /// The same for codes of up to 31.
    fn dot_small(self, sum: Self::I, codes: Self::I, x: Self::I) -> Self::I;
}

/// A [`Kernel`] that multiplies integers.
pub(crate) trait IntKernel {
    type Out;
    fn run<S: Integers>(self, s: S) -> Self::Out;
}

/// Products of bf16 pairs, accumulated in f32.
pub(crate) trait Pairs: Simd {
    /// Pairs of `low[i]` and `high[i]`, bf16, as bits.
    ///
    /// # Safety
    /// Both are readable for `LANES` elements.
    unsafe fn interleave(self, low: *const u16, high: *const u16) -> Self::V;

    /// `c[i] + a[2i+1] · b[2i+1] + a[2i] · b[2i]`, where `a` and `b` are the bits of `2 · LANES` bf16.
    fn dot_pairs(self, c: Self::V, a: Self::V, b: Self::V) -> Self::V;
}
