//! Occupancy of variants, by the limits that NVIDIA's CUDA C++ Programming Guide lists for each compute capability and
//! the granularities of its occupancy calculator.

use crate::Arch;
use crate::cubin::Resources;

/// Limits of an SM.
struct Limits {
    warps: u32,
    blocks: u32,
    /// Shared memory in bytes: per SM, per block at most, and reserved by the system for each block.
    shared: u32,
    shared_of_block: u32,
    shared_kept: u32,
    /// Shared memory is allocated in multiples of this.
    shared_unit: u32,
}

/// Registers of an SM on every architecture here; each of its four schedulers has a quarter.
const REGISTERS: u32 = 65536;

/// Blocks per SM, and the share of its warps that they use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Occupancy {
    pub blocks: u32,
    /// In percent.
    pub filled: u32,
}

fn limits(arch: Arch) -> Limits {
    const KIB: u32 = 1024;
    let (warps, blocks, shared, shared_of_block) = match arch.number() {
        70 => (64, 32, 96 * KIB, 96 * KIB),
        75 => (32, 16, 64 * KIB, 64 * KIB),
        80 => (64, 32, 164 * KIB, 163 * KIB),
        86 => (48, 16, 100 * KIB, 99 * KIB),
        89 => (48, 24, 100 * KIB, 99 * KIB),
        _ => (64, 32, 228 * KIB, 227 * KIB),
    };
    let (shared_kept, shared_unit) = if arch.number() < 80 { (0, 256) } else { (KIB, 128) };
    Limits { warps, blocks, shared, shared_of_block, shared_kept, shared_unit }
}

/// The most shared memory that a block may have, in bytes.
pub fn most_shared_bytes(arch: Arch) -> u32 {
    limits(arch).shared_of_block
}

/// Predicts the occupancy of blocks of `threads` threads.
pub fn predict(arch: Arch, threads: u32, used: &Resources) -> Occupancy {
    let limits = limits(arch);
    let warps = threads.div_ceil(32).max(1);
    let registers_of_warp = (used.registers.max(1) * 32).next_multiple_of(256);
    let by_registers = (REGISTERS / 4 / registers_of_warp * 4) / warps;
    let shared = (used.shared_bytes + limits.shared_kept).next_multiple_of(limits.shared_unit);
    let by_shared = limits.shared.checked_div(shared).unwrap_or(limits.blocks);
    let blocks = limits.blocks.min(limits.warps / warps).min(by_registers).min(by_shared);
    Occupancy { blocks, filled: blocks * warps * 100 / limits.warps }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by hand from the tables of the programming guide.
    #[test]
    fn the_scarcest_resource_decides() {
        let predict = |arch: usize, threads, registers, shared_bytes| {
            let used = Resources { registers, shared_bytes, local_bytes: 0, constant_bytes: 0, code_bytes: 0 };
            let occupancy = super::predict(Arch::ALL[arch], threads, &used);
            (occupancy.blocks, occupancy.filled)
        };
        assert_eq!(predict(5, 256, 32, 0), (8, 100)); // warps: 64 / 8
        assert_eq!(predict(1, 256, 32, 0), (4, 100)); // warps: 32 / 8
        assert_eq!(predict(2, 32, 16, 0), (32, 50)); // blocks
        assert_eq!(predict(3, 32, 16, 0), (16, 33)); // blocks
        assert_eq!(predict(5, 128, 168, 0), (3, 18)); // registers: 16384 / 5376 = 3 warps a scheduler
        assert_eq!(predict(2, 128, 33, 0), (12, 75)); // registers: 33 becomes 40
        assert_eq!(predict(5, 128, 32, 100 * 1024), (2, 12)); // shared: 228 / 101
        assert_eq!(predict(0, 128, 32, 48 * 1024), (2, 12)); // shared: 96 / 48, nothing reserved
        assert_eq!(predict(4, 128, 32, 100 * 1024), (0, 0)); // more than an SM has
    }
}
