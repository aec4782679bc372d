//! Mbarriers, in shared memory.

/// An mbarrier: a phase ends when all arrivals and all expected bytes have come.
#[derive(Debug)]
pub(super) struct Mbarrier {
    count: u32,
    pending: u32,
    bytes: i64,
    phase: u32,
    /// The vector clocks released by the arrivals of the current phase, and of the last complete one.
    pub released: Vec<u32>,
    pub completed: Vec<u32>,
    /// Threads that wait for the current phase.
    pub waiting: Vec<usize>,
}

impl Mbarrier {
    pub(super) fn new(count: u32, nothing: Vec<u32>) -> Self {
        let completed = nothing.clone();
        Mbarrier { count, pending: count, bytes: 0, phase: 0, released: nothing, completed, waiting: Vec::new() }
    }

    pub(super) fn expect(&mut self, bytes: u64) {
        self.bytes += bytes as i64;
    }

    pub(super) fn land(&mut self, bytes: u64) {
        self.bytes -= bytes as i64;
    }

    /// Arrives. False if the phase had no arrival left.
    #[must_use]
    pub(super) fn arrive(&mut self) -> bool {
        self.pending = self.pending.wrapping_sub(1);
        self.pending != u32::MAX
    }

    pub(super) fn is_over(&self, parity: u32) -> bool {
        self.phase & 1 != parity & 1
    }

    /// Ends the phase if it is complete, and returns the threads that waited for it.
    pub(super) fn advance(&mut self) -> Vec<usize> {
        if self.pending != 0 || self.bytes != 0 {
            return Vec::new();
        }
        self.pending = self.count;
        self.phase = self.phase.wrapping_add(1);
        self.completed.clone_from(&self.released);
        std::mem::take(&mut self.waiting)
    }
}
