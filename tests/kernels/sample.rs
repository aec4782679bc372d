use burrstone::DType;
use burrstone::cpu::{Cpu, Isa};
use burrstone::device::{Stream, Variant};
use burrstone::kernels::{Sample, SampleWords};
use burrstone::ops::{Mask, Ops, SampleRow, Sampled, TokenHistory};
use proptest::prelude::*;

use crate::gpu::announce;
use crate::problems::sample::PROBLEMS;
use crate::reference::sample::distribution;
use crate::reference::target_logprobs::log_softmax;
use crate::support::*;

const PLAIN: SampleRow = SampleRow {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    typical_p: 1.0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    history: None,
    logit_bias: Vec::new(),
    mask: None,
    seed: 7,
    position: 0,
};

/// A history whose first `prompt_len` tokens, or all if there are fewer, are the prompt's.
fn history(tokens: Vec<u32>, prompt_len: usize) -> TokenHistory {
    let (prompt, generated) = tokens.split_at(prompt_len.min(tokens.len()));
    TokenHistory::new(prompt, generated)
}

fn sample(cpu: &Cpu, logits: &[f32], rows: &[SampleRow]) -> Vec<Sampled> {
    attempt(cpu, logits.len() / rows.len(), logits, rows).unwrap()
}

fn attempt(cpu: &Cpu, vocab: usize, logits: &[f32], rows: &[SampleRow]) -> burrstone::Result<Vec<Sampled>> {
    let mut step = step_for_logits(cpu, rows.len(), rows.to_vec(), Vec::new());
    cpu.sample(&mut step, 0..rows.len(), vocab, &mut buffer(cpu, DType::F32, logits))?;
    cpu.sampled(&mut step)?.into_iter().collect()
}

/// Logits, often with ties, and random sampling parameters.
fn any_row(vocab: impl Strategy<Value = usize>) -> impl Strategy<Value = (Vec<f32>, SampleRow)> {
    let filters = (
        prop_oneof![Just(0usize), 1usize..100],
        prop_oneof![Just(1.0f32), 0.05f32..1.0],
        prop_oneof![Just(0.0f32), 0.0f32..0.5],
        prop_oneof![2 => Just(1.0f32), 1 => 0.05f32..1.0],
    );
    let penalties = (prop_oneof![Just(1.0f32), 0.5f32..2.0], prop_oneof![Just(0.0f32), -2.0f32..2.0], -0.5f32..0.5);
    let tokens = || proptest::collection::vec(any::<u32>(), 0..10);
    let biases = proptest::collection::vec((any::<u32>(), -4.0f32..4.0), 0..6);
    let lists = (tokens(), 0usize..10, biases, proptest::option::of(any::<u64>()));
    (vocab, 0.1f32..8.0, 0.2f32..2.0, any::<bool>(), filters, penalties, lists).prop_map(
        |(vocab, sharpness, temperature, ties, (top_k, top_p, min_p, typical_p), penalties, lists)| {
            let logits = numbers(1, vocab, DType::F32);
            let logits = logits.iter().map(|x| if ties { (x * 4.0).round() } else { x * sharpness }).collect();
            let (tokens, prompt_len, biases, mask) = lists;
            let id = |t: u32| t % vocab as u32;
            let mask = mask.map(|seed| {
                let mut words: Vec<u32> = (0..vocab.div_ceil(32) as u64).map(|i| bits(seed, i) as u32).collect();
                // At least one token is allowed.
                words[0] |= 1;
                Mask::new(words)
            });
            let row = SampleRow {
                temperature,
                top_k,
                top_p,
                min_p,
                typical_p,
                repetition_penalty: penalties.0,
                presence_penalty: penalties.1,
                frequency_penalty: penalties.2,
                history: Some(history(tokens.into_iter().map(id).collect(), prompt_len)),
                logit_bias: biases.into_iter().map(|(t, bias)| (id(t), bias)).collect(),
                mask,
                ..PLAIN
            };
            (logits, row)
        },
    )
}

