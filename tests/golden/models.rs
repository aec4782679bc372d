//! What `transformers` says about tiny random checkpoints of every architecture and rope kind, and what Burrstone says.
//! `cargo test --release --test golden -- --nocapture` prints the largest
//! differences of each case.

use std::fmt;
#[cfg(feature = "sim")]
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(feature = "sim")]
use burrstone::device::Counters;
use burrstone::{DType, Device, Engine, EngineBuilder, FinishReason, Request};

use crate::checkpoint::{Case, Prompt, case, cases};
#[cfg(feature = "sim")]
use crate::slice::{one_in_turn, some_of};

/// What two correct float32 computations may differ by in a log-probability. The committed cases differ by 1e-5 at most;
/// other shapes amplify rounding errors more, and the reference is written with six decimals.
const FLOAT32: f64 = 1e-4;
/// Two best tokens closer than this may change places in float32.
const TIE: f64 = 1e-4;

#[test]
fn float32_activations_agree_with_float32_transformers() {
    let mut failures = Failures::default();
    for case in cases() {
        let engine = Loaded::new(&case, Some(DType::F32), Device::Cpu);
        let (mut errors, tolerance) = (Errors::default(), case.tolerance(FLOAT32));
        for (i, prompt) in case.prompts.iter().enumerate() {
            for (at, found, expected) in engine.score(prompt) {
                errors.add(found - expected);
                failures.check((found - expected).abs() <= tolerance, || {
                    format!("{}, prompt {i}, position {at}: log-probability {found}, expected {expected}", case.name)
                });
            }
            let tie = if case.is_quantized() { 2.0 * tolerance } else { TIE };
            engine.greedy(prompt, tie, tolerance, &mut errors, |what| {
                failures.add(format!("{}, prompt {i}, {what}", case.name))
            });
        }
        println!("{:34} float32: max |Δ| {:.1e}, mean {:.1e}", case.name, errors.max(), errors.mean());
    }
    failures.finish();
}

/// What a cache of fewer bits costs, all else in float32: mean and largest difference of a log-probability from float32
/// `transformers`, over all cases.
#[test]
fn caches_of_fewer_bits_stay_within_their_bounds() {
    let mut failures = Failures::default();
    for (kv, mean, max) in [
        (DType::F16, 1e-3, 2e-2),
        (DType::BF16, 1e-2, 0.1),
        (DType::I8, 2e-2, 0.5),
        (DType::E4M3, 0.1, 1.5),
        (DType::E5M2, 0.2, 2.5),
    ] {
        let (mut all, mut worst) = (Errors::default(), String::new());
        for case in cases().into_iter().filter(|case| !case.is_quantized()) {
            let engine =
                Loaded::with(&case, |builder| builder.device(Device::Cpu).dtype(Some(DType::F32)).kv_dtype(Some(kv)));
            let mut errors = Errors::default();
            for prompt in &case.prompts {
                engine.score(prompt).for_each(|(_, found, expected)| errors.add(found - expected));
            }
            if errors.max() >= all.max() {
                worst = case.name.clone();
            }
            errors.0.into_iter().for_each(|error| all.add(error));
        }
        let found = format!("{kv}: max |Δ| {:.1e} ({worst}), mean {:.1e}", all.max(), all.mean());
        println!("{found}");
        failures.check(all.mean() <= mean && all.max() <= max, || found);
    }
    failures.finish();
}

