//! Data sheets of GPUs. The first of each architecture is its default.

/// A GPU's data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuSpec {
    /// Part of the product's name, in lower case.
    pub name: &'static str,
    /// Compute capability: 90 is sm_90.
    pub arch: u32,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Boost clock.
    pub gigahertz: f64,
    /// Multiply-adds of f16 or bf16 with f32 accumulation on an SM's tensor cores, per cycle: the dense TFLOP/s of the
    /// data sheet, divided by clock and SMs.
    pub tensor_rate: f64,
    pub memory_gib: u32,
    /// Memory bandwidth, 10⁹ bytes a second.
    pub memory_gb_s: f64,
    /// Bandwidth of the L2 cache, 10⁹ bytes a second, rounded from published microbenchmarks.
    pub cache_gb_s: f64,
    /// Shared memory of an SM.
    pub shared_kib: u32,
    /// Resident threads of an SM.
    pub threads: u32,
}

impl GpuSpec {
    /// The first of each architecture is its default.
    pub const ALL: [Self; 7] = [
        card("v100", 70, 80, 1.53, 512.0, 16, 900.0, 2100.0, 96, 2048),
        card("t4", 75, 40, 1.59, 512.0, 16, 320.0, 1200.0, 64, 1024),
        card("a100", 80, 108, 1.41, 1024.0, 80, 2039.0, 4500.0, 164, 2048),
        card("3090", 86, 82, 1.70, 256.0, 24, 936.0, 2500.0, 100, 1536),
        card("4090", 89, 128, 2.52, 256.0, 24, 1008.0, 4500.0, 100, 1536),
        card("h100", 90, 132, 1.83, 2048.0, 80, 3350.0, 5500.0, 228, 2048),
        card("h200", 90, 132, 1.83, 2048.0, 141, 4800.0, 5500.0, 228, 2048),
    ];

    /// By its name: `h100`.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|card| card.name == name)
    }

    /// The default of an architecture, or of the newest older one in the table.
    pub fn of_arch(arch: u32) -> &'static Self {
        let newest = Self::ALL.iter().map(|card| card.arch).filter(|&known| known <= arch).max();
        Self::ALL.iter().find(|card| Some(card.arch) == newest).unwrap_or(&Self::ALL[0])
    }

    /// The GPU of a product name such as `NVIDIA H200`, or the default of its architecture.
    pub fn of_product(product: &str, arch: u32) -> &'static Self {
        let product = product.to_lowercase();
        let named = |card: &&Self| card.arch == arch && product.contains(card.name);
        Self::ALL.iter().find(named).unwrap_or_else(|| Self::of_arch(arch))
    }
}

#[allow(clippy::too_many_arguments, reason = "the columns of a table")]
const fn card(
    name: &'static str,
    arch: u32,
    sms: u32,
    gigahertz: f64,
    tensor_rate: f64,
    memory_gib: u32,
    memory_gb_s: f64,
    cache_gb_s: f64,
    shared_kib: u32,
    threads: u32,
) -> GpuSpec {
    GpuSpec { name, arch, sms, gigahertz, tensor_rate, memory_gib, memory_gb_s, cache_gb_s, shared_kib, threads }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_rates_match_the_data_sheets() {
        let sheets = [125.0, 65.0, 312.0, 71.0, 165.0, 989.0, 989.0];
        for (card, teraflops) in GpuSpec::ALL.iter().zip(sheets) {
            let found = 2.0 * card.tensor_rate * card.gigahertz * f64::from(card.sms) / 1e3;
            assert!((found / teraflops - 1.0).abs() < 0.01, "{}: {found} TFLOP/s", card.name);
        }
    }

    #[test]
    fn products_are_found_by_name_or_architecture() {
        assert_eq!(GpuSpec::of_product("NVIDIA H200", 90).name, "h200");
        assert_eq!(GpuSpec::of_product("NVIDIA H20", 90).name, "h100");
        assert_eq!(GpuSpec::of_product("Tesla T4", 75).name, "t4");
        assert_eq!(GpuSpec::of_product("NVIDIA GeForce RTX 5090", 120).name, "h100");
        assert_eq!(GpuSpec::of_arch(87).name, "3090");
        assert_eq!(GpuSpec::of_arch(60).name, "v100");
        assert_eq!(GpuSpec::named("h200").map(|card| card.memory_gib), Some(141));
        assert_eq!(GpuSpec::named("H200"), None);
    }
}