proptest! {
    #![proptest_config(cases(60))]

    /// Every drawn token has a probability above 0 by the sorting oracle, and frequencies match it.
    #[test]
    fn draws_follow_the_oracle(isa in any_isa(), (logits, row) in any_row(2usize..80)) {
        let (cpu, vocab) = (cpu(isa, 2), logits.len());
        let p = distribution(&logits, &row);
        let logprobs = log_softmax::<f64>(&logits);
        const DRAWS: usize = 1000;
        let rows: Vec<_> = (0..DRAWS as u64).map(|position| SampleRow { position, ..row.clone() }).collect();
        let drawn = sample(&cpu, &logits.repeat(DRAWS), &rows);
        let mut counts = vec![0usize; vocab];
        for Sampled { token, logprob } in drawn {
            counts[token as usize] += 1;
            prop_assert!((f64::from(logprob) - logprobs[token as usize]).abs() < 1e-5);
        }
        for (token, (&count, &p)) in counts.iter().zip(&p).enumerate() {
            prop_assert!(count == 0 || p > 0.0, "{isa}: token {token} drawn {count} times");
            let sigma = (DRAWS as f64 * p * (1.0 - p)).sqrt();
            let off = (count as f64 - DRAWS as f64 * p).abs();
            prop_assert!(off <= 6.0 * sigma + 6.0, "{isa}: token {token} drawn {count} times, p = {p}");
        }
    }

    /// A draw depends on seed and position only, not on other rows, threads or instruction set.
    #[test]
    fn draws_depend_on_seed_and_position_only(isa in any_isa(), seed in any::<u64>(), position in any::<u64>()) {
        let logits = numbers(3, 5 * 1000, DType::F32);
        let row = SampleRow { seed, position, top_p: 0.9, ..PLAIN };
        let rows = vec![row.clone(); 5];
        let together = sample(&cpu(isa, 3), &logits, &rows);
        for (i, logits) in logits.chunks(1000).enumerate() {
            let alone = sample(&cpu(isa, 1), logits, std::slice::from_ref(&row));
            prop_assert_eq!(together[i], alone[0]);
        }
    }
}

/// With the vocabularies of real models, only tokens that the sorting oracle keeps are drawn.
#[test]
fn filters_hold_for_real_vocabularies() {
    let cpu = cpu(Isa::best(), 2);
    for problem in PROBLEMS {
        let logits: Vec<f32> = numbers(4, problem.vocab, DType::F32).iter().map(|x| 20.0 * x).collect();
        for row in [
            SampleRow { top_k: 50, ..PLAIN },
            SampleRow { top_p: 0.2, ..PLAIN },
            SampleRow { min_p: 0.5, ..PLAIN },
            SampleRow { typical_p: 0.3, ..PLAIN },
            SampleRow { top_k: 1000, typical_p: 0.7, ..PLAIN },
            SampleRow { top_k: 1000, top_p: 0.5, min_p: 0.1, ..PLAIN },
        ] {
            let kept = distribution(&logits, &row);
            for position in 0..20 {
                let drawn = sample(&cpu, &logits, &[SampleRow { position, ..row.clone() }])[0];
                assert!(kept[drawn.token as usize] > 0.0, "{}: {drawn:?} with {row:?}", problem.label);
            }
        }
    }
}

