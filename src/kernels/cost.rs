//! The cost model: predicts a launch's time from bytes and cycles, to rank variants that were not measured.
//! It is a roofline. Its assumptions:
//! - a GPU has equal SMs; clock, tensor rate and bandwidths are those of one product of the architecture, scaled by the
//!   number of SMs;
//! - memory and L2 bandwidth are reached only by all SMs together: idle SMs leave their share unused;
//! - all blocks of a launch take the same time, and an SM holds as many as its resources allow;
//! - copies, tensor cores and shared memory of an SM overlap: the slowest decides;
//! - a block's bandwidth is limited to its bytes in flight per latency (Little's law).
//!
//! Predictions are optimistic; they are for comparing launches with each other.

use crate::device::{Card, DeviceInfo};

/// The parameters of a GPU in the cost model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Compute capability: 90 is sm_90.
    pub arch: u32,
    /// Streaming multiprocessors.
    pub processors: u32,
    /// Hertz.
    pub clock: f64,
    /// Multiply-adds per SM and cycle on the tensor cores, f16 or bf16 with f32 accumulation.
    pub tensor_rate: f64,
    /// Bytes per second from memory, whole GPU.
    pub memory_bandwidth: f64,
    /// Bytes per second from L2, whole GPU.
    pub cache_bandwidth: f64,
    /// Shared memory per SM, in bytes.
    pub shared_bytes: u32,
    /// Threads per SM.
    pub threads: u32,
}

/// Lower bound of a launch's time: full bandwidth and full rate, nothing done twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// Seconds to move each operand and result through memory once.
    pub memory: f64,
    /// Seconds for the multiply-adds on all tensor cores.
    pub products: f64,
}

impl Floor {
    /// The larger one of the two.
    pub fn seconds(&self) -> f64 {
        self.memory.max(self.products)
    }
}

/// Registers per SM.
const REGISTERS: u32 = 65_536;

impl From<&Card> for Machine {
    fn from(card: &Card) -> Self {
        Self::part(card, card.arch, card.processors)
    }
}

impl Machine {
    /// Bytes per cycle from shared memory, per SM.
    pub const SHARED_BANDWIDTH: f64 = 128.0;
    /// Memory latency under load, in seconds.
    pub const LATENCY: f64 = 700e-9;
    /// L2 latency, in seconds.
    pub const CACHE_LATENCY: f64 = 300e-9;
    /// Seconds between the end of one launch and the first instruction of the next, inside a graph.
    pub const LAUNCH: f64 = 2e-6;

    /// Parameters of the device's product, or of its architecture's default one, scaled to its number of SMs.
    pub fn of(info: &DeviceInfo) -> Self {
        Self::part(Card::of_product(&info.name, info.arch), info.arch, info.processors)
    }

    /// Parameters of an architecture's default product, scaled to `processors` SMs (at least one).
    pub fn new(arch: u32, processors: u32) -> Self {
        Self::part(Card::of_arch(arch), arch, processors)
    }

    fn part(card: &Card, arch: u32, processors: u32) -> Self {
        let processors = processors.max(1);
        let share = f64::from(processors) / f64::from(card.processors);
        Self {
            arch,
            processors,
            clock: card.gigahertz * 1e9,
            tensor_rate: card.tensor_rate,
            memory_bandwidth: card.memory_gb_s * 1e9 * share,
            cache_bandwidth: card.cache_gb_s * 1e9 * share,
            shared_bytes: card.shared_kib << 10,
            threads: card.threads,
        }
    }

    /// The floor of a launch that moves `bytes` and computes `products` multiply-adds.
    pub fn floor(&self, bytes: f64, products: f64) -> Floor {
        let rate = self.tensor_rate * self.clock * f64::from(self.processors);
        Floor { memory: bytes / self.memory_bandwidth, products: products / rate }
    }

    /// Occupancy: blocks per SM, at least one, as launches are checked to fit.
    pub fn resident(&self, threads: u32, registers: u32, shared_bytes: u32) -> u32 {
        // From Ampere on the driver reserves 1 KiB of shared memory per block.
        let kept = if self.arch < 80 { 0 } else { 1 << 10 };
        let by_registers = REGISTERS / (registers.max(1) * threads.max(1));
        let by_shared = self.shared_bytes / (shared_bytes + kept).max(1);
        (self.threads / threads.max(1)).min(by_registers).min(by_shared).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_resource_limits_the_blocks() {
        let ampere = Machine::new(80, 108);
        assert_eq!(ampere.resident(128, 64, 0), 8);
        assert_eq!(ampere.resident(128, 32, 40 << 10), 4);
        assert_eq!(ampere.resident(1024, 16, 0), 2);
        assert_eq!(ampere.resident(256, 255, 200 << 10), 1);
        assert_eq!(Machine::new(75, 40).resident(128, 32, 32 << 10), 2);
    }

    #[test]
    fn half_a_card_has_half_its_bandwidth() {
        let (whole, half) = (Machine::new(80, 108), Machine::new(80, 54));
        assert_eq!(half.memory_bandwidth * 2.0, whole.memory_bandwidth);
        assert_eq!(Machine::new(80, 0).processors, 1);
    }
}
