//! What a GPU of each architecture has.

/// One card of an architecture.
pub(crate) struct Card {
    arch: u32,
    /// Multiprocessors.
    pub processors: u32,
    pub gigahertz: f64,
    /// Multiply-adds of f16 or bf16 into f32 sums on the tensor cores of a multiprocessor, a cycle.
    pub tensor_rate: f64,
    pub memory_gigabytes: f64,
    pub cache_gigabytes: f64,
    /// Shared memory of a multiprocessor.
    pub shared_kib: u32,
    /// Threads that a multiprocessor holds.
    pub threads: u32,
}

/// V100 SXM2, T4, A100 SXM 80 GB, RTX 3090, RTX 4090, H100 SXM. Clocks and memories are of the data sheets, tensor rates
/// are their dense f16 TFLOP/s with f32 sums, divided by clock and processors. Bandwidths of the L2 cache are what
/// published microbenchmarks read, rounded.
const CARDS: [Card; 6] = [
    card(70, 80, 1.53, 512.0, 900.0, 2100.0, 96, 2048),
    card(75, 40, 1.59, 512.0, 320.0, 1200.0, 64, 1024),
    card(80, 108, 1.41, 1024.0, 2039.0, 4500.0, 164, 2048),
    card(86, 82, 1.70, 256.0, 936.0, 2500.0, 100, 1536),
    card(89, 128, 2.52, 256.0, 1008.0, 4500.0, 100, 1536),
    card(90, 132, 1.83, 2048.0, 3350.0, 5500.0, 228, 2048),
];

#[allow(clippy::too_many_arguments, reason = "the columns of a table")]
const fn card(
    arch: u32,
    processors: u32,
    gigahertz: f64,
    tensor_rate: f64,
    memory_gigabytes: f64,
    cache_gigabytes: f64,
    shared_kib: u32,
    threads: u32,
) -> Card {
    Card { arch, processors, gigahertz, tensor_rate, memory_gigabytes, cache_gigabytes, shared_kib, threads }
}

impl Card {
    /// The newest that is not newer than the architecture; the oldest for what is older.
    pub fn of(arch: u32) -> &'static Self {
        CARDS.iter().rev().find(|card| card.arch <= arch).unwrap_or(&CARDS[0])
    }
}
