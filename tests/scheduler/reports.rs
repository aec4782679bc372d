//! One test for each report of a sudden loss of performance: the reported scenario passes, and fails when the mechanism
//! that prevents it is switched off. Numbers with # are issues of vLLM.

use std::time::Duration;

use burrstone::scheduler::{End, Mechanisms, Outcome, Plan, Policy, Preemption, Refused, Scheduler, Submission};

use crate::blocks::Random;
use crate::simulation::{Arrival, Cost, cache, first, gaps, preemptions, prompt, quantile, request, simulate};
use burrstone::simulation::{self, Costs, Run};

fn mean(values: &[f64]) -> f64 {
    assert!(!values.is_empty());
    values.iter().sum::<f64>() / values.len() as f64
}

/// Eight accelerators, and a model with a small KV cache.
const EIGHT: Cost = Cost { weights: 4e-3, token: 16e-6, position: 5e-9, submit: 0.0 };

/// 128 sequences of 36 000 tokens with cache for 60 % of them, and up to `prompts` prompts in prefill at a time.
fn short_cache(prompts: usize, mechanisms: Mechanisms, most_steps: usize) -> Run {
    let begin = |i| {
        let mut arrival = request(0.0, prompt(i, 35_000), 1000);
        arrival.submission.reuse = false;
        arrival
    };
    let requests: Vec<Arrival> = (0..128).map(begin).collect();
    let policy = Policy { max_running: 128, min_chunk: 512 / prompts, mechanisms, ..Policy::default() };
    simulate(policy, cache(128 * 36_000 / 32 * 6 / 10), EIGHT, &requests, most_steps)
}

/// #17568: while requests waited, running sequences ran at a twentieth of their speed.
#[test]
fn issue_17568_running_sequences_keep_their_speed_while_others_wait() {
    // The time per token of running sequences while others wait, relative to a full decode batch.
    let slowdown = |run: &Run| {
        let waiting = run.steps.iter().filter(|step| step.waiting > 0).map(|step| step.at).fold(0.0, f64::max);
        let full = EIGHT.weights + EIGHT.position * 0.6 * 128.0 * 36_000.0;
        mean(&gaps(run, |_| true, 0.0, waiting)) / full
    };
    let with = short_cache(4, Mechanisms::default(), 100_000);
    assert!(with.done());
    assert!(preemptions(&with).iter().all(|&n| n <= 1), "{:?}", preemptions(&with));
    assert!(slowdown(&with) <= 2.0, "{}", slowdown(&with));
    let without = short_cache(4, Mechanisms { mixed_steps: false, ..Mechanisms::default() }, 100_000);
    assert!(slowdown(&without) > 2.0, "{}", slowdown(&without));
}

/// #37307, #21793: prompts started because their first chunk fit, then preempted each other for ever; throughput fell
/// from 100 tokens a second to 1.5.
#[test]
fn issue_37307_prompts_do_not_preempt_each_other() {
    let steps = 12_000;
    let with = short_cache(128, Mechanisms::default(), steps);
    let without = short_cache(128, Mechanisms { whole_prompt: false, ..Mechanisms::default() }, steps);
    let again = |run: &Run| run.stats.recomputed_tokens as f64 / run.stats.computed_tokens as f64;
    assert!(again(&with) < 0.02, "{}", again(&with));
    assert!(again(&without) > 0.2, "{}", again(&without));
    let speed = |run: &Run| run.generated() as f64 / run.seconds();
    assert!(speed(&with) > 1.2 * speed(&without), "{} {}", speed(&with), speed(&without));
}

/// #39734: a request within the model's context but larger than the cache blocked the queue for ever.
#[test]
fn issue_39734_a_request_larger_than_the_cache_is_refused() {
    let requests = [request(0.0, prompt(0, 5000), 100), request(0.1, prompt(1, 100), 10)];
    let run = |mechanisms| {
        let policy = Policy { candidates: 1, mechanisms, ..Policy::default() };
        simulate(policy, cache(128), Cost::GPU, &requests, 2000)
    };
    let with = run(Mechanisms::default());
    assert_eq!(with.records[0].refused, Some(Refused::TooLarge { tokens: 5099, capacity: 4096 }));
    assert!(with.done() && with.records[1].tokens.len() == 10);
    let without = stuck(Mechanisms { refuse_oversize: false, ..Mechanisms::default() });
    assert!(without);
}