#[test]
fn greedy_takes_the_lowest_id_of_a_tie() {
    for isa in isas() {
        let mut logits = vec![0.5; 100];
        logits[63] = 2.0;
        logits[64] = 2.0;
        let row = SampleRow { temperature: 0.0, ..PLAIN };
        assert_eq!(sample(&cpu(isa, 1), &logits, &[row])[0].token, 63);
        let row = SampleRow { temperature: 0.0, logit_bias: vec![(63, f32::NEG_INFINITY)], ..PLAIN };
        let taken = sample(&cpu(isa, 1), &logits, &[row])[0];
        assert_eq!(taken.token, 64);
        // A ban does not change the log-probability, which is the model's.
        assert!((f64::from(taken.logprob) - log_softmax::<f64>(&logits)[64]).abs() < 1e-6);
        let row = SampleRow {
            temperature: 0.0,
            repetition_penalty: 8.0,
            history: Some(history(vec![63, 64, 64], 0)),
            ..PLAIN
        };
        assert_eq!(sample(&cpu(isa, 1), &logits, &[row])[0].token, 0);
    }
}

#[test]
fn seeds_and_positions_matter() {
    let logits = vec![0.0; 50_000];
    let cpu = cpu(Isa::best(), 1);
    let draw = |seed, position| sample(&cpu, &logits, &[SampleRow { seed, position, ..PLAIN }])[0].token;
    let draws = [draw(1, 1), draw(1, 2), draw(2, 1), draw(2, 2)];
    let mut distinct = draws.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 4, "{draws:?}");
    assert_eq!(draw(1, 2), draws[1]);
}

#[test]
fn bad_rows_and_arguments_are_refused() {
    let cpu = cpu(Isa::best(), 2);
    let attempt = |logits: &[f32], row| attempt(&cpu, 4, logits, &[SampleRow { temperature: 0.0, ..PLAIN }, row]);
    let good = [0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0];
    assert_eq!(attempt(&good, PLAIN).unwrap()[0].token, 3);
    let mut nan = good;
    nan[6] = f32::NAN;
    let message = attempt(&nan, PLAIN).unwrap_err().to_string();
    assert_eq!(message, "operator sample: logits: expected finite numbers, found NaN in row 1, column 2");
    assert_refused(attempt(&good[..7], PLAIN), "sample", "logits");
    assert_refused(attempt(&good, SampleRow { temperature: -1.0, ..PLAIN }), "sample", "temperature");
    assert_refused(attempt(&good, SampleRow { temperature: f32::NAN, ..PLAIN }), "sample", "temperature");
    assert_refused(attempt(&good, SampleRow { top_p: 0.0, ..PLAIN }), "sample", "top_p");
    assert_refused(attempt(&good, SampleRow { min_p: 1.5, ..PLAIN }), "sample", "min_p");
    assert_refused(attempt(&good, SampleRow { repetition_penalty: 0.0, ..PLAIN }), "sample", "repetition_penalty");
    assert_refused(attempt(&good, SampleRow { presence_penalty: 2.5, ..PLAIN }), "sample", "presence_penalty");
    assert_refused(attempt(&good, SampleRow { frequency_penalty: f32::NAN, ..PLAIN }), "sample", "frequency_penalty");
    assert_refused(attempt(&good, SampleRow { history: Some(history(vec![4], 1)), ..PLAIN }), "sample", "history");
    assert_refused(attempt(&good, SampleRow { logit_bias: vec![(4, 0.0)], ..PLAIN }), "sample", "logit_bias");
    assert_refused(attempt(&good, SampleRow { logit_bias: vec![(0, f32::INFINITY)], ..PLAIN }), "sample", "logit_bias");
    assert_refused(attempt(&good, SampleRow { typical_p: 0.0, ..PLAIN }), "sample", "typical_p");
    let masked = |words| SampleRow { mask: Some(Mask::new(words)), ..PLAIN };
    assert_refused(attempt(&good, masked(vec![1, 1])), "sample", "mask");
    assert_refused(attempt(&good, masked(vec![0])), "sample", "mask");
    assert_eq!(attempt(&good, masked(vec![0b100])).unwrap()[1].token, 2);
    assert_eq!(attempt(&good, masked(Vec::new())).unwrap()[1], attempt(&good, PLAIN).unwrap()[1]);
}

