//! What a launch costs in cycles and bytes: ranks variants where nothing was measured.
//!
//! The model is a roofline. Its assumptions:
//! - a GPU is so many equal multiprocessors; clock, tensor rate and bandwidths are those of one card of the architecture,
//!   scaled by the number of multiprocessors;
//! - the memory's and the L2 cache's bandwidth is reached by all multiprocessors together: those that are idle leave
//!   their share of it unused;
//! - all blocks of a launch take the same time, and a multiprocessor holds as many at once as its resources allow;
//! - copies, tensor cores and shared memory of a multiprocessor work beside each other: the slowest one counts;
//! - a block gets no more bytes than it has in flight in one latency (Little's law).
//!
//! It is for comparing launches with each other. As a prediction it is optimistic.

use crate::device::{Card, DeviceInfo};

/// A GPU as the model sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Compute capability: 90 is sm_90.
    pub arch: u32,
    /// Multiprocessors.
    pub processors: u32,
    /// Cycles a second.
    pub clock: f64,
    /// Multiply-adds of f16 or bf16 into f32 sums on the tensor cores of a multiprocessor, a cycle.
    pub tensor_rate: f64,
    /// Bytes a second from memory, of the whole GPU.
    pub memory_bandwidth: f64,
    /// Bytes a second from the L2 cache, of the whole GPU.
    pub cache_bandwidth: f64,
    /// Shared memory of a multiprocessor, in bytes.
    pub shared_bytes: u32,
    /// Threads that a multiprocessor holds.
    pub threads: u32,
}

/// What no launch can be faster than: the machine at its best, and nothing done twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// Seconds in which each operand comes from memory once, and each result goes there.
    pub memory: f64,
    /// Seconds of the multiply-adds on all tensor cores.
    pub products: f64,
}

impl Floor {
    /// The larger one of the two.
    pub fn seconds(&self) -> f64 {
        self.memory.max(self.products)
    }
}

/// Registers of a multiprocessor.
const REGISTERS: u32 = 65_536;

impl From<&Card> for Machine {
    fn from(card: &Card) -> Self {
        Self::part(card, card.arch, card.processors)
    }
}

impl Machine {
    /// Bytes a cycle from shared memory, of a multiprocessor.
    pub const SHARED_BANDWIDTH: f64 = 128.0;
    /// Seconds from asking for bytes of a busy memory to having them.
    pub const LATENCY: f64 = 700e-9;
    /// The same of the L2 cache.
    pub const CACHE_LATENCY: f64 = 300e-9;
    /// Seconds from one launch's end to the next one's first instruction, inside a graph.
    pub const LAUNCH: f64 = 2e-6;

    /// The device's card, or what stands for its architecture, with the device's number of multiprocessors.
    pub fn of(info: &DeviceInfo) -> Self {
        Self::part(Card::of_product(&info.name, info.arch), info.arch, info.processors)
    }

    /// What stands for an architecture, with so many multiprocessors, at least one.
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

    /// Of a launch that needs so many bytes and multiply-adds.
    pub fn floor(&self, bytes: f64, products: f64) -> Floor {
        let rate = self.tensor_rate * self.clock * f64::from(self.processors);
        Floor { memory: bytes / self.memory_bandwidth, products: products / rate }
    }

    /// Blocks that a multiprocessor holds at once: at least one, for what is launched fits.
    pub fn resident(&self, threads: u32, registers: u32, shared_bytes: u32) -> u32 {
        // From Ampere on the system keeps a KiB of each block's shared memory.
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
