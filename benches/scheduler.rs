//! What the scheduler takes of a step: 256 sequences that generate, and others that wait.

use std::time::{Duration, Instant};

use burrstone::scheduler::{CacheSize, Outcome, Policy, Scheduler, Submission};
use criterion::{Criterion, criterion_group, criterion_main};

const RUNNING: usize = 256;
/// Tokens that each generates in one go.
const STEPS: u64 = 10_000;

fn submission(i: usize, len: usize, max_tokens: usize) -> Submission {
    let prompt = (0..len).map(|at| (i * 100_003 + at) as u32).collect();
    Submission::new(prompt, max_tokens)
}

fn step(scheduler: &mut Scheduler, now: Duration) -> usize {
    scheduler.schedule(now);
    let wanted = scheduler.plan().chunks.iter().filter(|chunk| chunk.sample);
    let outcomes: Vec<Outcome> =
        wanted.map(|chunk| Outcome { sequence: chunk.sequence, token: 1, last: false }).collect();
    scheduler.complete(now, &outcomes);
    outcomes.len()
}

/// Sequences of 2000 tokens that fill the running set, and `waiting` behind them.
fn loaded(waiting: usize) -> Scheduler {
    let policy = Policy { step_tokens: 2048, max_running: RUNNING, ..Policy::default() };
    let cache = CacheSize { blocks: 400_000, block_size: 32, window: None, balance: 16_384 };
    let mut scheduler = Scheduler::new(policy, cache);
    for i in 0..RUNNING + waiting {
        scheduler.submit(Duration::ZERO, submission(i, 2000, 1_000_000)).unwrap();
    }
    while step(&mut scheduler, Duration::ZERO) < RUNNING {}
    scheduler
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler/step");
    for waiting in [0, 10_000] {
        group.bench_function(format!("{RUNNING} running, {waiting} waiting"), |bencher| {
            bencher.iter_custom(|steps| {
                let (mut left, mut spent) = (steps, Duration::ZERO);
                while left > 0 {
                    // Afresh, before the sequences have grown to fill the cache.
                    let mut scheduler = loaded(waiting);
                    let steps = left.min(STEPS);
                    let started = Instant::now();
                    for i in 0..steps {
                        step(&mut scheduler, Duration::from_millis(10 * i));
                    }
                    spent += started.elapsed();
                    left -= steps;
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