/// Whether the second request gets no token because the first is too large.
fn stuck(mechanisms: Mechanisms) -> bool {
    let policy = Policy { candidates: 1, mechanisms, ..Policy::default() };
    let mut scheduler = Scheduler::new(policy, cache(128));
    for (salt, len) in [(0, 5000), (1, 100)] {
        let submission = Submission::new(prompt(salt, len), 10);
        scheduler.submit(Duration::ZERO, submission).unwrap();
    }
    scheduler.schedule(Duration::from_secs(1));
    scheduler.plan().chunks.is_empty()
}

/// #13259: nothing was generated until all requests were accepted. 10 000 arrive at once, each takes 0.2 ms to accept,
/// while one sequence runs.
#[test]
fn issue_13259_accepting_requests_does_not_stop_running_ones() {
    let mut requests = vec![request(0.0, prompt(0, 32), 600)];
    requests.extend((1..10_000).map(|i| request(1.0, prompt(i, 32), 4)));
    let run = |ingest: usize| {
        let policy = Policy { ingest, ..Policy::default() };
        let cost = Cost { submit: 2e-4, ..Cost::GPU };
        simulate(policy, cache(4096), cost, &requests, 100_000)
    };
    let longest = |run: &Run| quantile(gaps(run, |i| i == 0, 0.0, f64::MAX), 1.0);
    let with = run(Policy::default().ingest);
    assert!(with.done());
    // The batch grows to its budget of 512 tokens, twice the time of reading the weights, while 16 requests are
    // accepted a step.
    assert!(longest(&with) <= 0.025, "{}", longest(&with));
    let without = run(usize::MAX);
    assert!(longest(&without) > 1.0, "{}", longest(&without));
}

/// #1562: a long prompt stopped all other sequences during its prefill.
#[test]
fn issue_1562_a_long_prompt_does_not_stop_running_sequences() {
    let mut requests: Vec<Arrival> = (0..32).map(|i| request(0.0, prompt(i, 64), 1000)).collect();
    requests.extend((0..24).map(|i| request(2.0 + 0.25 * i as f64, prompt(100 + i, 4000), 50)));
    let run = |mechanisms| {
        let policy = Policy { mechanisms, ..Policy::default() };
        simulate(policy, cache(8192), Cost::GPU, &requests, 100_000)
    };
    let between = |run: &Run| {
        let idle = quantile(gaps(run, |i| i < 32, 1.0, 2.0), 0.99);
        quantile(gaps(run, |i| i < 32, 2.0, 8.0), 0.99) / idle
    };
    let with = run(Mechanisms::default());
    assert!(with.done() && between(&with) <= 2.2, "{}", between(&with));
    // A step that does not finish the prompt uses its whole token budget.
    for pair in with.steps.windows(2).filter(|pair| pair[0].tokens > 64 && pair[1].tokens > 64) {
        assert_eq!(pair[0].tokens, 512);
    }
    let without = run(Mechanisms { chunks: false, ..Mechanisms::default() });
    assert!(between(&without) > 10.0, "{}", between(&without));
}

/// #7883, first part: a prompt of 16 blocks with 12 prefix hits needs only 4 free blocks.
#[test]
fn issue_7883_prefix_hits_need_no_free_blocks() {
    let begins = |mechanisms| {
        let policy = Policy { reserve: 0, mechanisms, ..Policy::default() };
        let mut scheduler = Scheduler::new(policy, cache(17));
        let submission = |len: usize, max_tokens| Submission::new(prompt(0, len), max_tokens);
        // Holds 13 blocks, 12 of them full, and keeps running.
        let first = scheduler.submit(Duration::ZERO, submission(12 * 32 + 1, 20)).unwrap()[0];
        scheduler.schedule(Duration::ZERO);
        scheduler.complete(Duration::ZERO, &[Outcome { sequence: first, token: 1, last: false }]);
        assert_eq!(scheduler.blocks().held, 13);
        scheduler.submit(Duration::ZERO, submission(16 * 32, 1)).unwrap();
        scheduler.schedule(Duration::ZERO);
        scheduler.running() == 2
    };
    assert!(begins(Mechanisms::default()));
    assert!(!begins(Mechanisms { count_hits: false, ..Mechanisms::default() }));
}

