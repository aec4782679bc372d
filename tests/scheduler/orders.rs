//! Properties for every order of events: a request ends once, its tokens are those that it gets alone, and all cache
//! blocks are freed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use burrstone::scheduler::{
    CacheSize, End, Mechanisms, NegativePrompt, Policy, Preemption, Refused, Scheduler, SequenceId, Submission,
};

use crate::blocks::Random;
use crate::device::{Device, guided, next_token};

const SIZE: usize = 4;

struct Live {
    prompt: Vec<u32>,
    negative: Option<NegativePrompt>,
    max_tokens: usize,
    tokens: Vec<u32>,
}

/// Random requests, cancellations, deadlines and failures with a cache that is too small for them. With `ahead`, each
/// step is planned while the previous one runs. Returns how many blocks were fetched from host memory, which only some
/// seeds have, and how many steps were planned ahead.
fn run(seed: u64, blocks: usize, window: Option<usize>, policy: Policy, ahead: bool) -> (u64, u64) {
    let mut random = Random(seed);
    let preemption = [Preemption::Auto, Preemption::Swap, Preemption::Recompute][seed as usize % 5 % 3];
    let policy = Policy { preemption, ..policy };
    let scheduler = Scheduler::new(policy, CacheSize { blocks, block_size: SIZE, window, balance: 64 });
    // At 100, fetching the first block of a sequence takes longer than computing it.
    let mut scheduler = scheduler.with_host([0, 5, 100][seed as usize % 3], seed as usize / 7);
    let mut device = Device::new(blocks, SIZE, window);
    let mut live: HashMap<SequenceId, Live> = HashMap::new();
    let mut ends: HashMap<EndKey, usize> = HashMap::new();
    let (mut submitted, mut ended, mut planned_ahead) = (0, 0, 0);
    for step in 0.. {
        let now = Duration::from_millis(step);
        while submitted < 400 && random.below(3) == 0 {
            let mut prompt = vec![random.below(2) as u32; 1 + random.below(30)];
            prompt.extend((0..random.below(6)).map(|_| random.below(3) as u32));
            let deadline = (random.below(8) == 0).then(|| now + Duration::from_millis(random.below(40) as u64));
            let negative = (random.below(5) == 0).then(|| NegativePrompt {
                prompt: vec![random.below(2) as u32; 1 + random.below(40)],
                salt: random.below(2) as u64,
            });
            let request = Submission {
                branches: if negative.is_some() { 1 } else { 1 + random.below(9).saturating_sub(6) },
                negative,
                priority: random.below(3) as i32 - 1,
                deadline,
                salt: random.below(2) as u64,
                reuse: random.below(6) > 0,
                ..Submission::new(prompt, random.below(40))
            };
            submitted += 1;
            match scheduler.submit(now, request.clone()) {
                Ok(ids) => {
                    assert_eq!(ids.len(), request.branches);
                    for id in ids {
                        let Submission { prompt, negative, max_tokens, .. } = request.clone();
                        live.insert(id, Live { prompt, negative, max_tokens, tokens: Vec::new() });
                    }
                }
                Err(Refused::TooLarge { tokens, capacity }) => assert!(tokens > capacity && capacity == blocks * SIZE),
                Err(refused) => panic!("{refused:?}"),
            }
        }
        if random.below(20) == 0 {
            let mut ids: Vec<_> = live.keys().copied().collect();
            ids.sort();
            if let Some(&id) = ids.get(random.below(ids.len().max(1))) {
                scheduler.cancel(now, id);
                scheduler.cancel(now, id);
            }
        }
        if scheduler.plan().chunks.is_empty() {
            scheduler.schedule(now);
            assert_eq!(
                scheduler.plan().chunks.is_empty(),
                scheduler.is_idle(),
                "no step is planned although requests wait"
            );
        } else {
            planned_ahead += 1;
        }
        assert!(scheduler.plan().tokens() <= policy.step_tokens);
        let in_step: HashSet<_> = scheduler.plan().chunks.iter().map(|chunk| chunk.sequence).collect();
        assert_eq!(in_step.len(), scheduler.plan().chunks.len());
        let (fails, mut outcomes) = (random.below(60) == 0, Vec::new());
        if !fails || random.below(2) == 0 {
            outcomes = device.run(&scheduler, |_, token| token < 15);
        }
        if ahead {
            scheduler.begin();
            if let Some(&id) = in_step.iter().filter(|id| live.contains_key(id)).min().filter(|_| random.below(20) == 0)
            {
                scheduler.cancel(now, id);
            }
            scheduler.schedule(now);
        }
        if fails {
            scheduler.fail(now, random.below(2) == 0);
            if random.below(2) == 0 {
                // A read of lost memory before it is written again fails in the fake device.
                scheduler.forget();
                device.lose();
            }
        } else {
            // Some sequences may have ended meanwhile.
            outcomes.retain(|outcome| scheduler.view(outcome.sequence).is_some());
            for outcome in &outcomes {
                live.get_mut(&outcome.sequence).unwrap().tokens.push(outcome.token);
            }
            scheduler.complete(now, &outcomes);
        }
        for gone in scheduler.take_ended() {
            let Live { prompt, negative, max_tokens, tokens } =
                live.remove(&gone.sequence).expect("every request ends once");
            let (mut all, mut beside) = (prompt, negative.map(|negative| negative.prompt));
            let window = window.unwrap_or(usize::MAX);
            for &token in &tokens {
                let own = next_token(&all, window, gone.sequence.slot());
                let expected = beside.as_ref().map_or(own, |beside| guided(own, next_token(beside, window, 0)));
                assert_eq!(token, expected);
                all.push(token);
                beside.iter_mut().for_each(|beside| beside.push(token));
            }
            if gone.end == End::Finished {
                assert!(tokens.len() == max_tokens || tokens.last().is_some_and(|&token| token < 15));
            }
            *ends.entry(EndKey(gone.end)).or_default() += 1;
            ended += 1;
        }
        assert_eq!(scheduler.is_idle(), live.is_empty());
        if submitted == 400 && scheduler.is_idle() {
            break;
        }
        assert!(step < 100_000, "requests never end");
    }
    assert!(ended >= 300);
    let all = [End::Finished, End::Cancelled, End::Expired, End::Failed].map(EndKey);
    assert!(all.iter().all(|end| ends.contains_key(end)), "{ends:?}");
    scheduler.schedule(Duration::MAX);
    assert_eq!(scheduler.blocks().held, 0);
    assert!(scheduler.stats().cached_tokens > 0);
    (scheduler.stats().fetched_blocks, planned_ahead)
}

