//! The library's virtual clock, with steps that take what a GPU in outline takes.

use burrstone::scheduler::{CacheSize, Plan, Policy, Scheduler, Submission};
use burrstone::simulation::{self, Costs, Record, Run};

pub use burrstone::simulation::Arrival;

/// Seconds of a step: the weights are read once, tokens are computed, what sequences see is read. A GPU in outline.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub weights: f64,
    pub token: f64,
    /// Of a position that a sequence has in the cache, for each step that it is part of.
    pub position: f64,
    /// Of a request that is taken in.
    pub submit: f64,
}

impl Cost {
    /// A model of 8 billion parameters on an accelerator of 2 TB/s and 300 TFLOP/s: 250 tokens cost as much as reading
    /// the weights.
    pub const GPU: Self = Self { weights: 8e-3, token: 32e-6, position: 65e-9, submit: 0.0 };

    pub fn step(&self, plan: &Plan) -> f64 {
        let positions: usize = plan.chunks.iter().map(|chunk| chunk.start + chunk.len).sum();
        self.weights.max(self.token * plan.tokens() as f64) + self.position * positions as f64
    }
}

/// A prompt that shares nothing with one of another salt.
pub fn prompt(salt: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| (salt * 1_000_003 + i) as u32).collect()
}

pub fn request(at: f64, prompt: Vec<u32>, output: usize) -> Arrival {
    let submission = Submission::new(prompt, output);
    Arrival { at, submission, output }
}

/// From arrival to the first token.
pub fn first(record: &Record) -> f64 {
    record.tokens[0] - record.at
}

pub fn preemptions(run: &Run) -> Vec<usize> {
    run.records.iter().filter_map(|record| Some(record.end?.1.preemptions)).collect()
}

/// Seconds between tokens of one sequence, of those that came between two times.
pub fn gaps(run: &Run, of: impl Fn(usize) -> bool, from: f64, to: f64) -> Vec<f64> {
    let mut gaps = Vec::new();
    for (_, record) in run.records.iter().enumerate().filter(|(i, _)| of(*i)) {
        let pairs = record.tokens.windows(2).filter(|pair| pair[1] > from && pair[1] <= to);
        gaps.extend(pairs.map(|pair| pair[1] - pair[0]));
    }
    gaps
}

/// The value that `share` of all are no greater than.
pub fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    assert!(!values.is_empty());
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

pub fn cache(blocks: usize) -> CacheSize {
    CacheSize { blocks, block_size: 32, window: None, balance: 16_384 }
}

/// Runs the requests, ordered by arrival, to their end, or for so many steps.
pub fn simulate(policy: Policy, cache: CacheSize, cost: Cost, requests: &[Arrival], most_steps: usize) -> Run {
    let costs = Costs { step: |plan: &Plan| cost.step(plan), submit: cost.submit };
    simulation::simulate(Scheduler::new(policy, cache), costs, requests, most_steps)
}
