//! Runs probe kernels: on the simulator, or with `BURRSTONE_TEST_DEVICE=cuda` on the first GPU.

use burrstone::DType;
use burrstone::device::sim::{Fault, LaunchStats, Simulator};
use burrstone::device::{Launch, Memory, Stream, TmaBoxes, Variant};

use crate::gpu::{announce, gpu, is_left_out, on_a_gpu};

mod tables {
    #![allow(unused_imports, reason = "a build without a CUDA compiler has no cubins")]
    use burrstone::device::{Cubin, Kernel, Value, Variant};
    include!(concat!(env!("OUT_DIR"), "/probes.rs"));
}

/// Bytes of the simulator's memory.
const MEMORY: u64 = 64 << 20;
/// Fills `out` on a GPU before a probe runs: NaN in every float format.
const UNWRITTEN: u8 = 0xff;

/// A device with one probe's inputs and its output buffer `out`.
pub struct Probe {
    device: Device,
    inputs: [u64; 3],
    out: u64,
    out_bytes: usize,
    pub n: u32,
    pub m: u32,
    /// The probe's tensor map, if it takes one.
    map: [u64; 16],
}

enum Device {
    Simulator(Box<Simulator>),
    /// `buffers` holds the three inputs and `out`.
    Gpu {
        stream: Stream,
        buffers: [Memory; 4],
    },
}

fn variant(name: &str) -> &'static Variant {
    let probe = name.split("__").next().unwrap();
    let kernel = tables::PROBES.iter().find(|k| k.name == probe).unwrap_or_else(|| panic!("no probe {probe}"));
    kernel.variants.iter().find(|v| v.name == name).unwrap_or_else(|| panic!("no variant {name}"))
}

/// Names of all variants of a probe that the device can run.
pub fn variants(probe: &str) -> Vec<&'static str> {
    let kernel = tables::PROBES.iter().find(|k| k.name == probe).unwrap_or_else(|| panic!("no probe {probe}"));
    let arch = on_a_gpu().then(|| gpu().arch());
    let runs = |variant: &&Variant| arch.is_none_or(|arch| variant.archs.contains(&arch) && !is_left_out(variant.name));
    kernel.variants.iter().filter(runs).map(|v| v.name).collect()
}

impl Device {
    fn new(seed: u64, inputs: [&[u8]; 3], out_bytes: usize) -> (Self, [u64; 3], u64) {
        if on_a_gpu() {
            let stream = gpu();
            let unwritten = vec![UNWRITTEN; out_bytes];
            let [a, b, c] = inputs;
            let buffers = [a, b, c, &unwritten].map(|bytes| {
                let mut memory = stream.alloc(DType::U8, bytes.len()).unwrap();
                memory.write(bytes).unwrap();
                memory
            });
            let [a, b, c, out] = buffers.each_ref().map(|memory| memory.slice().address());
            return (Self::Gpu { stream, buffers }, [a, b, c], out);
        }
        crate::simulator::load();
        let simulator = Simulator::new(MEMORY, seed);
        let inputs = inputs.map(|bytes| {
            let address = simulator.alloc(bytes.len() as u64).unwrap();
            simulator.write(address, bytes).unwrap();
            address
        });
        let out = simulator.alloc(out_bytes as u64).unwrap();
        (Self::Simulator(Box::new(simulator)), inputs, out)
    }
}

impl Probe {
    /// Uploads the inputs `a`, `b` and `c`; `out` has `out_bytes`.
    pub fn new(seed: u64, inputs: [&[u8]; 3], out_bytes: usize) -> Self {
        let (device, inputs, out) = Device::new(seed, inputs, out_bytes);
        Probe { device, inputs, out, out_bytes, n: 0, m: 0, map: [0; 16] }
    }

    /// Makes the simulator count sectors and wavefronts of accesses.
    pub fn count_accesses(&self) {
        let Device::Simulator(simulator) = &self.device else { panic!("only the simulator counts accesses") };
        simulator.count_accesses(true);
    }

    /// Passes the probe a tensor map of these boxes.
    pub fn copy_boxes(&mut self, boxes: &TmaBoxes<'_>) {
        self.map = match &self.device {
            Device::Simulator(_) => {
                let &TmaBoxes { address, element_bytes, dims, strides, sides, swizzle } = boxes;
                let map =
                    burrstone::device::sim::TensorMap::tiled(address, element_bytes, dims, strides, sides, swizzle);
                let bytes = map.unwrap().to_bytes();
                std::array::from_fn(|i| u64::from_ne_bytes(bytes[8 * i..][..8].try_into().unwrap()))
            }
            Device::Gpu { stream, .. } => stream.tensor_map(boxes).unwrap(),
        };
    }

    pub fn launch(&self, name: &str, blocks: u32) -> Result<LaunchStats, Fault> {
        self.launch_clusters(name, blocks, 1)
    }

    /// Launches `blocks` blocks in clusters of `cluster`. On a GPU an error panics: it breaks the context, and does not
    /// name the fault.
    pub fn launch_clusters(&self, name: &str, blocks: u32, cluster: u32) -> Result<LaunchStats, Fault> {
        let variant = variant(name);
        // `probe_args` of csrc/abi/probe.h.
        let mut args: Vec<u8> = self.map.iter().flat_map(|word| word.to_ne_bytes()).collect();
        for address in self.inputs.iter().chain([&self.out]) {
            args.extend(address.to_ne_bytes());
        }
        args.extend(self.n.to_ne_bytes());
        args.extend(self.m.to_ne_bytes());
        args.resize(192, 0);
        let grid = [blocks, 1, 1];
        match &self.device {
            // SAFETY: the bytes are a whole `probe_args`, the argument of every probe.
            Device::Simulator(simulator) => unsafe { simulator.launch(variant, grid, cluster, &args) },
            Device::Gpu { stream, .. } => {
                announce(name);
                // SAFETY: as above; the addresses are the probe's buffers, which have the sizes that its test gives.
                let launched =
                    unsafe { stream.launch(&Launch { variant, grid, cluster, args: &args, shape: &"a probe" }) };
                launched.and_then(|()| stream.synchronize()).unwrap_or_else(|error| panic!("{name}: {error}"));
                Ok(LaunchStats { blocks: blocks.into(), ..LaunchStats::default() })
            }
        }
    }

    pub fn input(&self, index: usize) -> u64 {
        self.inputs[index]
    }

    pub fn out_address(&self) -> u64 {
        self.out
    }

    pub fn out<T: Number>(&self) -> Vec<T> {
        let bytes = match &self.device {
            Device::Simulator(simulator) => {
                let mut bytes = vec![0; self.out_bytes];
                simulator.read(self.out, &mut bytes).unwrap();
                bytes
            }
            Device::Gpu { buffers, .. } => buffers[3].read().unwrap(),
        };
        bytes.chunks_exact(size_of::<T>()).map(T::from_bytes).collect()
    }

    /// Runs one block and returns `out`.
    pub fn run<T: Number>(&self, name: &str) -> Vec<T> {
        self.launch(name, 1).unwrap_or_else(|fault| panic!("{fault}"));
        self.out()
    }
}

/// Element types of the buffers.
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

/// Random numbers for inputs.
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