/// An error names its row; the other rows are sampled.
#[test]
fn a_bad_row_fails_alone() {
    let cpu = cpu(Isa::best(), 2);
    let mut logits = numbers(9, 5 * 40, DType::F32);
    logits[4 * 40 + 7] = f32::NAN;
    let none = SampleRow { mask: Some(Mask::new(vec![0; 2])), ..PLAIN };
    let rows = [PLAIN, SampleRow { logit_bias: vec![(40, 1.0)], ..PLAIN }, none, PLAIN, PLAIN];
    let mut step = step_for_logits(&cpu, rows.len(), rows.to_vec(), Vec::new());
    cpu.sample(&mut step, 0..rows.len(), 40, &mut buffer(&cpu, DType::F32, &logits)).unwrap();
    let results = cpu.sampled(&mut step).unwrap();
    for (i, field) in [(1, "logit_bias"), (2, "mask"), (4, "logits")] {
        let error = results[i].as_ref().unwrap_err().to_string();
        assert!(error.starts_with(&format!("operator sample: {field}: ")), "{error}");
    }
    for i in [0, 3] {
        let alone = sample(&cpu, &logits[40 * i..40 * (i + 1)], &[PLAIN])[0];
        assert_eq!(*results[i].as_ref().unwrap(), alone);
    }
}

/// A wait with a time limit ends with the mask or at the limit.
#[test]
fn a_wait_for_a_mask_ends_at_its_limit() {
    use std::time::{Duration, Instant};
    let (mask, promise) = Mask::promised();
    assert!(!mask.wait_until(Instant::now()) && !mask.wait_until(Instant::now() + Duration::from_millis(5)));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| mask.wait_until(Instant::now() + Duration::from_secs(600)));
        std::thread::sleep(Duration::from_millis(5));
        promise.keep(vec![1]);
        assert!(waiting.join().unwrap());
    });
    assert!(mask.wait_until(Instant::now()) && Mask::new(vec![1]).wait_until(Instant::now()));
    let (mask, promise) = Mask::promised();
    drop(promise);
    assert!(mask.wait_until(Instant::now()) && mask.words().is_empty());
}

/// The sampler waits for a mask that is set only later.
#[test]
fn the_sampler_waits_for_masks() {
    let cpu = cpu(Isa::best(), 1);
    let logits = [0.0, 1.0, 2.0, 3.0];
    let draw = |mask| sample(&cpu, &logits, &[SampleRow { temperature: 0.0, mask: Some(mask), ..PLAIN }])[0].token;
    let (mask, promise) = Mask::promised();
    let token = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| draw(mask));
        std::thread::sleep(std::time::Duration::from_millis(20));
        promise.keep(vec![0b10]);
        waiting.join().unwrap()
    });
    assert_eq!(token, 1);
    // A dropped promise allows all tokens.
    let (mask, promise) = Mask::promised();
    drop(promise);
    assert_eq!(draw(mask), 3);
}

/// The tokens that one variant samples on the device.
fn on_device(
    stream: &Stream,
    variant: &'static Variant,
    vocab: usize,
    logits: &[f32],
    rows: &[SampleRow],
) -> burrstone::Result<Vec<Sampled>> {
    announce(variant.name);
    let words = SampleWords::new(rows, vocab)?;
    let memory = |dtype: DType, words: &[u32]| {
        let mut memory = stream.alloc(dtype, words.len()).unwrap();
        memory.write(words).unwrap();
        memory
    };
    let bits: Vec<u32> = logits.iter().map(|x| x.to_bits()).collect();
    let (mut on_device, mut lists) = (memory(DType::F32, &bits), memory(DType::U32, &words.lists));
    let of_rows = memory(DType::U32, &words.rows);
    let mut results = stream.alloc(DType::U8, rows.len() * Sample::RESULT_BYTES).unwrap();
    let kernel = Sample {
        logits: on_device.slice_mut(),
        rows: of_rows.slice(),
        lists: lists.slice_mut(),
        results: results.slice_mut(),
        vocab,
    };
    kernel.launch_variant(stream, variant)?;
    Sample::results(&results.read::<u8>()?).into_iter().collect()
}

