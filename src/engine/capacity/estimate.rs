//! What an engine holds and gives that is never without work, reckoned rather than simulated.

use super::gpu::{GpuModel, Span};
use crate::engine::scheduler::{CacheSize, Policy};

/// With requests of one length, which have nothing in common and never run out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Sequences at a time: of any age, and with room for what the policy expects of each.
    pub sequences: usize,
    /// Tokens that are generated.
    pub tokens_per_s: f64,
}

impl GpuModel {
    /// With requests of `prompt` tokens that generate `output`.
    pub fn capacity(&mut self, policy: &Policy, cache: CacheSize, prompt: usize, output: usize) -> Capacity {
        let output = output.max(1);
        // The last token is never fed back.
        let blocks = |output: usize| (prompt + output - 1).div_ceil(cache.block_size).max(1);
        if blocks(output) > cache.blocks {
            return Capacity { sequences: 0, tokens_per_s: 0.0 };
        }
        let held: usize = (0..output).map(|age| blocks(age.saturating_add(policy.reserve).clamp(1, output))).sum();
        let room = policy.max_running.min(cache.blocks * output / held);
        let (prompt, output, budget) = (prompt as f64, output as f64, policy.step_tokens as f64);
        // As many prompts are computed as sequences end: a step has so many tokens of them for each that generates.
        let each = prompt / output;
        let most = budget / (1.0 + each);
        // Prompts under way are no more than get their share of a step.
        let prompts = (policy.step_tokens / policy.min_chunk.max(1)).max(1);
        let sequences = room.min(most.ceil() as usize + prompts);
        let mut generating = sequences as f64;
        // Those that generate leave room for prompts; what a prompt takes, in steps, its sequence does not generate.
        for _ in 0..64 {
            let room = (budget - generating).max(1.0);
            let steps = (prompt / room).max(1.0);
            generating = 0.5 * (generating + most.min(sequences as f64 * output / (output + steps)));
        }
        let depth = (prompt + 0.5 * output) as usize;
        let generating = generating.max(1.0);
        let mut spans: Vec<Span> = vec![(depth, 1); generating.round() as usize];
        let prompts = (generating * each).round() as usize;
        if prompts > 0 {
            spans.push((0, prompts));
        }
        let wanted = spans.len();
        Capacity { sequences, tokens_per_s: generating / self.seconds_of(&spans, wanted) }
    }
}
