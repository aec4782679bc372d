//! The scheduler under a virtual clock: steps take what a cost model says.

use std::collections::HashMap;
use std::time::Duration;

use burrstone::scheduler::{
    CacheSize, End, Outcome, Policy, Receipt, Refused, Scheduler, SequenceId, Stats, Submission,
};

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

    fn step(&self, tokens: usize, positions: usize) -> f64 {
        self.weights.max(self.token * tokens as f64) + self.position * positions as f64
    }
}

#[derive(Clone, Debug)]
pub struct Request {
    pub at: f64,
    pub prompt: Vec<u32>,
    pub output: usize,
    /// What it says that it may generate.
    pub max_tokens: usize,
    pub reuse: bool,
}

/// A prompt that shares nothing with one of another salt.
pub fn prompt(salt: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| (salt * 1_000_003 + i) as u32).collect()
}

pub fn request(at: f64, prompt: Vec<u32>, output: usize) -> Request {
    Request { at, prompt, output, max_tokens: output, reuse: true }
}

#[derive(Clone, Debug, Default)]
pub struct Record {
    pub at: f64,
    /// When each of its tokens came.
    pub tokens: Vec<f64>,
    pub end: Option<(End, Receipt)>,
    pub refused: Option<Refused>,
}

impl Record {
    /// From arrival to the first token.
    pub fn first(&self) -> f64 {
        self.tokens[0] - self.at
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub at: f64,
    pub seconds: f64,
    pub tokens: usize,
    pub decodes: usize,
    pub waiting: usize,
}

pub struct Run {
    pub records: Vec<Record>,
    pub steps: Vec<Step>,
    pub stats: Stats,
    /// All requests were taken, and ended.
    pub done: bool,
}

impl Run {
    pub fn seconds(&self) -> f64 {
        self.steps.last().map_or(0.0, |step| step.at + step.seconds)
    }

    pub fn generated(&self) -> usize {
        self.records.iter().map(|record| record.tokens.len()).sum()
    }

    pub fn preemptions(&self) -> Vec<usize> {
        self.records.iter().filter_map(|record| Some(record.end?.1.preemptions)).collect()
    }

    /// Seconds between tokens of one sequence, of those that came between two times.
    pub fn gaps(&self, of: impl Fn(usize) -> bool, from: f64, to: f64) -> Vec<f64> {
        let mut gaps = Vec::new();
        for (_, record) in self.records.iter().enumerate().filter(|(i, _)| of(*i)) {
            let pairs = record.tokens.windows(2).filter(|pair| pair[1] > from && pair[1] <= to);
            gaps.extend(pairs.map(|pair| pair[1] - pair[0]));
        }
        gaps
    }
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
pub fn simulate(policy: Policy, cache: CacheSize, cost: Cost, requests: &[Request], most_steps: usize) -> Run {
    let mut scheduler = Scheduler::new(policy, cache);
    let mut records: Vec<Record> = requests.iter().map(|r| Record { at: r.at, ..Record::default() }).collect();
    let mut of: HashMap<SequenceId, usize> = HashMap::new();
    let mut arrivals = requests.iter().enumerate().peekable();
    let (mut now, mut steps) = (0.0, Vec::new());
    while steps.len() < most_steps {
        for _ in 0..policy.ingest {
            let Some((i, request)) = arrivals.next_if(|(_, request)| request.at <= now) else { break };
            now += cost.submit;
            let submission = Submission {
                prompt: request.prompt.clone(),
                max_tokens: request.max_tokens,
                branches: 1,
                priority: 0,
                deadline: None,
                salt: 0,
                reuse: request.reuse,
            };
            match scheduler.submit(Duration::from_secs_f64(request.at), submission) {
                Ok(ids) => {
                    of.insert(ids[0], i);
                }
                Err(refused) => records[i].refused = Some(refused),
            }
        }
        scheduler.schedule(Duration::from_secs_f64(now));
        let plan = scheduler.plan();
        if plan.chunks.is_empty() {
            match arrivals.peek() {
                Some((_, request)) if request.at > now => now = request.at,
                Some(_) => {}
                None => break,
            }
            continue;
        }
        let tokens = plan.tokens();
        let positions = plan.chunks.iter().map(|chunk| chunk.start + chunk.len).sum();
        let decodes = plan.chunks.iter().filter(|c| !records[of[&c.sequence]].tokens.is_empty()).count();
        let seconds = cost.step(tokens, positions);
        steps.push(Step { at: now, seconds, tokens, decodes, waiting: scheduler.waiting() });
        now += seconds;
        let mut outcomes = Vec::new();
        for chunk in plan.chunks.iter().filter(|chunk| chunk.sample) {
            let i = of[&chunk.sequence];
            records[i].tokens.push(now);
            let (token, last) = (records[i].tokens.len() as u32, records[i].tokens.len() == requests[i].output);
            outcomes.push(Outcome { sequence: chunk.sequence, token, last });
        }
        scheduler.complete(Duration::from_secs_f64(now), &outcomes);
        for ended in scheduler.take_ended() {
            records[of[&ended.sequence]].end = Some((ended.end, ended.receipt));
        }
    }
    let done = records.iter().all(|record| record.end.is_some() || record.refused.is_some());
    Run { records, steps, stats: scheduler.stats(), done }
}
