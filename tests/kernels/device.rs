//! Shared by the tests of CUDA kernels: devices, memory with guard margins, 8-bit number formats.

use burrstone::DType;
use burrstone::device::sim::SiteStats;
use burrstone::device::{Memory, SimOptions, Slice, SliceMut, Stream, Value, Variant};
use burrstone::kernels::{ALL, MatMulPair, MatMulPlan};
use half::f16;

use crate::gpu::{announce, gpu, is_left_out, on_a_gpu};
use crate::slice::some_of;
use crate::support::{encode, simulated};

/// All variants of a kernel whose axes have the values of `key`.
pub fn variants(kernel: &str, key: &[(&str, Value)]) -> Vec<&'static Variant> {
    let kernel = ALL.iter().find(|k| k.name == kernel).expect("a kernel of that name");
    let fits = |v: &&Variant| key.iter().all(|(axis, value)| v.value(axis) == Some(*value));
    let found: Vec<_> = kernel.variants.iter().filter(fits).collect();
    assert!(!found.is_empty(), "no variant of {} for {key:?}", kernel.name);
    found
}

/// Variants of the product of dense weights.
pub fn dense_products(dtype: DType, out: DType) -> Vec<&'static Variant> {
    products(dtype, out, "dense")
}

/// Variants of the product of weights of a kind: an axis of the specification.
pub fn products(dtype: DType, out: DType, weight: &'static str) -> Vec<&'static Variant> {
    variants("matmul", &[("dtype", named(dtype)), ("out", named(out)), ("weight", Value::Text(weight))])
}

/// The variants that this run tests: one for each dtype, instruction and architecture, and a slice of the others.
pub fn some_variants(all: Vec<&'static Variant>) -> Vec<&'static Variant> {
    some_of(all, |variant| (variant.value("dtype"), variant.value("instruction"), variant.archs))
}

pub fn named(dtype: DType) -> Value {
    Value::Text(dtype.name())
}

/// A device for `variant`: the simulator, or with `BURRSTONE_TEST_DEVICE=cuda` the first GPU. `None` if that GPU cannot
/// run the variant or this run leaves it out.
pub fn stream(variant: &Variant, seed: u64) -> Option<Stream> {
    if on_a_gpu() {
        let stream = gpu();
        let runs = variant.archs.contains(&stream.arch()) && !is_left_out(variant.name);
        if runs {
            announce(variant.name);
        }
        return runs.then_some(stream);
    }
    Some(simulated(SimOptions { arch: variant.archs[0], seed, ..SimOptions::default() }))
}

/// A plan for a given variant, instead of the cost model's choice.
pub fn planned(variant: &'static Variant, splits: usize, pair: Option<MatMulPair>) -> MatMulPlan {
    MatMulPlan { variant, splits, pair, seconds: 0.0 }
}

/// A simulator that counts sectors and bank conflicts of memory accesses; see [`assert_no_waste`].
pub fn counting_stream(variant: &Variant) -> Stream {
    simulated(SimOptions { arch: variant.archs[0], count: true, ..SimOptions::default() })
}

/// Asserts that the accesses chosen by `counts` use whole sectors and have no bank conflicts.
#[track_caller]
pub fn assert_no_waste(stream: &Stream, counts: impl Fn(&SiteStats) -> bool) {
    let launches = stream.take_launch_stats();
    assert!(!launches.is_empty(), "nothing was launched");
    for (variant, stats) in launches {
        assert!(stats.sites.iter().any(&counts), "{variant}: no such access");
        for site in stats.sites.iter().filter(|site| counts(site)) {
            assert_eq!(site.cost, site.ideal, "{variant}: {site:?}");
        }
    }
}

/// Guard elements before and after an array.
const MARGIN: usize = 32;
/// Fills guard elements and uninitialized memory.
const UNTOUCHED: u8 = 0xa5;

/// An array between guard margins. [`Placed::bytes`] detects writes to them.
pub struct Placed {
    memory: Memory,
    start: usize,
    len: usize,
}

impl Placed {
    /// `bytes` as elements of `dtype`, placed `shift` elements after an aligned address.
    pub fn new(stream: &Stream, dtype: DType, bytes: &[u8], shift: usize) -> Self {
        let (len, start) = (bytes.len() / dtype.size(), MARGIN + shift);
        let mut all = vec![UNTOUCHED; (start + len + MARGIN) * dtype.size()];
        all[start * dtype.size()..][..bytes.len()].copy_from_slice(bytes);
        let mut memory = stream.alloc(dtype, start + len + MARGIN).unwrap();
        memory.write(&all).unwrap();
        Self { memory, start, len }
    }

    pub fn of(stream: &Stream, dtype: DType, values: &[f32], shift: usize) -> Self {
        Self::new(stream, dtype, &encode(values, dtype), shift)
    }

    pub fn indices(stream: &Stream, values: &[u32], shift: usize) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::new(stream, DType::U32, &bytes, shift)
    }

    /// `len` uninitialized elements.
    pub fn untouched(stream: &Stream, dtype: DType, len: usize, shift: usize) -> Self {
        Self::new(stream, dtype, &vec![UNTOUCHED; len * dtype.size()], shift)
    }

    pub fn slice(&self) -> Slice<'_> {
        self.memory.slice().range(self.start..self.start + self.len).unwrap()
    }

    pub fn slice_mut(&mut self) -> SliceMut<'_> {
        self.memory.slice_mut().range(self.start..self.start + self.len).unwrap()
    }

    /// The elements' bytes. Fails if a guard element was written.
    #[track_caller]
    pub fn bytes(&self) -> Vec<u8> {
        let mut all: Vec<u8> = self.memory.read().unwrap();
        let size = self.memory.dtype().size();
        let behind = all.split_off((self.start + self.len) * size);
        let inside = all.split_off(self.start * size);
        assert!(all.iter().all(|&b| b == UNTOUCHED), "written before the first element");
        assert!(behind.iter().all(|&b| b == UNTOUCHED), "written after the last element");
        inside
    }

    #[track_caller]
    pub fn read(&self) -> Vec<f32> {
        decode(self.memory.dtype(), &self.bytes())
    }
}

/// Whether the bytes were never written, see [`Placed::untouched`].
pub fn is_untouched(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == UNTOUCHED)
}

/// Decodes stored elements.
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let one = |b: &[u8]| match (dtype, b) {
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (DType::BF16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
        (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (DType::E4M3, &[code]) => e4m3(code),
        // E5M2 is the upper half of an f16.
        (DType::E5M2, &[code]) => f16::from_le_bytes([0, code]).to_f32(),
        (DType::I8, &[code]) => f32::from(code as i8),
        _ => panic!("no numbers in {dtype}"),
    };
    bytes.chunks(dtype.size()).map(one).collect()
}

/// E4M3: sign, four exponent bits with bias 7, three mantissa bits; all ones is NaN.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The largest finite magnitude of a quantized dtype.
pub fn largest_code(dtype: DType) -> f32 {
    match dtype {
        DType::E4M3 => 448.0,
        DType::E5M2 => 57344.0,
        _ => 127.0,
    }
}

/// Asserts that the scale maps the row's largest magnitude to the largest code, and that this code occurs.
#[track_caller]
pub fn assert_scale(what: &str, dtype: DType, codes: &[f32], scale: f32, exact: &[f64]) {
    let largest = exact.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    let expected = largest / f64::from(largest_code(dtype));
    assert!((f64::from(scale) - expected).abs() <= 1e-5 * expected, "{what}: scale {scale}, not {expected}");
    let found = codes.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    assert!(largest == 0.0 || found == largest_code(dtype), "{what}: the largest code is {found}");
}