/// The rule of the stored dtype: no further from float32 than `transformers` in that dtype is, over all prompts of a
/// case. A maximum over a few hundred samples is itself a matter of luck, so a quarter is allowed on top; a mean is not.
#[test]
fn activations_in_the_stored_dtype_are_no_further_from_float32_than_those_of_transformers() {
    let mut failures = Failures::default();
    for case in cases() {
        let engine = Loaded::new(&case, None, Device::Cpu);
        let (mut ours, mut theirs) = (Errors::default(), Errors::default());
        for prompt in &case.prompts {
            for (_, found, expected) in engine.score(prompt) {
                ours.add(found - expected);
            }
            prompt.native_error.iter().for_each(|error| theirs.add(*error));
        }
        println!(
            "{:34} own dtype: max |Δ| {:.1e} (transformers {:.1e}), mean {:.1e} ({:.1e})",
            case.name,
            ours.max(),
            theirs.max(),
            ours.mean(),
            theirs.mean()
        );
        failures.check(ours.max() <= 1.25 * theirs.max() + FLOAT32, || {
            format!("{}: max |Δ log-probability| {:.5}, transformers {:.5}", case.name, ours.max(), theirs.max())
        });
        failures.check(ours.mean() <= theirs.mean() + FLOAT32, || {
            format!("{}: mean |Δ log-probability| {:.6}, transformers {:.6}", case.name, ours.mean(), theirs.mean())
        });

        // Either of two tokens may be off by the largest error.
        let allowed = 1.25 * theirs.max() + FLOAT32;
        for (i, prompt) in case.prompts.iter().enumerate() {
            engine.greedy(prompt, 2.0 * allowed, 2.0 * allowed, &mut Errors::default(), |what| {
                failures.add(format!("{}, prompt {i}, {what}", case.name));
            });
        }
    }
    failures.finish();
}

/// The CUDA kernels on the simulator, or on a GPU where `BURRSTONE_TEST_DEVICE` is `cuda`: no further from float32 than
/// twice what `transformers` or the CPU engine is in the same dtype, for the residual stream is rounded to it as well.
#[cfg(feature = "sim")]
#[test]
fn devices_agree_with_float32_transformers() {
    let family = |case: &Case| case.name.split('-').next().map(str::to_owned);
    let (device, all, next) = (device(), some_of(cases(), family), AtomicUsize::new(0));
    // While this stream is there, each engine finds the CUDA context made.
    let _stream = crate::gpu::on_a_gpu().then(crate::gpu::gpu);
    let check = || {
        let mut failures = Failures::default();
        while let Some(case) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            agree_on(device, case, &mut failures);
        }
        failures.0
    };
    let threads = if device == Device::Sim { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    let failures = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(check)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    Failures(failures).finish();
}

#[cfg(feature = "sim")]
fn agree_on(device: Device, case: &Case, failures: &mut Failures) {
    let engine = Loaded::new(case, None, device);
    let cpu = Loaded::new(case, Some(engine.engine.report().dtype), Device::Cpu);
    let (mut ours, mut theirs) = (Errors::default(), Errors::default());
    // The simulator takes milliseconds for what a GPU does in microseconds.
    let short = |prompt: &&Prompt| device != Device::Sim || prompt.tokens.len() <= 48;
    let prompts: Vec<&Prompt> = case.prompts.iter().filter(short).collect();
    for prompt in &prompts {
        for ((_, found, expected), (_, on_cpu, _)) in engine.score(prompt).zip(cpu.score(prompt)) {
            ours.add(found - expected);
            theirs.add(on_cpu - expected);
        }
    }
    case.prompts.iter().flat_map(|prompt| &prompt.native_error).for_each(|error| theirs.add(*error));
    println!("{:34} {device}: max |Δ| {:.1e} (others {:.1e})", case.name, ours.max(), theirs.max());
    let allowed = 2.0 * theirs.max() + FLOAT32;
    failures.check(ours.max() <= allowed, || {
        format!("{}: max |Δ log-probability| {:.5}, others {:.5}", case.name, ours.max(), theirs.max())
    });
    for (i, prompt) in prompts.iter().enumerate() {
        engine.greedy(prompt, 2.0 * allowed, 2.0 * allowed, &mut Errors::default(), |what| {
            failures.add(format!("{}, prompt {i}, {what}", case.name));
        });
    }
}

