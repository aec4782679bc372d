use burrstone::DType;
use burrstone::cpu::{Cpu, Isa};
use burrstone::ops::{Ops, SampleRow, Sampled};
use proptest::prelude::*;

use crate::problems::sample::PROBLEMS;
use crate::reference::sample::distribution;
use crate::reference::target_logprobs::log_softmax;
use crate::support::*;

const PLAIN: SampleRow = SampleRow {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repetition_penalty: 1.0,
    history: Vec::new(),
    banned: Vec::new(),
    seed: 7,
    position: 0,
};

fn sample(cpu: &Cpu, logits: &[f32], rows: &[SampleRow]) -> Vec<Sampled> {
    attempt(cpu, logits.len() / rows.len(), logits, rows).unwrap()
}

fn attempt(cpu: &Cpu, vocab: usize, logits: &[f32], rows: &[SampleRow]) -> burrstone::Result<Vec<Sampled>> {
    let mut step = step_for_logits(cpu, rows.len(), rows.to_vec(), Vec::new());
    cpu.sample(&mut step, 0..rows.len(), vocab, &mut buffer(cpu, DType::F32, logits))?;
    cpu.sampled(&mut step)
}

proptest! {
    #![proptest_config(cases(60))]

    /// Every token that is drawn has a probability above 0 under the sorting oracle, and frequencies follow it.
    #[test]
    fn draws_follow_the_oracle(
        isa in any_isa(),
        vocab in 2usize..80,
        sharpness in 0.1f32..8.0,
        temperature in 0.2f32..2.0,
        top_k in prop_oneof![Just(0usize), 1usize..100],
        top_p in prop_oneof![Just(1.0f32), 0.05f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..0.5],
        repetition_penalty in prop_oneof![Just(1.0f32), 0.5f32..2.0],
        history in proptest::collection::vec(any::<u32>(), 0..10),
        banned in proptest::option::of(any::<u32>()),
        ties in any::<bool>(),
    ) {
        let cpu = cpu(isa, 2);
        let logits: Vec<f32> = numbers(1, vocab, DType::F32)
            .iter()
            .map(|x| if ties { (x * 4.0).round() } else { x * sharpness })
            .collect();
        let history: Vec<u32> = history.iter().map(|t| t % vocab as u32).collect();
        let banned: Vec<u32> = banned.iter().map(|t| t % vocab as u32).collect();
        let row = SampleRow {
            temperature, top_k, top_p, min_p, repetition_penalty,
            history, banned, ..PLAIN
        };
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

    /// The draw is a function of seed and position: neighbours, threads and instruction sets aside.
    #[test]
    fn draws_do_not_depend_on_company(isa in any_isa(), seed in any::<u64>(), position in any::<u64>()) {
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

/// Over the vocabularies of real models, only tokens that the sorting oracle keeps are drawn.
#[test]
fn filters_hold_for_real_vocabularies() {
    let cpu = cpu(Isa::best(), 2);
    for problem in PROBLEMS {
        let logits: Vec<f32> = numbers(4, problem.vocab, DType::F32).iter().map(|x| 20.0 * x).collect();
        for row in [
            SampleRow { top_k: 50, ..PLAIN },
            SampleRow { top_p: 0.2, ..PLAIN },
            SampleRow { min_p: 0.5, ..PLAIN },
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
fn greedy_takes_the_lowest_of_equals() {
    for isa in isas() {
        let mut logits = vec![0.5; 100];
        logits[63] = 2.0;
        logits[64] = 2.0;
        let row = SampleRow { temperature: 0.0, ..PLAIN };
        assert_eq!(sample(&cpu(isa, 1), &logits, &[row])[0].token, 63);
        let row = SampleRow { temperature: 0.0, banned: vec![63, 4_000_000], ..PLAIN };
        let taken = sample(&cpu(isa, 1), &logits, &[row])[0];
        assert_eq!(taken.token, 64);
        // The ban does not change what the model said.
        assert!((f64::from(taken.logprob) - log_softmax::<f64>(&logits)[64]).abs() < 1e-6);
        let row = SampleRow { temperature: 0.0, repetition_penalty: 8.0, history: vec![63, 64, 64], ..PLAIN };
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
    assert_refused(attempt(&good, SampleRow { history: vec![4], ..PLAIN }), "sample", "history");
    assert_refused(attempt(&good, SampleRow { banned: vec![0, 1, 2, 3], ..PLAIN }), "sample", "banned");
}
