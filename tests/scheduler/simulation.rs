//! The library's virtual clock, with the step times of a roughly modelled GPU.

use burrstone::scheduler::{CacheSize, Plan, Policy, Scheduler, Submission};
use burrstone::simulation::{self, Costs, Record, Run};

pub use burrstone::simulation::Arrival;

/// Seconds of a step: reading the weights or computing the tokens, plus reading the KV cache.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub weights: f64,
    pub token: f64,
    /// For each cached position of each sequence in the step.
    pub position: f64,
    /// To accept a request.
    pub submit: f64,
}

impl Cost {
    /// A model of 8 billion parameters on an accelerator of 2 TB/s and 300 TFLOP/s: computing 250 tokens takes as long
    /// as reading the weights.
    pub const GPU: Self = Self { weights: 8e-3, token: 32e-6, position: 65e-9, submit: 0.0 };

    pub fn step(&self, plan: &Plan) -> f64 {
        let positions: usize = plan.chunks.iter().map(|chunk| chunk.start + chunk.len).sum();
        self.weights.max(self.token * plan.tokens() as f64) + self.position * positions as f64
    }
}

/// A prompt that shares no prefix with those of other salts.
pub fn prompt(salt: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| (salt * 1_000_003 + i) as u32).collect()
}

pub fn request(at: f64, prompt: Vec<u32>, output: usize) -> Arrival {
    let submission = Submission::new(prompt, output);
    Arrival { at, submission, output }
}

/// Time to first token.
pub fn first(record: &Record) -> f64 {
    record.tokens[0] - record.at
}

pub fn preemptions(run: &Run) -> Vec<usize> {
    run.records.iter().filter_map(|record| Some(record.end?.1.preemptions)).collect()
}

/// Inter-token times of each chosen sequence, for tokens after `from` and up to `to`.
pub fn gaps(run: &Run, of: impl Fn(usize) -> bool, from: f64, to: f64) -> Vec<f64> {
    let mut gaps = Vec::new();
    for (_, record) in run.records.iter().enumerate().filter(|(i, _)| of(*i)) {
        let pairs = record.tokens.windows(2).filter(|pair| pair[1] > from && pair[1] <= to);
        gaps.extend(pairs.map(|pair| pair[1] - pair[0]));
    }
    gaps
}

/// The value below which `share` of all values are.
pub fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    assert!(!values.is_empty());
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

pub fn cache(blocks: usize) -> CacheSize {
    CacheSize { blocks, block_size: 32, window: None, balance: 16_384 }
}

/// Runs the requests, ordered by arrival, to their end, or for `most_steps` steps.
pub fn simulate(policy: Policy, cache: CacheSize, cost: Cost, requests: &[Arrival], most_steps: usize) -> Run {
    let costs = Costs { step: |plan: &Plan| cost.step(plan), submit: cost.submit };
    simulation::simulate(Scheduler::new(policy, cache), costs, requests, most_steps)
}
