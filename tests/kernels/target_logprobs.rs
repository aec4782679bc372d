use burrstone::DType;
use burrstone::cpu::{Buffer, Cpu, Isa};
use burrstone::device::{Stream, Variant};
use burrstone::kernels::{Sample, SampleWords, TargetLogprobs};
use burrstone::ops::{Ops, SampleRow};
use proptest::prelude::*;

use crate::gpu::announce;
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
        // The error is relative to the logits, of which the result is a difference.
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
        // The −∞ of a banned token is a valid logit: its probability is 0.
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

fn variants() -> &'static [Variant] {
    burrstone::kernels::ALL.iter().find(|kernel| kernel.name == "target_logprobs").unwrap().variants
}

fn on_device(stream: &Stream, variant: &'static Variant, vocab: usize, logits: &[f32], targets: &[u32]) -> Vec<f32> {
    announce(variant.name);
    let mut on_device = stream.alloc(DType::F32, logits.len()).unwrap();
    on_device.write(logits).unwrap();
    let mut of = stream.alloc(DType::U32, targets.len()).unwrap();
    of.write(targets).unwrap();
    let mut out = stream.alloc(DType::F32, targets.len()).unwrap();
    let kernel = TargetLogprobs { logits: on_device.slice(), targets: of.slice(), out: out.slice_mut(), vocab };
    kernel.launch_variant(stream, variant).unwrap();
    out.read().unwrap()
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn devices_agree_with_the_oracle(
        order in any::<u64>(),
        vocab in prop_oneof![4 => 1usize..100, 4 => 1000usize..1400, 1 => one_of(PROBLEMS, |p| p.vocab)],
        sharpness in 0.1f32..50.0,
        picks in proptest::collection::vec(any::<u32>(), 0..4),
    ) {
        let stream = stream(order);
        let x: Vec<f32> = numbers(1, picks.len() * vocab, DType::F32).iter().map(|x| x * sharpness).collect();
        let targets: Vec<u32> = picks.iter().map(|p| p % vocab as u32).collect();
        let first = on_device(&stream, &variants()[0], vocab, &x, &targets);
        for (i, (row, &target)) in x.chunks(vocab).zip(&targets).enumerate() {
            let exact = log_softmax::<f64>(row)[target as usize];
            let error = (f64::from(first[i]) - exact).abs();
            prop_assert!(error <= 2e-7 * exact.abs().max(1.0), "row {} is {}, not {}", i, first[i], exact);
        }
        for variant in variants() {
            assert_same_bits(variant.name, &first, &on_device(&stream, variant, vocab, &x, &targets));
        }
    }
}

/// A sampled token's log-probability has the bits that scoring gives it.
#[test]
fn sampling_and_scoring_give_the_same_bits() {
    let stream = stream(1);
    let logits: Vec<f32> = numbers(8, 3001, DType::F32).iter().map(|x| 7.0 * x).collect();
    let words = SampleWords::new(&[SampleRow { temperature: 1.0, ..SampleRow::GREEDY }], 3001).unwrap();
    let mut memory = stream.alloc(DType::F32, logits.len()).unwrap();
    memory.write(&logits).unwrap();
    let mut rows = stream.alloc(DType::U32, words.rows.len()).unwrap();
    rows.write(&words.rows).unwrap();
    let mut lists = stream.alloc(DType::U32, words.lists.len()).unwrap();
    let mut results = stream.alloc(DType::U8, Sample::RESULT_BYTES).unwrap();
    let kernel = Sample {
        logits: memory.slice_mut(),
        rows: rows.slice(),
        lists: lists.slice_mut(),
        results: results.slice_mut(),
        vocab: 3001,
    };
    kernel.launch(&stream).unwrap();
    let sampled = *Sample::results(&results.read::<u8>().unwrap())[0].as_ref().unwrap();
    for variant in variants() {
        let scored = on_device(&stream, variant, 3001, &logits, &[sampled.token]);
        assert_same_bits(variant.name, &scored, &[sampled.logprob]);
    }
}

#[test]
fn devices_mark_bad_rows() {
    let stream = stream(2);
    for variant in variants() {
        for (at, bad) in [(0, f32::NAN), (37, f32::NAN), (1300, f32::INFINITY)] {
            let mut x = numbers(1, 3 * 1301, DType::F32);
            x[1301 + at] = bad;
            let got = on_device(&stream, variant, 1301, &x, &[0, 1, 2]);
            assert_eq!(got.iter().map(|x| x.is_nan()).collect::<Vec<_>>(), [false, true, false], "{}", variant.name);
        }
        let got =
            on_device(&stream, variant, 2, &[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY], &[1, 0]);
        assert!(got[0] == 0.0 && got[1].is_nan(), "{}: {got:?}", variant.name);
    }
}

#[test]
fn wrong_slices_are_refused_on_a_device() {
    let stream = stream(0);
    let attempt = |vocab: usize, logits: usize, out: usize| {
        let (logits, targets) = (stream.alloc(DType::F32, logits).unwrap(), stream.alloc(DType::U32, 2).unwrap());
        let mut out = stream.alloc(DType::F32, out).unwrap();
        let kernel = TargetLogprobs { logits: logits.slice(), targets: targets.slice(), out: out.slice_mut(), vocab };
        kernel.launch(&stream)
    };
    attempt(4, 8, 2).unwrap();
    assert_refused(attempt(4, 7, 2), "target_logprobs", "logits");
    assert_refused(attempt(4, 8, 1), "target_logprobs", "out");
    assert_refused(attempt(0, 8, 2), "target_logprobs", "vocab");
}