/// #7883, second part: 8 groups of requests, each with a shared prefix of 1024 tokens, arrive alternately; the cache
/// holds three of the prefixes.
#[test]
fn issue_7883_requests_with_prefix_hits_go_first() {
    let mut requests = Vec::new();
    for i in 0..256 {
        let mut tokens = prompt(i % 8, 1024);
        tokens.extend(prompt(1000 + i, 64));
        requests.push(request(0.0, tokens, 2));
    }
    let run = |mechanisms| {
        let policy = Policy { max_running: 2, mechanisms, ..Policy::default() };
        simulate(policy, cache(3 * 36), Cost::GPU, &requests, 100_000)
    };
    let (with, without) = (run(Mechanisms::default()), run(Mechanisms { affinity: false, ..Mechanisms::default() }));
    assert!(with.done() && without.done());
    assert!(with.seconds() * 1.5 < without.seconds(), "{} {}", with.seconds(), without.seconds());
    // No request starves: the head of the queue is overtaken a limited number of times.
    let last = with.records.iter().take(8).map(first).fold(0.0, f64::max);
    assert!(last < 0.8 * with.seconds(), "{last} of {}", with.seconds());
}

/// #7883, third part: 64 requests with the same prefix arrive together; the prefix is computed once.
#[test]
fn issue_7883_a_prefix_in_flight_is_computed_once() {
    let requests: Vec<Arrival> = (0..64)
        .map(|i| {
            let mut tokens = prompt(0, 4096);
            tokens.extend(prompt(1 + i, 10));
            request(0.0, tokens, 8)
        })
        .collect();
    let run = |mechanisms| {
        let policy = Policy { mechanisms, ..Policy::default() };
        simulate(policy, cache(64 * 140), Cost::GPU, &requests, 100_000).stats.computed_tokens as usize
    };
    // The last token of each is not fed back.
    let own = 64 * (10 + 7);
    assert_eq!(run(Mechanisms::default()), 4096 + own);
    let without = run(Mechanisms { share_in_flight: false, ..Mechanisms::default() });
    assert!(without >= 3 * 4096 + own, "{without}");
}

/// #8086: with prompts ten times as long, a large batch takes ten times as long to its first token, as it must. But the
/// receipt tells time in the queue from prefill, and prefill takes no longer than in a small batch.
#[test]
fn issue_8086_queueing_and_prefill_are_reported_apart() {
    let run = |len: usize, mechanisms| {
        let requests: Vec<Arrival> = (0..1000).map(|i| request(0.0, prompt(i, len), 8)).collect();
        let policy = Policy { mechanisms, max_running: 512, ..Policy::default() };
        let policy = Policy { step_tokens: 1024, min_chunk: 256, ..policy };
        simulate(policy, cache(1000 * (len / 32 + 2)), Cost::GPU, &requests, 200_000)
    };
    let seconds = |run: &Run, of: fn(&burrstone::scheduler::Receipt) -> Duration| {
        mean(&run.records.iter().map(|record| of(&record.end.unwrap().1).as_secs_f64()).collect::<Vec<_>>())
    };
    let (short, long) = (run(200, Mechanisms::default()), run(2000, Mechanisms::default()));
    for run in [&short, &long] {
        assert!(run.done());
        for record in &run.records {
            let receipt = record.end.unwrap().1;
            let parts = receipt.queue + receipt.prefill;
            assert!((parts.as_secs_f64() - first(record)).abs() < 1e-6);
        }
    }
    let growth = seconds(&long, |r| r.queue) / seconds(&short, |r| r.queue);
    assert!((8.0..12.0).contains(&growth), "{growth}");
    let alone = 2000.0 * Cost::GPU.token;
    let own = seconds(&long, |r| r.prefill) / alone;
    assert!(own < 6.0, "{own}");
    let without = run(2000, Mechanisms { bounded_prompts: false, ..Mechanisms::default() });
    let own = seconds(&without, |r| r.prefill) / alone;
    assert!(own > 60.0, "{own}");
}

