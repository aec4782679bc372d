//! Runs probe kernels.

use burrstone::device::Variant;
use burrstone::device::sim::{Fault, LaunchStats, Simulator, TensorMap};

mod tables {
    #![allow(unused_imports, reason = "a build without a CUDA compiler has no cubins")]
    use burrstone::device::{Cubin, Kernel, Value, Variant};
    include!(concat!(env!("OUT_DIR"), "/probes.rs"));
}

/// A simulator with one probe's buffers: what the probe reads, and `out`.
pub struct Probe {
    pub simulator: Simulator,
    inputs: [u64; 3],
    out: u64,
    out_bytes: usize,
    pub n: u32,
    pub m: u32,
    pub map: Option<TensorMap>,
}

fn variant(name: &str) -> &'static Variant {
    let probe = name.split("__").next().unwrap();
    let kernel = tables::PROBES.iter().find(|k| k.name == probe).unwrap_or_else(|| panic!("no probe {probe}"));
    kernel.variants.iter().find(|v| v.name == name).unwrap_or_else(|| panic!("no variant {name}"))
}

/// Names of all variants of a probe.
pub fn variants(probe: &str) -> Vec<&'static str> {
    let kernel = tables::PROBES.iter().find(|k| k.name == probe).unwrap_or_else(|| panic!("no probe {probe}"));
    kernel.variants.iter().map(|v| v.name).collect()
}

impl Probe {
    /// `a`, `b` and `c` are uploaded, `out` has `out_bytes`.
    pub fn new(seed: u64, inputs: [&[u8]; 3], out_bytes: usize) -> Self {
        crate::simulator::load();
        let simulator = Simulator::new(64 << 20, seed);
        let inputs = inputs.map(|bytes| {
            let address = simulator.alloc(bytes.len() as u64).unwrap();
            simulator.write(address, bytes).unwrap();
            address
        });
        let out = simulator.alloc(out_bytes as u64).unwrap();
        Probe { simulator, inputs, out, out_bytes, n: 0, m: 0, map: None }
    }

    pub fn launch(&self, name: &str, blocks: u32) -> Result<LaunchStats, Fault> {
        self.launch_clusters(name, blocks, 1)
    }

    /// Blocks of which so many are a cluster.
    pub fn launch_clusters(&self, name: &str, blocks: u32, cluster: u32) -> Result<LaunchStats, Fault> {
        let variant = variant(name);
        // `probe_args` of csrc/abi/probe.h.
        let mut args = self.map.map_or([0; 128], |map| map.to_bytes()).to_vec();
        for address in self.inputs.iter().chain([&self.out]) {
            args.extend(address.to_ne_bytes());
        }
        args.extend(self.n.to_ne_bytes());
        args.extend(self.m.to_ne_bytes());
        args.resize(192, 0);
        // SAFETY: the bytes above are a whole `probe_args`, which every probe takes.
        unsafe { self.simulator.launch(variant, [blocks, 1, 1], cluster, &args) }
    }

    pub fn input(&self, index: usize) -> u64 {
        self.inputs[index]
    }

    pub fn out_address(&self) -> u64 {
        self.out
    }

    pub fn out<T: Number>(&self) -> Vec<T> {
        let mut bytes = vec![0; self.out_bytes];
        self.simulator.read(self.out, &mut bytes).unwrap();
        bytes.chunks_exact(size_of::<T>()).map(T::from_bytes).collect()
    }

    /// Runs one block and returns `out`.
    pub fn run<T: Number>(&self, name: &str) -> Vec<T> {
        self.launch(name, 1).unwrap_or_else(|fault| panic!("{fault}"));
        self.out()
    }
}

/// Numbers that buffers hold.
pub trait Number: Copy {
    fn from_bytes(bytes: &[u8]) -> Self;
    fn extend(self, bytes: &mut Vec<u8>);
}

macro_rules! number {
    ($($t:ty)*) => {$(
        impl Number for $t {
            fn from_bytes(bytes: &[u8]) -> Self {
                <$t>::from_ne_bytes(bytes.try_into().unwrap())
            }
            fn extend(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_ne_bytes());
            }
        }
    )*};
}
number!(u8 i8 u16 u32 i32 f32 u64 half::f16 half::bf16);

pub fn bytes<T: Number>(values: &[T]) -> Vec<u8> {
    let mut bytes = Vec::new();
    values.iter().for_each(|v| v.extend(&mut bytes));
    bytes
}

/// Numbers from a seed, for inputs.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}