fn variants() -> &'static [Variant] {
    burrstone::kernels::ALL.iter().find(|kernel| kernel.name == "sample").unwrap().variants
}

/// Asserts that every variant samples the CPU's tokens, which the oracle allows, with the model's log-probabilities.
fn check_on_device(stream: &Stream, logits: &[f32], rows: &[SampleRow]) {
    let vocab = logits.len();
    let wanted = sample(&cpu(Isa::best(), 1), &logits.repeat(rows.len()), rows);
    let logprobs = log_softmax::<f64>(logits);
    let mut first = None;
    for variant in variants() {
        let got = on_device(stream, variant, vocab, &logits.repeat(rows.len()), rows).unwrap();
        for ((got, wanted), row) in got.iter().zip(&wanted).zip(rows) {
            assert_eq!(got.token, wanted.token, "{}: vocabulary of {vocab}, {row:?}", variant.name);
            let exact = logprobs[got.token as usize];
            let error = (f64::from(got.logprob) - exact).abs();
            assert!(error <= 2e-7 * exact.abs().max(1.0), "{}: {got:?}, not {exact}", variant.name);
            if row.temperature > 0.0 {
                assert!(distribution(logits, row)[got.token as usize] > 0.0, "{}: {got:?} with {row:?}", variant.name);
            }
        }
        assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "{}", variant.name);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn devices_draw_as_the_cpu_does(
        order in any::<u64>(),
        (logits, row) in any_row(prop_oneof![2usize..80, 1000usize..1400, Just(4096usize), 5000usize..5010]),
    ) {
        let rows: Vec<_> = (0..3).map(|position| SampleRow { position, ..row.clone() }).collect();
        check_on_device(&stream(order), &logits, &rows);
        // The greedy token is exactly the CPU's, with penalties.
        check_on_device(&stream(order), &logits, &[SampleRow { temperature: 0.0, ..row }]);
    }
}

/// Each filter alone, with the vocabularies of real models and an odd one.
#[test]
fn devices_filter_real_vocabularies() {
    let stream = stream(5);
    for vocab in PROBLEMS.iter().map(|problem| problem.vocab).chain([50_257]) {
        let logits: Vec<f32> = numbers(4, vocab, DType::F32).iter().map(|x| 20.0 * x).collect();
        let rows = [
            SampleRow { top_k: 50, ..PLAIN },
            SampleRow { top_p: 0.2, ..PLAIN },
            SampleRow { min_p: 0.5, ..PLAIN },
            SampleRow { typical_p: 0.3, ..PLAIN },
            SampleRow { temperature: 0.0, ..PLAIN },
        ];
        check_on_device(&stream, &logits, &rows);
    }
}

/// Ties at the cut: top-k keeps all tokens as likely as the k-th, top-p those with the lowest ids.
#[test]
fn devices_cut_ties_by_id() {
    let stream = stream(6);
    let mut logits = vec![1.0; 3000];
    logits[2900] = 2.0;
    logits[17] = 0.0;
    for row in [
        SampleRow { top_k: 5, ..PLAIN },
        SampleRow { top_k: 2999, ..PLAIN },
        SampleRow { top_p: 0.3, ..PLAIN },
        SampleRow { top_p: 0.0005, ..PLAIN },
        SampleRow { top_k: 2, top_p: 0.9, ..PLAIN },
        SampleRow { typical_p: 0.5, ..PLAIN },
        SampleRow { top_p: 0.3, typical_p: 0.5, ..PLAIN },
        SampleRow { temperature: 1e-40, ..PLAIN },
        SampleRow { temperature: 1e30, top_p: 0.5, ..PLAIN },
    ] {
        let rows: Vec<_> = (0..4).map(|position| SampleRow { position, ..row.clone() }).collect();
        check_on_device(&stream, &logits, &rows);
    }
}

