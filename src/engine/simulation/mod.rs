//! The scheduler under a virtual clock: what requests would go through on a machine that is not here.
//!
//! [`simulate`] drives the [`Scheduler`] as an engine does, request by request and step by step; a step takes what a cost
//! model says, such as [`GpuModel::seconds`](crate::capacity::GpuModel::seconds). Nothing is computed: an hour of a GPU
//! takes seconds.

use std::collections::HashMap;
use std::time::Duration;

use super::scheduler::{End, Outcome, Plan, Receipt, Refused, Scheduler, SequenceId, Stats, Submission};

/// A request, and when it comes.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Seconds from the beginning.
    pub at: f64,
    pub submission: Submission,
    /// Tokens that it generates, at most the submission's `max_tokens`.
    pub output: usize,
}

/// What became of a request.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub at: f64,
    /// When each of its tokens came.
    pub tokens: Vec<f64>,
    pub end: Option<(End, Receipt)>,
    pub refused: Option<Refused>,
}

/// A step as it was scheduled.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub at: f64,
    pub seconds: f64,
    pub tokens: usize,
    /// Sequences that had generated something before.
    pub decodes: usize,
    /// Sequences that held blocks.
    pub running: usize,
    /// Requests that had to wait.
    pub waiting: usize,
}

/// What became of all.
#[derive(Clone, Debug)]
pub struct Run {
    /// One for each request.
    pub records: Vec<Record>,
    pub steps: Vec<Step>,
    pub stats: Stats,
}

impl Run {
    /// Seconds until the last step was done.
    pub fn seconds(&self) -> f64 {
        self.steps.last().map_or(0.0, |step| step.at + step.seconds)
    }

    /// Tokens that were generated.
    pub fn generated(&self) -> usize {
        self.records.iter().map(|record| record.tokens.len()).sum()
    }

    /// Whether all requests ended or were refused.
    pub fn done(&self) -> bool {
        self.records.iter().all(|record| record.end.is_some() || record.refused.is_some())
    }
}

/// What takes time.
pub struct Costs<F> {
    /// Seconds of a step.
    pub step: F,
    /// Seconds of taking a request in.
    pub submit: f64,
}

/// Puts requests, ordered by arrival and each of one branch, through a scheduler that has done nothing yet: to their end,
/// or for so many steps.
pub fn simulate(
    mut scheduler: Scheduler,
    mut costs: Costs<impl FnMut(&Plan) -> f64>,
    requests: &[Arrival],
    most_steps: usize,
) -> Run {
    let mut records: Vec<Record> = requests.iter().map(|r| Record { at: r.at, ..Record::default() }).collect();
    let mut of: HashMap<SequenceId, usize> = HashMap::new();
    let mut arrivals = requests.iter().enumerate().peekable();
    let (mut now, mut steps) = (0.0, Vec::new());
    while steps.len() < most_steps {
        for _ in 0..scheduler.policy().ingest {
            let Some((i, request)) = arrivals.next_if(|(_, request)| request.at <= now) else { break };
            now += costs.submit;
            match scheduler.submit(Duration::from_secs_f64(request.at), request.submission.clone()) {
                Ok(ids) => of.extend(ids.into_iter().map(|id| (id, i))),
                Err(refused) => records[i].refused = Some(refused),
            }
        }
        scheduler.schedule(Duration::from_secs_f64(now));
        let plan = scheduler.plan();
        if plan.chunks.is_empty() {
            match arrivals.peek() {
                Some((_, request)) => now = request.at.max(now),
                None => break,
            }
            continue;
        }
        let decodes = plan.chunks.iter().filter(|c| !records[of[&c.sequence]].tokens.is_empty()).count();
        let seconds = (costs.step)(plan);
        let (tokens, running, waiting) = (plan.tokens(), scheduler.running(), scheduler.waiting());
        steps.push(Step { at: now, seconds, tokens, decodes, running, waiting });
        now += seconds;
        let mut outcomes = Vec::new();
        for chunk in plan.chunks.iter().filter(|chunk| chunk.sample) {
            let i = of[&chunk.sequence];
            records[i].tokens.push(now);
            let generated = records[i].tokens.len();
            let last = generated == requests[i].output;
            outcomes.push(Outcome { sequence: chunk.sequence, token: generated as u32, last });
        }
        scheduler.complete(Duration::from_secs_f64(now), &outcomes);
        for ended in scheduler.take_ended() {
            records[of[&ended.sequence]].end = Some((ended.end, ended.receipt));
        }
    }
    Run { records, steps, stats: scheduler.stats() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Card;
    use crate::engine::capacity::{Capacity, GpuModel, cache_size, llama_8b};
    use crate::engine::scheduler::Policy;

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
