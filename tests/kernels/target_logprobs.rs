use burrstone::DType;
use burrstone::cpu::{Buffer, Cpu, Isa};
use burrstone::ops::Ops;
use proptest::prelude::*;

use crate::problems::target_logprobs::PROBLEMS;
use crate::reference::target_logprobs::log_softmax;
use crate::support::*;

fn score(cpu: &Cpu, vocab: usize, logits: &Buffer, targets: &[u32]) -> burrstone::Result<Vec<f32>> {
    let mut step = step_for_logits(cpu, targets.len(), Vec::new(), targets.to_vec());
    cpu.target_logprobs(&mut step, 0..targets.len(), vocab, logits)?;
    cpu.scored(&mut step)
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn agrees_with_the_oracle(
        isa in any_isa(),
        threads in 1usize..4,
        vocab in prop_oneof![4 => 1usize..100, 1 => one_of(PROBLEMS, |p| p.vocab)],
        sharpness in 0.1f32..50.0,
        picks in proptest::collection::vec(any::<u32>(), 1..10),
    ) {
        let cpu = cpu(isa, threads);
        let x: Vec<f32> = numbers(1, picks.len() * vocab, DType::F32).iter().map(|x| x * sharpness).collect();
        let targets: Vec<u32> = picks.iter().map(|p| p % vocab as u32).collect();
        let got = score(&cpu, vocab, &buffer(&cpu, DType::F32, &x), &targets).unwrap();
        let rows = x.chunks(vocab).zip(&targets);
        let plain: Vec<f32> = rows.clone().map(|(row, &t)| log_softmax::<f32>(row)[t as usize]).collect();
        let exact: Vec<f64> = rows.map(|(row, &t)| log_softmax::<f64>(row)[t as usize]).collect();
        // The logits' own size bounds the error: a difference of large numbers has no better.
        for (i, (&got, &exact)) in got.iter().zip(&exact).enumerate() {
            let error = (f64::from(got) - exact).abs();
            assert!(error <= 2e-7 * exact.abs().max(1.0), "{isa}: row {i} is {got}, not {exact}, plain {}", plain[i]);
        }
    }
}

#[test]
fn bad_rows_are_named() {
    for isa in isas() {
        let cpu = cpu(isa, 2);
        for (at, bad) in [(0, f32::NAN), (37, f32::NAN), (70, f32::INFINITY)] {
            let mut x = numbers(1, 3 * 71, DType::F32);
            x[71 + at] = bad;
            let error = score(&cpu, 71, &buffer(&cpu, DType::F32, &x), &[0, 1, 2]).unwrap_err().to_string();
            let place = format!("found {bad} in row 1, column {at}");
            assert_eq!(error, format!("operator target_logprobs: logits: expected finite numbers, {place}"));
        }
        // A banned token's −∞ is a number here: its probability is 0.
        let x = buffer(&cpu, DType::F32, &[f32::NEG_INFINITY, 0.0]);
        assert_eq!(score(&cpu, 2, &x, &[1]).unwrap(), [0.0]);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let x = buffer(&cpu, DType::F32, &[0.0; 6]);
    assert_refused(score(&cpu, 3, &x, &[0, 3]), "target_logprobs", "targets");
    assert_refused(score(&cpu, 3, &x, &[0, 1, 2]), "target_logprobs", "logits");
}