/// Penalties apply before biases, whichever thread does it: in the other order, each of these tokens would win.
#[test]
fn devices_penalize_before_they_bias() {
    let mut logits = vec![-5.0; 400];
    logits[30..330].fill(1.0);
    logits[399] = 0.2;
    let row = SampleRow {
        temperature: 0.0,
        repetition_penalty: 2.0,
        history: Some(history((0..330).collect(), 0)),
        logit_bias: (30..330).map(|token| (token, -0.4)).collect(),
        ..PLAIN
    };
    for order in 0..4 {
        check_on_device(&stream(order), &logits, &vec![row.clone(); 2]);
    }
}

/// A row's token does not depend on other rows, bad ones included; an error names its row.
#[test]
fn devices_name_bad_rows() {
    let stream = stream(7);
    let mut logits = numbers(9, 3 * 1501, DType::F32);
    let rows = [PLAIN, SampleRow { top_p: 0.5, ..PLAIN }, SampleRow { temperature: 0.0, ..PLAIN }];
    for variant in variants() {
        let together = on_device(&stream, variant, 1501, &logits, &rows).unwrap();
        for (i, logits) in logits.chunks(1501).enumerate() {
            let alone = on_device(&stream, variant, 1501, logits, &rows[i..=i]).unwrap();
            assert_eq!(together[i], alone[0], "{}", variant.name);
        }
        let none = SampleRow { mask: Some(Mask::new(vec![0; 47])), ..PLAIN };
        let error = on_device(&stream, variant, 1501, &logits, &[PLAIN, none, PLAIN]).unwrap_err().to_string();
        assert_eq!(error, "operator sample: mask: expected a token that is left, found none in row 1");
    }
    for (at, bad) in [(0, f32::NAN), (1500, f32::INFINITY), (1024, f32::NAN)] {
        let good = std::mem::replace(&mut logits[1501 + at], bad);
        for variant in variants() {
            let error = on_device(&stream, variant, 1501, &logits, &rows).unwrap_err().to_string();
            let place = format!("found {bad} in row 1, column {at}");
            assert_eq!(error, format!("operator sample: logits: expected finite numbers, {place}"), "{}", variant.name);
        }
        logits[1501 + at] = good;
    }
    let nothing = [f32::NEG_INFINITY; 3];
    let error = on_device(&stream, &variants()[0], 3, &nothing, &[PLAIN]).unwrap_err().to_string();
    assert_eq!(error, "operator sample: logits: expected finite numbers, found -inf in row 0, column 0");
}

#[test]
fn wrong_slices_are_refused_on_a_device() {
    let stream = stream(0);
    let attempt = |vocab: usize, logits: usize, rows: usize, results: usize| {
        let (mut logits, mut lists) = (stream.alloc(DType::F32, logits).unwrap(), stream.alloc(DType::U32, 1).unwrap());
        let rows = stream.alloc(DType::U32, rows).unwrap();
        let mut results = stream.alloc(DType::U8, results).unwrap();
        let kernel = Sample {
            logits: logits.slice_mut(),
            rows: rows.slice(),
            lists: lists.slice_mut(),
            results: results.slice_mut(),
            vocab,
        };
        kernel.launch(&stream)
    };
    attempt(4, 0, 0, 0).unwrap();
    assert_refused(attempt(4, 7, 32, 32), "sample", "logits");
    assert_refused(attempt(4, 8, 31, 32), "sample", "rows");
    assert_refused(attempt(4, 8, 32, 31), "sample", "results");
    assert_refused(attempt(0, 8, 32, 32), "sample", "vocab");
    assert_refused(attempt((1 << 20) + 1, 1 << 22, 32, 32), "sample", "vocab");
}
