//! The order in which requests run.

use std::time::Duration;

use burrstone::scheduler::{NegativePrompt, Outcome, Policy, Refused, Scheduler, SequenceId, Submission};

use crate::simulation::{cache, prompt};

fn submission(salt: usize, len: usize, max_tokens: usize) -> Submission {
    Submission::new(prompt(salt, len), max_tokens)
}

/// Runs a step in which no sequence stops early.
fn step(scheduler: &mut Scheduler) {
    scheduler.schedule(Duration::ZERO);
    let wanted = scheduler.plan().chunks.iter().filter(|chunk| chunk.sample);
    let outcomes: Vec<_> = wanted.map(|c| Outcome { sequence: c.sequence, token: 1, last: false }).collect();
    scheduler.complete(Duration::ZERO, &outcomes);
}

/// The sequences of the step, and their token counts.
fn chunks(scheduler: &Scheduler) -> Vec<(SequenceId, usize)> {
    scheduler.plan().chunks.iter().map(|chunk| (chunk.sequence, chunk.len)).collect()
}

#[test]
fn prompts_share_a_step_evenly_and_short_ones_leave_the_rest() {
    let mut scheduler = Scheduler::new(Policy::default(), cache(1000));
    let submit =
        |scheduler: &mut Scheduler, salt, len| scheduler.submit(Duration::ZERO, submission(salt, len, 10)).unwrap()[0];
    let running = submit(&mut scheduler, 0, 1);
    step(&mut scheduler);
    let [long, short, other] = [(1, 4000), (2, 41), (3, 4000)].map(|(salt, len)| submit(&mut scheduler, salt, len));
    scheduler.schedule(Duration::ZERO);
    assert_eq!(chunks(&scheduler), [(running, 1), (short, 41), (long, 235), (other, 235)]);
}

/// The order in which requests with these (arrival, priority) start, one at a time.
fn order(arrivals: &[(u64, i32)]) -> Vec<usize> {
    let policy = Policy { max_running: 1, aging: Duration::from_secs(10), ..Policy::default() };
    let mut scheduler = Scheduler::new(policy, cache(100));
    let submit = |(salt, &(at, priority)): (usize, &(u64, i32))| {
        let submission = Submission { priority, ..submission(salt, 10, 1) };
        scheduler.submit(Duration::from_secs(at), submission).unwrap()[0]
    };
    let ids: Vec<_> = arrivals.iter().enumerate().map(submit).collect();
    let begun = |_: &SequenceId| {
        step(&mut scheduler);
        let ended = scheduler.take_ended();
        ids.iter().position(|&id| id == ended[0].sequence).unwrap()
    };
    ids.iter().map(begun).collect()
}

#[test]
fn higher_priority_goes_first_and_waiting_raises_it() {
    assert_eq!(order(&[(0, 0), (0, 0), (0, 0)]), [0, 1, 2]);
    assert_eq!(order(&[(0, 0), (9, 1), (9, -1)]), [1, 0, 2]);
    assert_eq!(order(&[(0, 0), (11, 1), (25, 2)]), [0, 1, 2]);
}

/// A short prompt is part of the next step, however many long prompts wait, and the running long ones continue beside
/// it.
#[test]
fn a_short_prompt_does_not_wait_for_long_ones() {
    for long_ones in [4, 40] {
        let mut scheduler = Scheduler::new(Policy::default(), cache(10_000));
        let submit = |scheduler: &mut Scheduler, salt, len| {
            scheduler.submit(Duration::ZERO, submission(salt, len, 10)).unwrap()[0]
        };
        let long: Vec<_> = (0..long_ones).map(|salt| submit(&mut scheduler, salt, 4000)).collect();
        step(&mut scheduler);
        let begun = &long[..4];
        let short: Vec<_> = (0..20).map(|i| submit(&mut scheduler, 100 + i, 3 + 6 * i)).collect();
        scheduler.schedule(Duration::ZERO);
        let in_step = chunks(&scheduler);
        let tokens = |ids: &[SequenceId]| -> usize {
            in_step.iter().filter(|(id, _)| ids.contains(id)).map(|(_, len)| len).sum()
        };
        assert_eq!((in_step[0].0, in_step[0].1), (short[0], 3));
        assert_eq!((tokens(&short) + tokens(begun), scheduler.plan().tokens()), (512, 512));
        assert!(tokens(begun) >= Policy::default().min_chunk, "{in_step:?}");
        assert!(begun.iter().all(|id| in_step.iter().any(|(other, _)| other == id)), "{in_step:?}");
        // A prompt with prefix hits counts as short as the rest of it.
        let mut scheduler = Scheduler::new(Policy::default(), cache(10_000));
        let first = submit(&mut scheduler, 0, 4000);
        while scheduler.view(first).unwrap().tokens.len() == 4000 {
            step(&mut scheduler);
        }
        for salt in 1..5 {
            submit(&mut scheduler, salt, 4000);
        }
        step(&mut scheduler);
        let again = submit(&mut scheduler, 0, 4010);
        scheduler.schedule(Duration::ZERO);
        assert!(chunks(&scheduler).contains(&(again, 4010 - 4000 / 32 * 32)), "{:?}", chunks(&scheduler));
    }
}