/// From the third token on, the first having been a prefill's and the second the recording's, a token is one replay and
/// one upload: nothing is launched, allocated or waited for but the token itself. A token that is scored has the same
/// log-probability, to the bit, as when it was generated.
#[cfg(feature = "sim")]
#[test]
fn a_decode_step_on_a_device_is_one_replay() {
    let case = case("qwen3");
    let loaded = Loaded::new(&case, None, device());
    let prompt = &case.prompts[0].tokens;
    // The engine runs ahead of who takes the tokens: it is counted once it is done. Another salt each time, so that every
    // prompt is computed.
    let generated = |max_tokens: usize| {
        let request = Request::tokens(prompt.clone()).temperature(0.0).max_tokens(max_tokens).ignore_eos(true);
        let before = loaded.engine.counters();
        let generation = loaded.engine.generate(request.cache_salt(max_tokens as u64)).unwrap();
        let made: Vec<_> = generation.map(Result::unwrap).collect();
        assert_eq!(made.len(), max_tokens);
        (made, before, loaded.engine.counters())
    };
    // The first ones load kernels, and record.
    generated(4);
    let (_, start, short) = generated(3);
    let (made, short_end, long) = generated(8);
    // What five decode steps more ask for.
    let more = |count: fn(&Counters) -> u64| count(&long) - count(&short_end) - (count(&short) - count(&start));
    assert_eq!((more(|c| c.uploads), more(|c| c.waits), more(|c| c.replays)), (5, 5, 5));
    assert_eq!((more(|c| c.launches), more(|c| c.allocations)), (0, 0));
    assert_eq!((more(|c| c.syncs), more(|c| c.downloads)), (0, 0));
    let tokens: Vec<u32> = prompt.iter().copied().chain(made.iter().map(|token| token.id)).collect();
    let logprobs: Vec<Option<f32>> = made.iter().map(|token| Some(token.logprob)).collect();
    assert_eq!(loaded.engine.score(&tokens).unwrap().logprobs[prompt.len()..], logprobs);
}

/// Volta and Turing have no bf16: such a checkpoint runs there in f16, which is the more precise of the two.
#[cfg(feature = "sim")]
#[test]
fn every_architecture_agrees_with_transformers() {
    let case = case("llama-gqa");
    let folder = tempfile::tempdir().unwrap();
    case.write(folder.path());
    let prompts: Vec<&Prompt> = case.prompts.iter().filter(|prompt| prompt.tokens.len() <= 48).collect();
    let mut theirs = Errors::default();
    prompts.iter().flat_map(|prompt| &prompt.native_error).for_each(|error| theirs.add(*error));
    let archs = [
        (70, DType::F16),
        (75, DType::F16),
        (80, DType::BF16),
        (86, DType::BF16),
        (89, DType::BF16),
        (90, DType::BF16),
    ];
    crate::simulator::load();
    for (arch, dtype) in one_in_turn(archs.into()) {
        let built = Engine::builder(folder.path().to_str().unwrap()).device(Device::Sim).sim_arch(arch).build();
        let loaded = Loaded { engine: built.unwrap(), _folder: tempfile::tempdir().unwrap() };
        assert_eq!(loaded.engine.report().dtype, dtype);
        let mut ours = Errors::default();
        for prompt in &prompts {
            loaded.score(prompt).for_each(|(_, found, expected)| ours.add(found - expected));
        }
        let allowed = if dtype == DType::F16 { theirs.max() } else { 2.0 * theirs.max() + FLOAT32 };
        assert!(!ours.0.is_empty() && ours.max() <= allowed, "sm_{arch}: {} and {}", ours.max(), theirs.max());
        loaded.greedy(prompts[0], 2.0 * allowed, 2.0 * allowed, &mut Errors::default(), |what| {
            panic!("sm_{arch}: {what}");
        });
    }
}

/// The device whose kernels are tested.
#[cfg(feature = "sim")]
fn device() -> Device {
    match std::env::var("BURRSTONE_TEST_DEVICE") {
        Ok(name) => name.parse().expect("a device"),
        Err(_) => {
            crate::simulator::load();
            Device::Sim
        }
    }
}

#[test]
fn generation_stops_at_each_end_token_of_the_generation_config() {
    let case = case("llama-gqa");
    let expected = &case.prompts[1].greedy;
    // The first place from the third token on where a token appears for the first time.
    let stop = (2..expected.len()).find(|&i| !expected[..i].contains(&expected[i])).unwrap();
    let folder = tempfile::tempdir().unwrap();
    case.write(folder.path());
    let unused = case.config["eos_token_id"].as_u64().unwrap();
    let config = serde_json::json!({ "eos_token_id": [unused, expected[stop]] });
    std::fs::write(folder.path().join("generation_config.json"), config.to_string()).unwrap();
    let engine = Engine::builder(folder.path().to_str().unwrap()).device(Device::Cpu).build().unwrap();

    let request = || Request::tokens(case.prompts[1].tokens.clone()).temperature(0.0).max_tokens(expected.len());
    let mut generation = engine.generate(request()).unwrap();
    let tokens: Vec<u32> = generation.by_ref().map(|token| token.unwrap().id).collect();
    assert_eq!(generation.finish_reason(), Some(FinishReason::Stop));
    assert!(tokens == expected[..stop] || tokens == expected[..=stop], "{tokens:?}, expected {:?}", &expected[..=stop]);

    let mut generation = engine.generate(request().ignore_eos(true)).unwrap();
    assert_eq!(generation.by_ref().count(), expected.len());
    assert_eq!(generation.finish_reason(), Some(FinishReason::Length));
}