/// An [`End`] as a hash map key.
#[derive(Clone, Copy, Debug)]
struct EndKey(End);

impl PartialEq for EndKey {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for EndKey {}

impl std::hash::Hash for EndKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.0 as u8).hash(state);
    }
}

fn policy() -> Policy {
    Policy { step_tokens: 24, max_running: 8, min_chunk: 6, reserve: 8, ..Policy::default() }
}

#[test]
fn every_request_ends_once_with_the_tokens_that_it_gets_alone() {
    for seed in 0..40 {
        for ahead in [false, true] {
            let (fetched, planned) = run(seed, 20, None, policy(), ahead);
            assert_eq!((fetched > 0, planned > 0), (seed % 3 > 0, ahead), "seed {seed}: {fetched} blocks");
            let (_, planned) = run(seed, 64, None, policy(), ahead);
            assert!(planned > 0 || !ahead);
            run(seed, 20, Some(7), policy(), ahead);
        }
    }
}

/// Scheduling mechanisms change the order of requests, never their results.
#[test]
fn mechanisms_do_not_change_results() {
    let all = Mechanisms::default();
    let without = [
        Mechanisms { whole_prompt: false, ..all },
        Mechanisms { hysteresis: false, ..all },
        Mechanisms { mixed_steps: false, ..all },
        Mechanisms { count_hits: false, ..all },
        Mechanisms { affinity: false, ..all },
        Mechanisms { share_in_flight: false, ..all },
        Mechanisms { bounded_prompts: false, ..all },
    ];
    for (seed, mechanisms) in without.into_iter().enumerate() {
        for ahead in [false, true] {
            run(seed as u64, 24, None, Policy { mechanisms, ..policy() }, ahead);
        }
    }
}