/// A held sequence is left out of the current plan and of later ones; when resumed it continues where it was.
#[test]
fn a_held_sequence_continues_when_resumed() {
    let mut scheduler = Scheduler::new(Policy::default(), cache(100));
    let submit =
        |scheduler: &mut Scheduler, salt| scheduler.submit(Duration::ZERO, submission(salt, 10, 9)).unwrap()[0];
    let [first, second] = [0, 1].map(|salt| submit(&mut scheduler, salt));
    let negative = NegativePrompt { prompt: prompt(2, 7), salt: 0 };
    let guided = Submission { negative: Some(negative), ..submission(3, 10, 9) };
    let guided = scheduler.submit(Duration::ZERO, guided).unwrap()[0];
    let step_of = |scheduler: &mut Scheduler| {
        let sampled = scheduler.plan().chunks.iter().filter(|c| c.sample && scheduler.guides(c.sequence).is_none());
        let outcomes: Vec<_> = sampled.map(|c| Outcome { sequence: c.sequence, token: 1, last: false }).collect();
        scheduler.complete(Duration::ZERO, &outcomes);
    };
    scheduler.schedule(Duration::ZERO);
    step_of(&mut scheduler);
    scheduler.schedule(Duration::ZERO);
    assert_eq!(scheduler.plan().chunks.len(), 4);
    scheduler.hold(first);
    scheduler.hold(guided);
    for _ in 0..3 {
        assert_eq!(chunks(&scheduler), [(second, 1)]);
        step_of(&mut scheduler);
        scheduler.schedule(Duration::ZERO);
    }
    scheduler.hold(second);
    scheduler.schedule(Duration::ZERO);
    assert!(scheduler.plan().chunks.is_empty() && !scheduler.is_idle());
    [first, second, guided].into_iter().for_each(|id| scheduler.resume(id));
    scheduler.schedule(Duration::ZERO);
    assert_eq!(scheduler.plan().chunks.len(), 4);
    step_of(&mut scheduler);
    let generated = |id| scheduler.view(id).unwrap().tokens.len() - 10;
    assert_eq!([first, second, guided].map(generated), [2, 5, 2]);
}

/// The next step, planned while one runs, leaves out sequences that reach their token limit in it, and, when the tokens
/// are known, those that stopped.
#[test]
fn a_step_is_planned_while_another_runs() {
    let mut scheduler = Scheduler::new(Policy::default(), cache(100));
    let mut submit = |salt, max_tokens| scheduler.submit(Duration::ZERO, submission(salt, 10, max_tokens)).unwrap()[0];
    let [short, stopped, long] = [(0, 1), (1, 9), (2, 9)].map(|(salt, max_tokens)| submit(salt, max_tokens));
    scheduler.schedule(Duration::ZERO);
    scheduler.begin();
    assert!(scheduler.plan().chunks.is_empty());
    scheduler.schedule(Duration::ZERO);
    assert_eq!(chunks(&scheduler), [(stopped, 1), (long, 1)]);
    let outcome = |sequence, token, last| Outcome { sequence, token, last };
    scheduler.complete(Duration::ZERO, &[outcome(short, 7, false), outcome(stopped, 8, true), outcome(long, 9, false)]);
    assert_eq!(scheduler.take_ended().len(), 2);
    assert_eq!(chunks(&scheduler), [(long, 1)]);
    assert_eq!(scheduler.view(long).unwrap().tokens[10..], [9]);
    assert_eq!((scheduler.stats().steps, scheduler.stats().computed_tokens), (1, 30));
}

