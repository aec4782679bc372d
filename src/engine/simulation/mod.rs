//! The scheduler under a virtual clock: what requests would go through on a machine that is not here.
//!
//! [`simulate`] drives the [`Scheduler`] as an engine does, request by request and step by step; a step takes what a cost
//! model says, [`GpuModel::seconds`] for example. Nothing is computed, and nobody waits: an hour of a GPU is seconds.

mod capacity;
mod gpu;

use std::collections::HashMap;
use std::time::Duration;

use super::scheduler::{End, Outcome, Plan, Receipt, Refused, Scheduler, SequenceId, Stats, Submission};

pub use capacity::Capacity;
pub use gpu::{GpuModel, head_product, layer_products};

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