/// #15330, the single-stage part: at 400 sequences decoding dominates a step. Every sequence decodes in every step.
#[test]
fn issue_15330_400_sequences_decode_in_every_step() {
    let requests: Vec<Arrival> =
        (0..1200).map(|i| request(if i < 400 { 0.0 } else { 0.02 * (i - 400) as f64 }, prompt(i, 200), 400)).collect();
    let policy =
        |mechanisms| Policy { max_running: 400, step_tokens: 1024, reserve: 400, mechanisms, ..Policy::default() };
    let run = |mechanisms| simulate(policy(mechanisms), cache(400 * 20), Cost::GPU, &requests, 100_000);
    // From the time when the batch is full until the last prompt: the share of time in steps without decodes.
    let bubble = |run: &Run| {
        let (from, to) = (4.0, 18.0);
        let steps: Vec<_> = run.steps.iter().filter(|step| step.at > from && step.at < to).collect();
        let time: f64 = steps.iter().map(|step| step.seconds).sum();
        let idle: f64 = steps.iter().filter(|step| step.decodes == 0).map(|step| step.seconds).sum();
        idle / time
    };
    let with = run(Mechanisms::default());
    assert!(with.done() && bubble(&with) <= 0.1, "{}", bubble(&with));
    let without = run(Mechanisms { mixed_steps: false, ..Mechanisms::default() });
    assert!(bubble(&without) > 0.1, "{}", bubble(&without));
}

/// #15253: under forced preemption all policies looked equal, because nothing showed what preemption cost. Outputs are
/// three times as long as expected; recomputed tokens are counted, and few.
#[test]
fn issue_15253_preemption_is_counted_and_rare() {
    let mut random = Random(7);
    let requests: Vec<Arrival> = (0..200)
        .map(|i| {
            let mut arrival = request(0.0, prompt(i, 256), 200 + random.below(400));
            arrival.submission.max_tokens = 1200;
            arrival
        })
        .collect();
    let run = |mechanisms| {
        let policy = Policy { max_running: 64, mechanisms, ..Policy::default() };
        simulate(policy, cache(600), Cost::GPU, &requests, 100_000)
    };
    let with = run(Mechanisms::default());
    assert!(with.done() && with.stats.preemptions > 0);
    let receipts: Vec<_> = with.records.iter().map(|record| record.end.unwrap().1).collect();
    assert_eq!(receipts.iter().map(|r| r.preemptions as u64).sum::<u64>(), with.stats.preemptions);
    assert_eq!(receipts.iter().map(|r| r.recomputed_tokens as u64).sum::<u64>(), with.stats.recomputed_tokens);
    let needed: usize = requests.iter().map(|r| r.submission.prompt.len() + r.output - 1).sum();
    assert_eq!(with.stats.computed_tokens - with.stats.recomputed_tokens, needed as u64);
    assert!(receipts.iter().all(|r| r.preemptions <= 1));
    let share = |run: &Run| run.stats.recomputed_tokens as f64 / run.stats.computed_tokens as f64;
    assert!(share(&with) < 0.1, "{}", share(&with));
    let without = run(Mechanisms { hysteresis: false, ..Mechanisms::default() });
    assert!(without.records.iter().any(|record| record.end.is_some_and(|(_, r)| r.preemptions > 1)));
    assert!(share(&without) > 2.0 * share(&with), "{} {}", share(&without), share(&with));
    assert!(with.records.iter().all(|record| matches!(record.end, Some((End::Finished, _)))));
}

