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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Card;
    use crate::engine::builder::cache_size;
    use crate::engine::scheduler::{Plan, Scheduler, Submission};
    use crate::engine::simulation::gpu::tests::llama_8b;
    use crate::engine::simulation::{Arrival, Costs, simulate};

    /// #9474 of vLLM: nobody knew what the machine could have served. What is said before the first request is what comes
    /// of many, to a tenth.
    #[test]
    fn issue_9474_the_capacity_that_is_reported_is_reached() {
        for (card, blocks, prompt, output) in [
            // Bound by the cache, by sequences at a time, and by prompts.
            ("h100", 400, 200, 100),
            ("a100", 2000, 600, 300),
            ("h200", 8000, 100, 400),
            ("h100", 8000, 1500, 50),
        ] {
            let mut gpu = GpuModel::new(&llama_8b(), Card::named(card).unwrap(), None).unwrap();
            let policy = Policy { max_running: 128, ..Policy::default() };
            let cache = cache_size(&llama_8b(), blocks);
            let said = gpu.capacity(&policy, cache, prompt, output);
            let begin = |i: u32| {
                let tokens = (0..prompt as u32).map(|at| i * 10_007 + at).collect();
                Arrival { at: 0.0, submission: Submission::new(tokens, output), output }
            };
            let requests: Vec<Arrival> = (0..8 * said.sequences as u32).map(begin).collect();
            let costs = Costs { step: |plan: &Plan| gpu.seconds(plan), submit: 0.0 };
            let run = simulate(Scheduler::new(policy, cache), costs, &requests, usize::MAX);
            assert!(run.done());
            let full: Vec<_> = run.steps.iter().filter(|step| step.waiting > 0).collect();
            let (from, to) = (full[full.len() / 4].at, full[full.len() - 1].at);
            let steady: Vec<_> = full.iter().filter(|step| step.at > from).map(|step| step.running as f64).collect();
            let running = steady.iter().sum::<f64>() / steady.len() as f64;
            let came = run.records.iter().flat_map(|record| &record.tokens).filter(|&&at| at > from && at <= to);
            let reached = came.count() as f64 / (to - from);
            println!("{card} {prompt} {output}: {said:?}, {running} sequences, {reached} tokens/s");
            let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.1;
            assert!(near(said.sequences as f64, running), "{card}: {said:?}, {running}");
            assert!(near(said.tokens_per_s, reached), "{card}: {said:?}, {reached}");
        }
    }

    #[test]
    fn what_no_sequence_fits_gives_nothing() {
        let mut gpu = GpuModel::new(&llama_8b(), Card::named("h100").unwrap(), None).unwrap();
        let said = gpu.capacity(&Policy::default(), cache_size(&llama_8b(), 3), 100, 30);
        assert_eq!(said, Capacity { sequences: 0, tokens_per_s: 0.0 });
    }
}
