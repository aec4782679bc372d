//! Host time of a step before its first kernel: scheduling with 256 running sequences and others that wait, and
//! building and checking the batch. On an asynchronous device most of this overlaps with the previous step; the part
//! after that step's tokens are known is measured separately.

use std::hint::black_box;
use std::time::{Duration, Instant};

use burrstone::batching::Batcher;
use burrstone::cpu::{Cpu, CpuOptions};
use burrstone::model::{RopeKind, RopeSpec};
use burrstone::ops::{Ops, SampleRow};
use burrstone::scheduler::{CacheSize, Outcome, Policy, Scheduler, Submission};
use criterion::{Criterion, criterion_group, criterion_main};

const RUNNING: usize = 256;
const BLOCK_SIZE: usize = 32;
/// Tokens that each sequence generates before the scheduler is set up again.
const STEPS: u64 = 10_000;

fn submission(i: usize, len: usize, max_tokens: usize) -> Submission {
    let prompt = (0..len).map(|at| (i * 100_003 + at) as u32).collect();
    Submission::new(prompt, max_tokens)
}

fn step(scheduler: &mut Scheduler, now: Duration) -> usize {
    scheduler.schedule(now);
    let outcomes = outcomes(scheduler);
    scheduler.complete(now, &outcomes);
    outcomes.len()
}

/// The outcomes of the plan.
fn outcomes(scheduler: &Scheduler) -> Vec<Outcome> {
    let wanted = scheduler.plan().chunks.iter().filter(|chunk| chunk.sample);
    wanted.map(|chunk| Outcome { sequence: chunk.sequence, token: 1, last: false }).collect()
}

/// A scheduler with as many sequences of 2000 tokens as can run, and `waiting` more.
fn loaded(waiting: usize) -> Scheduler {
    let policy = Policy { step_tokens: 2048, max_running: RUNNING, ..Policy::default() };
    let cache = CacheSize { blocks: 400_000, block_size: BLOCK_SIZE, window: None, balance: 16_384 };
    let mut scheduler = Scheduler::new(policy, cache);
    for i in 0..RUNNING + waiting {
        scheduler.submit(Duration::ZERO, submission(i, 2000, 1_000_000)).unwrap();
    }
    while step(&mut scheduler, Duration::ZERO) < RUNNING {}
    scheduler
}

/// Prepares a plan's batch for the device.
struct Preparation {
    batcher: Batcher,
    device: Cpu,
    step: <Cpu as Ops>::Step,
}

impl Preparation {
    fn new() -> Self {
        let rope = RopeSpec { rotary_dim: 128, theta: 1e6, kind: RopeKind::Default };
        let device = Cpu::new(CpuOptions::default()).expect("a CPU");
        let step = device.step().expect("a step");
        Self { batcher: Batcher::new(rope.table(40_960), BLOCK_SIZE), device, step }
    }

    /// Builds the batch, except for its tokens and sampling rows.
    fn lay_out(&mut self, scheduler: &Scheduler) {
        self.batcher.clear();
        for &chunk in &scheduler.plan().chunks {
            let Some(view) = scheduler.view(chunk.sequence) else { continue };
            self.batcher.generate(chunk, view);
            self.batcher.want();
        }
    }

    fn fill_in(&mut self, scheduler: &Scheduler) {
        for (at, chunk) in scheduler.plan().chunks.iter().enumerate() {
            let Some(view) = scheduler.view(chunk.sequence) else { continue };
            self.batcher.renew(at, view);
            self.batcher.choose(at, SampleRow { position: view.tokens.len() as u64, ..SampleRow::GREEDY });
        }
    }

    /// Checks the batch and uploads it.
    fn upload(&mut self) {
        self.device.upload(self.batcher.generated(), &mut self.step).expect("a batch");
    }
}

/// Runs `steps` steps, with few enough tokens that the cache never fills, and adds up the times that `one` returns.
fn steps(waiting: usize, steps: u64, mut one: impl FnMut(&mut Scheduler, Duration) -> Duration) -> Duration {
    let (mut left, mut spent) = (steps, Duration::ZERO);
    while left > 0 {
        let mut scheduler = loaded(waiting);
        let steps = left.min(STEPS);
        spent += (0..steps).map(|i| one(&mut scheduler, Duration::from_millis(10 * i))).sum::<Duration>();
        left -= steps;
    }
    spent
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler/step");
    for waiting in [0, 10_000] {
        group.bench_function(format!("{RUNNING} running, {waiting} waiting"), |bencher| {
            bencher.iter_custom(|n| {
                steps(waiting, n, |scheduler, now| {
                    let started = Instant::now();
                    step(scheduler, now);
                    started.elapsed()
                })
            });
        });
    }
    let mut preparation = Preparation::new();
    group.bench_function(format!("{RUNNING} running, and the batch"), |bencher| {
        bencher.iter_custom(|n| {
            steps(0, n, |scheduler, now| {
                let started = Instant::now();
                scheduler.schedule(now);
                preparation.lay_out(scheduler);
                preparation.fill_in(scheduler);
                preparation.upload();
                let outcomes = outcomes(scheduler);
                scheduler.complete(now, &outcomes);
                started.elapsed()
            })
        });
    });
    group.bench_function(format!("{RUNNING} running, once the tokens are known"), |bencher| {
        bencher.iter_custom(|n| {
            steps(0, n, |scheduler, now| {
                if scheduler.plan().chunks.is_empty() {
                    scheduler.schedule(now);
                }
                let outcomes = outcomes(scheduler);
                scheduler.begin();
                scheduler.schedule(now);
                preparation.lay_out(scheduler);
                let started = Instant::now();
                scheduler.complete(now, &outcomes);
                preparation.fill_in(scheduler);
                let spent = started.elapsed();
                black_box(preparation.batcher.generated());
                spent
            })
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