/// A checkpoint on disk and its engine.
struct Loaded {
    engine: Engine,
    _folder: tempfile::TempDir,
}

impl Loaded {
    fn new(case: &Case, dtype: Option<DType>, device: Device) -> Self {
        Self::with(case, |builder| builder.device(device).dtype(dtype))
    }

    fn with(case: &Case, options: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Self {
        let folder = tempfile::tempdir().unwrap();
        case.write(folder.path());
        let built = options(Engine::builder(folder.path().to_str().unwrap())).build();
        let engine = built.unwrap_or_else(|e| panic!("{}: {e}", case.name));
        Self { engine, _folder: folder }
    }

    /// Position, log-probability found and expected, of each token but the first.
    fn score<'a>(&self, prompt: &'a Prompt) -> impl Iterator<Item = (usize, f64, f64)> + use<'a> {
        let score = self.engine.score(&prompt.tokens).unwrap();
        assert_eq!(score.token_ids, prompt.tokens);
        assert_eq!(score.logprobs.len(), prompt.tokens.len());
        assert_eq!(score.logprobs[0], None);
        let found: Vec<f64> = score.logprobs[1..].iter().map(|x| f64::from(x.unwrap())).collect();
        (1..).zip(found).zip(&prompt.logprobs).map(|((at, found), expected)| (at, found, *expected))
    }

    /// Compares the greedy continuation, up to a step where another token is the best one and the reference sees the two
    /// best within `tie`: from there on the texts differ for good.
    fn greedy(&self, prompt: &Prompt, tie: f64, tolerance: f64, errors: &mut Errors, mut fail: impl FnMut(String)) {
        let request =
            Request::tokens(prompt.tokens.clone()).temperature(0.0).max_tokens(prompt.greedy.len()).ignore_eos(true);
        let mut generation = self.engine.generate(request).unwrap();
        assert_eq!(generation.prompt_tokens(), prompt.tokens);
        let found: Vec<_> = generation.by_ref().map(Result::unwrap).collect();
        assert_eq!(generation.finish_reason(), Some(FinishReason::Length));
        assert_eq!(found.len(), prompt.greedy.len());
        for (step, token) in found.iter().enumerate() {
            let (expected, logprob, margin) = (prompt.greedy[step], prompt.greedy_logprobs[step], prompt.margins[step]);
            if token.id != expected {
                if margin > tie {
                    fail(format!("step {step}: token {}, expected {expected}, which leads by {margin}", token.id));
                }
                return;
            }
            let found = f64::from(token.logprob);
            errors.add(found - logprob);
            if (found - logprob).abs() > tolerance {
                fail(format!("step {step}: log-probability {found} of token {expected}, expected {logprob}"));
            }
        }
    }
}

/// Sizes of differences.
#[derive(Default)]
struct Errors(Vec<f64>);

impl Errors {
    fn add(&mut self, error: f64) {
        // A NaN must not hide behind `max`.
        self.0.push(if error.is_nan() { f64::INFINITY } else { error.abs() });
    }

    fn max(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len().max(1) as f64
    }
}

/// All that went wrong, told at the end.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.add(what());
        }
    }

    fn add(&mut self, what: String) {
        self.0.push(what);
    }

    fn finish(self) {
        assert!(self.0.is_empty(), "{self}");
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 40;
        writeln!(f, "{} failures", self.0.len())?;
        self.0.iter().take(SHOWN).try_for_each(|what| writeln!(f, "  {what}"))?;
        if self.0.len() > SHOWN { writeln!(f, "  … and {} more", self.0.len() - SHOWN) } else { Ok(()) }
    }
}
