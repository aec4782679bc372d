//! Concurrent requests: each gets the bits that it gets alone, whatever runs beside it.
#![cfg(feature = "builtin-model")]

#[allow(dead_code, reason = "only the checkpoints are used, not the expected results")]
#[path = "golden/checkpoint.rs"]
mod checkpoint;
#[cfg(feature = "sim")]
mod simulator;

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use burrstone::model::RopeScaling;
use burrstone::scheduler::Policy;
use burrstone::{
    Constraint, DType, Device, Dry, Engine, EngineBuilder, FinishReason, Generation, Guidance, Prompt, Request,
};
use futures_core::Stream;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Tokens and the bits of their log-probabilities.
fn bits(generation: Generation) -> Vec<(u32, u32)> {
    let bits = |token: burrstone::Token| (token.id, token.logprob.to_bits());
    generation.map(|token| bits(token.unwrap())).collect()
}

/// A random request; few distinct beginnings, so that prefixes are shared.
#[derive(Clone, Debug)]
struct Asked {
    tokens: Vec<u32>,
    max_tokens: usize,
    temperature: f32,
    branches: usize,
    score: bool,
    pause: u64,
    drop_after: Option<usize>,
    guided: bool,
    careful: bool,
}

fn asked(vocab: u32, has_text: bool) -> impl Strategy<Value = Asked> {
    let beginning = (0u32..2, 0usize..130).prop_map(move |(which, len)| {
        (0..len as u32).map(|i| (i * (7 + which * 6) + which) % vocab).collect::<Vec<u32>>()
    });
    let parts = (beginning, prop::collection::vec(0..vocab, 1..40), 1usize..40, 0u32..3, 1usize..4);
    let rest = (0u32..8, 0u64..3, prop::option::weighted(0.15, 0usize..5));
    (parts, rest).prop_map(move |((mut tokens, own, max_tokens, heat, branches), (score, pause, drop_after))| {
        tokens.extend(own);
        let (temperature, score) = (heat as f32 * 0.6, score == 0);
        let (guided, careful) = (has_text && max_tokens.is_multiple_of(3), tokens.len().is_multiple_of(2));
        Asked { tokens, max_tokens, temperature, branches, score, pause, drop_after, guided, careful }
    })
}

impl Asked {
    fn request(&self) -> Request {
        let request = Request::tokens(self.tokens.clone()).max_tokens(self.max_tokens).seed(9);
        let mut request = request.temperature(self.temperature).repetition_penalty(1.1);
        if self.guided {
            request = request.constraint(Constraint::Regex(r"([a-z]+( [a-z]+){1,9}[.,] ?)*".to_owned()));
        }
        if self.tokens.len() < 90 && self.tokens.len().is_multiple_of(5) {
            let negative = self.tokens.iter().rev().step_by(2).copied().collect();
            request = request.guidance(Guidance { scale: 1.5, negative_prompt: Some(Prompt::Tokens(negative)) });
        }
        if self.careful {
            request = request.no_repeat_ngram_size(3).dry(Dry::default()).typical_p(0.95);
        }
        request
    }
}

