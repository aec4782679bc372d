//! Asynchronous copies: they deliver their data, and using it too early is detected.

use burrstone::device::sim::{Fault, FaultKind};

use crate::probe::{Probe, Random};

fn cp_async(bytes_each: usize, plant: &str, valid: usize, seed: u64) -> Result<(Vec<u8>, Vec<u8>), Fault> {
    let mut random = Random::new(seed);
    let a: Vec<u8> = (0..128 * bytes_each).map(|_| random.next() as u8).collect();
    let mut probe = Probe::new(seed, [&a, &[], &[]], a.len());
    probe.n = valid as u32;
    probe.launch(&format!("cp_async__b{bytes_each}_copy_{plant}_t64"), 1)?;
    Ok((a, probe.out()))
}

#[test]
fn copies_deliver_their_bytes_and_zero_fill() {
    for each in [4, 8, 16] {
        for valid in [0, 1, 3, each] {
            for seed in 0..5 {
                let (mut expected, out) = cp_async(each, "correct", valid, seed).unwrap_or_else(|f| panic!("{f}"));
                let half = expected.len() / 2;
                for (i, byte) in expected[half..].iter_mut().enumerate() {
                    if i % each >= valid {
                        *byte = 0;
                    }
                }
                assert_eq!(out, expected, "{each} bytes, {valid} valid");
            }
        }
    }
}

#[test]
fn a_copy_cannot_be_read_before_its_wait_on_the_simulator() {
    for each in [4, 8, 16] {
        for seed in 0..10 {
            for plant in ["no_wait", "wait_too_few"] {
                let fault = cp_async(each, plant, each, seed).unwrap_err();
                assert!(matches!(*fault.kind, FaultKind::InFlight { .. }), "{plant}: {fault}");
            }
            let fault = cp_async(each, "no_barrier", each, seed).unwrap_err();
            let early = matches!(
                *fault.kind,
                FaultKind::Race { .. } | FaultKind::InFlight { .. } | FaultKind::UninitialisedShared { .. }
            );
            assert!(early, "{fault}");
            let fault = cp_async(each, "over_read", each, seed).unwrap_err();
            assert!(matches!(*fault.kind, FaultKind::Race { .. } | FaultKind::InFlight { .. }), "{fault}");
        }
    }
}