/// #15253: swapping performed like recomputing. With a fast, a medium and a slow link to the host, `Auto` is as good as
/// the better of the two.
#[test]
fn issue_15253_auto_chooses_the_faster_of_swap_and_recompute() {
    let begin = |i| {
        let mut arrival = request(0.0, prompt(i, 1500), 500);
        arrival.submission.max_tokens = 1200;
        arrival
    };
    let requests: Vec<Arrival> = (0..60).map(begin).collect();
    // Prefill dominates, and prompts start without enough room: many are preempted.
    let cost = Cost { weights: 1e-3, position: 10e-9, ..Cost::GPU };
    let mechanisms = Mechanisms { whole_prompt: false, hysteresis: false, ..Mechanisms::default() };
    let mut ways = Vec::new();
    // Seconds to fetch a block from the host; computing one takes a millisecond.
    for fetch in [0.1e-3, 0.5e-3, 1e-3, 2e-3, 10e-3] {
        let run = |preemption| {
            let policy = Policy { max_running: 64, reserve: 0, preemption, mechanisms, ..Policy::default() };
            let scheduler = Scheduler::new(policy, cache(640)).with_host(4000, (fetch / cost.token) as usize);
            let step = |plan: &Plan| cost.step(plan) + fetch * plan.moves.from_host.len() as f64;
            let run = simulation::simulate(scheduler, Costs { step, submit: 0.0 }, &requests, 100_000);
            assert!(run.done() && run.stats.preemptions > 0 && run.stats.stored_blocks > 0);
            let receipts = || run.records.iter().map(|record| record.end.unwrap().1);
            assert_eq!(receipts().map(|receipt| receipt.stalled).sum::<Duration>(), run.stats.stalled);
            assert!(receipts().all(|receipt| (receipt.preemptions > 0) == (receipt.stalled > Duration::ZERO)));
            run
        };
        let [auto, swap, recompute] = [Preemption::Auto, Preemption::Swap, Preemption::Recompute].map(run);
        for (name, run) in [("auto", &auto), ("swap", &swap), ("recompute", &recompute)] {
            println!("{fetch} {name}: {} s, {:?}", run.seconds(), run.stats);
        }
        assert_eq!(recompute.stats.fetched_blocks, 0);
        assert!(swap.stats.fetched_blocks > 0 && swap.stats.recomputed_tokens < recompute.stats.recomputed_tokens);
        let (auto, swap, recompute) = (auto.seconds(), swap.seconds(), recompute.seconds());
        assert!(auto <= 1.05 * swap.min(recompute), "{fetch}: {auto}, {swap}, {recompute}");
        ways.push(swap / recompute);
    }
    // Each mode wins at one end.
    assert!(ways[0] < 0.95 && ways[4] > 1.05, "{ways:?}");
}

/// Four prompts of 4000 tokens delayed one of 3 tokens until one of them was done. Here short prompts that keep
/// arriving get their first token within two steps, and the long ones are delayed only by the short ones' own work.
#[test]
fn short_prompts_pass_long_ones_and_cost_what_they_take() {
    let long = || (0..12).map(|i| request(0.0, prompt(i, 4000), 8));
    let short = || (0..300).map(|i| request(0.02 + 0.005 * i as f64, prompt(100 + i, 3 + i % 90), 4));
    let policy = Policy::default();
    let run = |requests: Vec<Arrival>| {
        let run = simulate(policy, cache(8192), Cost::GPU, &requests, 100_000);
        assert!(run.done());
        run
    };
    let (both, alone) = (run(long().chain(short()).collect()), run(long().collect()));
    let longest = both.steps.iter().map(|step| step.seconds).fold(0.0, f64::max);
    let ends = |run: &Run| run.records[..12].iter().map(|record| *record.tokens.last().unwrap()).fold(0.0, f64::max);
    assert!(ends(&alone) < 1.5 + 0.3, "short prompts arrive until the long ones end: {}", ends(&alone));
    for record in &both.records[12..] {
        // The running step, and two more.
        assert!(first(record) <= 3.0 * longest, "{} of {longest}", first(record));
    }
    // While long prompts are in prefill, every step uses its whole token budget.
    let until = both.records[..12].iter().map(|record| record.tokens[0]).fold(0.0, f64::max);
    let steps: Vec<_> = both.steps.iter().filter(|step| step.at + step.seconds < until).collect();
    assert!(steps[..steps.len() - 1].iter().all(|step| step.tokens == policy.step_tokens));
    let short_tokens: usize = short().map(|arrival| arrival.submission.prompt.len() + arrival.output).sum();
    let more = Cost::GPU.token * short_tokens as f64;
    assert!(ends(&both) <= ends(&alone) + 1.1 * more, "{} {} {more}", ends(&both), ends(&alone));
}
