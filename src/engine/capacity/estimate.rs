//! Estimates the capacity of an engine under constant load, in closed form rather than by simulation.

use super::gpu::{GpuModel, Span};
use crate::engine::scheduler::{CacheSize, Policy};

/// The capacity under constant load, with requests of one length without shared prefixes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Sequences at a time, with the room that the policy reserves for each.
    pub sequences: usize,
    /// Generated tokens per second.
    pub tokens_per_s: f64,
}

impl GpuModel {
    /// Estimates the capacity for requests of `prompt` tokens that generate `output` tokens.
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
        // In equilibrium a prompt is computed for each sequence that ends: so many prompt tokens for each decode.
        let each = prompt / output;
        let most = budget / (1.0 + each);
        // Few prompts are under way, so that each gets its share of a step.
        let prompts = (policy.step_tokens / policy.min_chunk.max(1)).max(1);
        let sequences = room.min(most.ceil() as usize + prompts);
        let mut generating = sequences as f64;
        // Decodes leave room for prompts, and a sequence does not decode during the steps of its prompt.
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