/// Runs all requests at once in an engine with a small cache, each from its own thread.
fn together(engine: &Engine, all: &[Asked]) -> Vec<Vec<Vec<(u32, u32)>>> {
    std::thread::scope(|scope| {
        let ask = |asked: &Asked| {
            std::thread::sleep(Duration::from_millis(asked.pause));
            if asked.score {
                let logprobs = engine.score(&asked.tokens).unwrap().logprobs;
                return vec![logprobs.into_iter().flatten().map(|logprob| (0, logprob.to_bits())).collect()];
            }
            let generations = engine.generate_several(asked.request(), asked.branches).unwrap();
            match asked.drop_after {
                Some(after) => {
                    generations.into_iter().for_each(|generation| generation.take(after).for_each(drop));
                    Vec::new()
                }
                None => generations.into_iter().map(bits).collect(),
            }
        };
        let threads: Vec<_> = all.iter().map(|asked| scope.spawn(move || ask(asked))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn alone(engine: &Engine, asked: &Asked) -> Vec<Vec<(u32, u32)>> {
    if asked.score {
        let logprobs = engine.score(&asked.tokens).unwrap().logprobs;
        return vec![logprobs.into_iter().flatten().map(|logprob| (0, logprob.to_bits())).collect()];
    }
    if asked.drop_after.is_some() {
        return Vec::new();
    }
    // A new salt each time, so that no request gets prefix hits.
    let salt = |i: usize| asked.tokens.iter().fold(i as u64 + 1, |sum, &t| sum.wrapping_mul(31).wrapping_add(t.into()));
    let request = |i: usize| asked.request().seed(9 + i as u64).cache_salt(salt(i));
    (0..asked.branches).map(|i| bits(engine.generate(request(i)).unwrap())).collect()
}

/// Compares random schedules with an engine that runs one request at a time. Returns the numbers of preempted sequences
/// and of prefix hits in tokens.
fn check(builder: impl Fn() -> EngineBuilder, vocab: u32, cases: u32, size: usize) -> (u64, u64) {
    let reference = builder().build().unwrap();
    let has_text = reference.tokenizer().is_ok();
    let (preempted, cached) = (Cell::new(0), Cell::new(0));
    // Threads race, so a failure need not recur, and shrinking is useless.
    let config = Config { cases, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
    let schedules = (prop::collection::vec(asked(vocab, has_text), size), 8usize..80, 2usize..9);
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
        .run(&schedules, |(all, step_tokens, max_sequences)| {
            // No reserve for tokens to be generated, so that sequences are preempted however slowly requests arrive.
            let policy = Policy { reserve: 0, min_chunk: 8, ..Policy::default() };
            let step_tokens = step_tokens.max(max_sequences);
            let crowded = builder().policy(policy).kv_tokens(256).max_sequences(max_sequences.max(3));
            let crowded = crowded.step_tokens(step_tokens).build().unwrap();
            let found = together(&crowded, &all);
            for (asked, found) in all.iter().zip(found) {
                prop_assert_eq!(found, alone(&reference, asked), "{:?}", asked);
            }
            let status = crowded.status().unwrap();
            prop_assert_eq!((status.running, status.waiting, status.blocks.held), (0, 0, 0));
            preempted.set(preempted.get() + status.stats.preemptions);
            cached.set(cached.get() + status.stats.cached_tokens);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    (preempted.get(), cached.get())
}

/// #9609, except for speculation: concurrency does not change results.
#[test]
fn issue_9609_every_request_gets_the_bits_that_it_gets_alone() {
    let (preempted, cached) = check(|| Engine::builtin().threads(2).context(256), 2048, 8, 20);
    assert!(preempted > 0 && cached > 0, "{preempted} preemptions, {cached} cached tokens");
}

/// A window whose pages are freed, and rotary factors that depend on the length.
#[test]
fn windows_and_dynamic_rope_get_the_bits_that_they_get_alone() {
    for (name, context) in [("mistral-window", 256), ("rope-dynamic", 256)] {
        let folder = tempfile::tempdir().unwrap();
        checkpoint::case(name).write(folder.path());
        let model = folder.path().to_str().unwrap().to_owned();
        let vocab = Engine::builder(&model).build().unwrap().spec().vocab_size as u32;
        let (preempted, cached) = check(|| Engine::builder(&model).device(Device::Cpu).context(context), vocab, 6, 16);
        assert!(preempted > 0 && cached > 0, "{name}: {preempted} preemptions, {cached} cached tokens");
    }
}

/// #18728: RoPE scaling for long texts degraded short ones. With `WhenNeeded`, a sequence within the trained length
/// gets the bits of the unscaled model, a longer one those of the scaled model, and they share no cached keys.
#[test]
fn issue_18728_short_sequences_are_not_scaled() {
    let [stretched, plain] = [true, false].map(|is_stretched| {
        let folder = tempfile::tempdir().unwrap();
        let mut case = checkpoint::case("rope-yarn");
        if !is_stretched {
            case.config["rope_parameters"] = serde_json::json!({"rope_type": "default", "rope_theta": 10000.0});
        }
        case.write(folder.path());
        folder
    });
    #[cfg(feature = "sim")]
    simulator::load();
    let devices: &[Device] = if cfg!(feature = "sim") { &[Device::Cpu, Device::Sim] } else { &[Device::Cpu] };
    for &device in devices {
        let builder = |folder: &tempfile::TempDir| Engine::builder(folder.path().to_str().unwrap()).device(device);
        let (always, never) = (builder(&stretched).build().unwrap(), builder(&plain).build().unwrap());
        let engine = builder(&stretched).rope_scaling(RopeScaling::WhenNeeded).build().unwrap();
        let ask = |engine: &Engine, max_tokens| {
            let request = Request::tokens((20u32..60).collect::<Vec<_>>()).temperature(0.0).ignore_eos(true);
            engine.generate(request.max_tokens(max_tokens)).unwrap()
        };
        // The model was trained with 64 tokens.
        let expected = [bits(ask(&never, 24)), bits(ask(&always, 25))];
        assert_ne!(bits(ask(&always, 24)), expected[0]);
        let side_by_side = [ask(&engine, 24), ask(&engine, 25)];
        assert_eq!(side_by_side.map(bits), expected, "{device}");
        assert_eq!([ask(&engine, 24), ask(&engine, 25)].map(bits), expected, "{device}, from the cache");
        let text: Vec<u32> = (20..84).collect();
        assert_eq!(engine.score(&text).unwrap().logprobs, never.score(&text).unwrap().logprobs);
        let text: Vec<u32> = (20..85).collect();
        assert_eq!(engine.score(&text).unwrap().logprobs, always.score(&text).unwrap().logprobs);
        engine.update_weights(stretched.path()).unwrap();
        assert_eq!(bits(ask(&engine, 24)), expected[0], "{device}, loaded anew");
        let error = builder(&plain).rope_scaling(RopeScaling::WhenNeeded).build().err().unwrap().to_string();
        assert!(error.contains("rope_scaling") && error.contains("default"), "{error}");
    }
}

/// All readers of an 8-bit cache see the same values.
#[test]
fn eight_bit_caches_give_the_bits_of_a_request_alone() {
    for kv in [DType::I8, DType::E4M3] {
        let builder = || Engine::builtin().threads(2).context(256).kv_dtype(Some(kv));
        let (preempted, cached) = check(builder, 2048, 3, 16);
        assert!(preempted > 0 && cached > 0, "{kv}: {preempted} preemptions, {cached} cached tokens");
    }
}

/// The prefill and decode kernels write and read the same keys and values.
#[test]
#[cfg(feature = "sim")]
fn the_simulator_gives_the_bits_of_a_request_alone() {
    simulator::load();
    let folder = tempfile::tempdir().unwrap();
    checkpoint::case("qwen3").write(folder.path());
    let model = folder.path().to_str().unwrap().to_owned();
    let vocab = Engine::builder(&model).device(Device::Cpu).build().unwrap().spec().vocab_size as u32;
    for kv in [None, Some(DType::I8)] {
        let builder = || Engine::builder(&model).device(Device::Sim).context(256).kv_dtype(kv);
        let (_, cached) = check(builder, vocab, 1, 4);
        assert!(cached > 0);
    }
}

/// Evicted blocks come back from host memory, on every device and with their scales.
#[test]
fn evicted_blocks_come_back_from_the_host() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint::case("qwen3").write(folder.path());
    let model = folder.path().to_str().unwrap();
    #[cfg(feature = "sim")]
    simulator::load();
    let devices: &[Device] = if cfg!(feature = "sim") { &[Device::Cpu, Device::Sim] } else { &[Device::Cpu] };
    for (&device, kv) in devices.iter().flat_map(|device| [(device, None), (device, Some(DType::I8))]) {
        let builder = Engine::builder(model).device(device).kv_dtype(kv).kv_tokens(224).max_sequences(2);
        let engine = builder.host_kv_memory(1 << 20).build().unwrap();
        let ask = |letter: u32| {
            // Six blocks: more than one transfer moves.
            let prompt: Vec<u32> = (0..198).map(|i| letter * 7 + i).collect();
            let mut generation = engine.generate(Request::tokens(prompt).max_tokens(4).ignore_eos(true)).unwrap();
            let tokens: Vec<_> = generation.by_ref().map(Result::unwrap).collect();
            (tokens, generation.receipt().cached_tokens)
        };
        let (expected, _) = ask(0);
        // Evicts all blocks of the first one.
        ask(1);
        assert_eq!(ask(0), (expected, 192), "{device} {kv:?}");
        let status = engine.status().unwrap();
        assert_eq!((status.stats.fetched_blocks, status.blocks.host), (6, 12), "{device} {kv:?}");
    }
}

/// #6879, #4702 and eager mode in #9474: for any number of sequences a decode step costs the host one copy and one
/// replay.
#[test]
#[cfg(feature = "sim")]
fn issue_6879_a_step_is_one_copy_and_one_replay_on_the_device() {
    simulator::load();
    let folder = tempfile::tempdir().unwrap();
    checkpoint::case("qwen3").write(folder.path());
    let builder = Engine::builder(folder.path().to_str().unwrap()).device(Device::Sim).max_sequences(4);
    let engine = builder.kv_tokens(512).step_tokens(64).build().unwrap();
    assert!(engine.report().tokens_per_s.unwrap() > 0.0);
    let request = Request::tokens(vec![41, 78, 259]).max_tokens(40).ignore_eos(true).temperature(1.0).seed(1);
    let mut asked = engine.generate_several(request, 3).unwrap();
    for generation in &mut asked {
        // The first steps are launched kernel by kernel, and recorded.
        assert_eq!(generation.by_ref().take(4).map(Result::unwrap).count(), 4);
    }
    let before = engine.status().unwrap();
    asked.into_iter().for_each(|generation| assert_eq!(generation.map(Result::unwrap).count(), 36));
    let after = engine.status().unwrap();
    let steps = after.stats.steps - before.stats.steps;
    // The sequences kept running meanwhile, but are not done, and have got new pages.
    assert!(steps > 10, "{steps}");
    let (a, b) = (before.counters, after.counters);
    assert_eq!((b.replays - a.replays, b.allocations, b.syncs), (steps, a.allocations, a.syncs));
    // All three sequences start a page in the same step.
    assert!(b.launches - a.launches <= 1, "{a:?} {b:?}");
    assert!(b.uploads - a.uploads <= steps, "{a:?} {b:?}");
    // One more for the step that was running before.
    assert!(b.waits - a.waits <= steps + 1, "{a:?} {b:?}");
}

#[test]
fn a_conversation_is_computed_once() {
    let engine = Engine::builtin().threads(2).build().unwrap();
    let mut first = engine.generate(Request::text("In the beginning").max_tokens(100).temperature(0.0)).unwrap();
    let answer: Vec<u32> = first.by_ref().map(|token| token.unwrap().id).collect();
    assert_eq!(first.receipt().cached_tokens, 0);
    let mut turn = first.prompt_tokens().to_vec();
    turn.extend(&answer);
    // The last token was never fed back.
    let known = (turn.len() - 1) / 32 * 32;
    turn.extend([40, 41, 42]);
    let mut second = engine.generate(Request::tokens(turn.clone()).max_tokens(8).temperature(0.0)).unwrap();
    let warm: Vec<_> = second.by_ref().map(Result::unwrap).collect();
    assert_eq!(second.receipt().cached_tokens, known);
    let mut other = engine.generate(Request::tokens(turn).max_tokens(8).temperature(0.0).cache_salt(1)).unwrap();
    let cold: Vec<_> = other.by_ref().map(Result::unwrap).collect();
    assert_eq!((other.receipt().cached_tokens, &cold), (0, &warm));
}

#[test]
fn several_continuations_share_the_prompt() {
    let engine = Engine::builtin().threads(2).build().unwrap();
    let request = || Request::tokens((0..100).collect()).max_tokens(20).temperature(1.0).ignore_eos(true);
    let all = engine.generate_several(request().seed(3), 4).unwrap();
    let all: Vec<_> = all.into_iter().map(bits).collect();
    // The prompt once, and each one's tokens except the last.
    assert_eq!(engine.status().unwrap().stats.computed_tokens, 100 + 4 * 19);
    for (i, found) in all.iter().enumerate() {
        let alone = engine.generate(request().seed(3 + i as u64).cache_salt(7)).unwrap();
        assert_eq!(*found, bits(alone), "continuation {i}");
    }
    assert_ne!(all[0], all[1]);
    let error = engine.generate_several(request(), 65).err().unwrap();
    assert!(error.is_input() && error.to_string().starts_with("n: expected 1 to 64"), "{error}");
}

#[test]
fn a_deadline_ends_a_request_and_keeps_its_tokens() {
    let engine = Engine::builtin().threads(2).build().unwrap();
    let request = Request::text("In the beginning").ignore_eos(true).max_tokens(900).temperature(0.0);
    let mut generation = engine.generate(request.deadline(Duration::from_millis(20))).unwrap();
    let count = generation.by_ref().map(Result::unwrap).count();
    assert!(count < 900);
    assert_eq!(generation.finish_reason(), Some(FinishReason::Deadline));
    // A deadline beyond the clock's range never comes.
    let patient = Request::text("In the beginning").ignore_eos(true).max_tokens(3).deadline(Duration::MAX);
    assert_eq!(engine.generate(patient).unwrap().map(Result::unwrap).count(), 3);
}

/// Wakes the thread that polls a stream.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[test]
fn the_stream_gives_the_iterators_tokens() {
    let engine = Engine::builtin().threads(2).build().unwrap();
    let request = || Request::text("In the beginning").max_tokens(20).temperature(0.0);
    let expected: Vec<_> = engine.generate(request()).unwrap().map(Result::unwrap).collect();
    let mut stream = pin!(engine.generate(request()).unwrap().into_stream());
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut found = Vec::new();
    loop {
        match stream.as_mut().poll_next(&mut Context::from_waker(&waker)) {
            Poll::Ready(Some(token)) => found.push(token.unwrap()),
            Poll::Ready(None) => break,
            Poll::Pending => std::thread::park(),
        }
    }
    assert_eq!(found, expected);
    assert_eq!(stream.generation().usage().completion_tokens, 20);
}