#[test]
fn a_prefix_of_the_running_step_is_computed_once() {
    let mut scheduler = Scheduler::new(Policy::default(), cache(100));
    let submit = |scheduler: &mut Scheduler| scheduler.submit(Duration::ZERO, submission(0, 100, 9)).unwrap()[0];
    let first = submit(&mut scheduler);
    scheduler.schedule(Duration::ZERO);
    scheduler.begin();
    let second = submit(&mut scheduler);
    scheduler.schedule(Duration::ZERO);
    assert_eq!(chunks(&scheduler), [(first, 1)]);
    scheduler.complete(Duration::ZERO, &[Outcome { sequence: first, token: 1, last: false }]);
    scheduler.begin();
    scheduler.schedule(Duration::ZERO);
    assert_eq!(chunks(&scheduler), [(first, 1), (second, 4)]);
}

/// A score for each token of a text after the first: its index.
fn scores(len: usize) -> Vec<f32> {
    (1..len).map(|token| token as f32).collect()
}

#[test]
fn scores_are_known_as_long_as_their_blocks() {
    let mut scheduler = Scheduler::new(Policy::default(), cache(10));
    let run = |scheduler: &mut Scheduler, submission: Submission| {
        let (len, scored) = (submission.prompt.len(), submission.scored);
        let id = scheduler.submit(Duration::ZERO, submission).unwrap()[0];
        scheduler.schedule(Duration::ZERO);
        let known = scheduler.known_scores(id).to_vec();
        assert_eq!(chunks(scheduler), [(id, len - known.len())]);
        if scored {
            scheduler.scored(id, &scores(len));
        }
        scheduler.complete(Duration::ZERO, &[]);
        assert_eq!(scheduler.take_ended().len(), 1);
        known
    };
    let scored = || Submission { scored: true, ..submission(0, 100, 0) };
    // Blocks that were computed without scores cannot be used; the new ones have scores.
    run(&mut scheduler, submission(0, 100, 0));
    assert_eq!((scheduler.blocks().scored, scheduler.blocks().idle), (0, 3));
    assert!(run(&mut scheduler, scored()).is_empty());
    assert_eq!((scheduler.blocks().scored, scheduler.blocks().idle), (3, 3));
    // The score of token 64 belongs to the third block.
    assert_eq!(run(&mut scheduler, scored()), scores(65));
    run(&mut scheduler, submission(1, 310, 0));
    assert_eq!((scheduler.blocks().scored, scheduler.stats().cached_tokens), (0, 64));
    assert!(run(&mut scheduler, scored()).is_empty());
    scheduler.forget();
    assert_eq!((scheduler.blocks().scored, scheduler.blocks().free), (0, 10));
    assert!(run(&mut scheduler, scored()).is_empty());
}

#[test]
fn a_large_request_is_overtaken_at_most_patience_times() {
    let policy = Policy { patience: 3, reserve: 0, ..Policy::default() };
    let mut scheduler = Scheduler::new(policy, cache(10));
    // Six of ten blocks stay held; the next request needs eight.
    let holder = scheduler.submit(Duration::ZERO, submission(0, 160, 32)).unwrap()[0];
    step(&mut scheduler);
    let large = scheduler.submit(Duration::ZERO, submission(1, 250, 1)).unwrap()[0];
    for salt in 2..10 {
        scheduler.submit(Duration::ZERO, submission(salt, 20, 1)).unwrap();
    }
    let mut small = 0;
    for _ in 0..10 {
        step(&mut scheduler);
        small += scheduler.take_ended().len();
    }
    assert_eq!(small, 3);
    scheduler.cancel(Duration::ZERO, holder);
    step(&mut scheduler);
    let ended: Vec<_> = scheduler.take_ended().iter().map(|ended| ended.sequence).collect();
    assert!(ended.contains(&holder) && ended.contains(&large), "{ended:?}");
}

/// #9474, among others: the queue is bounded.
#[test]
fn requests_that_cannot_run_are_refused_at_once() {
    let policy = Policy { max_waiting: 2, max_running: 4, ..Policy::default() };
    let mut scheduler = Scheduler::new(policy, cache(4));
    let mut submit = |submission| scheduler.submit(Duration::ZERO, submission).map(|ids| ids.len());
    assert_eq!(submit(submission(0, 0, 1)), Err(Refused::Empty));
    assert_eq!(submit(submission(0, 100, 30)), Err(Refused::TooLarge { tokens: 129, capacity: 128 }));
    let many = Submission { branches: 5, ..submission(0, 10, 1) };
    assert_eq!(submit(many), Err(Refused::TooManyBranches { branches: 5, limit: 4 }));
    // The last token is never fed back.
    assert_eq!(submit(submission(0, 100, 29)), Ok(1));
    assert_eq!(submit(Submission { branches: 4, ..submission(1, 10, 1) }), Ok(4));
    assert_eq!(submit(submission(2, 10, 1)), Err(Refused::QueueFull { waiting: 2 }));
}
