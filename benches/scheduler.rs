//! What a step takes before its first kernel: the scheduler with 256 sequences that generate and others that wait, and the
//! batch that is made of its plan and checked.

use std::time::{Duration, Instant};

use burrstone::batching::Batcher;
use burrstone::cpu::{Cpu, CpuOptions};
use burrstone::model::{RopeKind, RopeSpec};
use burrstone::ops::{Ops, SampleRow};
use burrstone::scheduler::{CacheSize, Outcome, Policy, Scheduler, Submission};
use criterion::{Criterion, criterion_group, criterion_main};

const RUNNING: usize = 256;
const BLOCK_SIZE: usize = 32;
/// Tokens that each generates in one go.
const STEPS: u64 = 10_000;

fn submission(i: usize, len: usize, max_tokens: usize) -> Submission {
    let prompt = (0..len).map(|at| (i * 100_003 + at) as u32).collect();
    Submission::new(prompt, max_tokens)
}

fn step(scheduler: &mut Scheduler, now: Duration, prepare: impl FnOnce(&Scheduler)) -> usize {
    scheduler.schedule(now);
    prepare(scheduler);
    let wanted = scheduler.plan().chunks.iter().filter(|chunk| chunk.sample);
    let outcomes: Vec<Outcome> =
        wanted.map(|chunk| Outcome { sequence: chunk.sequence, token: 1, last: false }).collect();
    scheduler.complete(now, &outcomes);
    outcomes.len()
}

/// Sequences of 2000 tokens that fill the running set, and `waiting` behind them.
fn loaded(waiting: usize) -> Scheduler {
    let policy = Policy { step_tokens: 2048, max_running: RUNNING, ..Policy::default() };
    let cache = CacheSize { blocks: 400_000, block_size: BLOCK_SIZE, window: None, balance: 16_384 };
    let mut scheduler = Scheduler::new(policy, cache);
    for i in 0..RUNNING + waiting {
        scheduler.submit(Duration::ZERO, submission(i, 2000, 1_000_000)).unwrap();
    }
    while step(&mut scheduler, Duration::ZERO, |_| ()) < RUNNING {}
    scheduler
}

/// What becomes of a plan before the device's first kernel: a batch, which is checked and brought there.
fn preparation() -> impl FnMut(&Scheduler) {
    let rope = RopeSpec { rotary_dim: 128, theta: 1e6, kind: RopeKind::Default };
    let mut batcher = Batcher::new(rope.table(), BLOCK_SIZE);
    let cpu = Cpu::new(CpuOptions::default()).expect("a CPU");
    let mut device = cpu.step().expect("a step");
    move |scheduler| {
        batcher.clear();
        for &chunk in &scheduler.plan().chunks {
            let Some(view) = scheduler.view(chunk.sequence) else { continue };
            batcher.generate(chunk, view);
            batcher.choose(SampleRow { position: view.tokens.len() as u64, ..SampleRow::GREEDY });
        }
        cpu.upload(batcher.generated(), &mut device).expect("a batch");
    }
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler/step");
    for (waiting, prepared) in [(0, false), (10_000, false), (0, true)] {
        let batch = if prepared { ", and the batch" } else { "" };
        let mut preparation = preparation();
        group.bench_function(format!("{RUNNING} running, {waiting} waiting{batch}"), |bencher| {
            bencher.iter_custom(|steps| {
                let (mut left, mut spent) = (steps, Duration::ZERO);
                while left > 0 {
                    // Afresh, before the sequences have grown to fill the cache.
                    let mut scheduler = loaded(waiting);
                    let steps = left.min(STEPS);
                    let started = Instant::now();
                    for i in 0..steps {
                        step(&mut scheduler, Duration::from_millis(10 * i), |scheduler| {
                            if prepared {
                                preparation(scheduler);
                            }
                        });
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
