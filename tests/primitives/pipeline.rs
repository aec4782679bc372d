//! A producer and consumers over a ring of stages, with each kind of barrier; without any one of the waits a fault is
//! found.

use burrstone::device::sim::{Fault, FaultKind};

use crate::probe::{Probe, bytes};

fn pipeline(via: &str, plant: &str, tiles: u32, seed: u64) -> Result<(), Fault> {
    let a: Vec<u32> = (0..96 * tiles).map(|i| i * 7).collect();
    let mut probe = Probe::new(seed, [&bytes(&a), &[], &[]], a.len() * 4);
    probe.n = tiles;
    probe.launch(&format!("pipeline__via_{via}_pipe_{plant}_t128"), 1)?;
    for (i, found) in probe.out::<u32>().into_iter().enumerate() {
        let (tile, reader) = (i as u32 / 96, i as u32 % 96);
        assert_eq!(found, (tile * 96 + 95 - reader) * 7 + tile, "{via}, tile {tile}, reader {reader}");
    }
    Ok(())
}

#[test]
fn a_ring_of_stages_delivers_every_tile_under_every_seed() {
    for via in ["mbarrier", "cp_async", "bulk", "named"] {
        for tiles in [1, 2, 3, 8] {
            for seed in 0..10 {
                pipeline(via, "correct", tiles, seed).unwrap_or_else(|fault| panic!("{via}, {tiles} tiles: {fault}"));
            }
        }
    }
}

#[test]
fn each_missing_wait_of_a_ring_is_found_under_every_seed_on_the_simulator() {
    for via in ["mbarrier", "cp_async", "bulk", "named"] {
        for seed in 0..10 {
            for plant in ["no_full_wait", "no_empty_wait"] {
                let fault = pipeline(via, plant, 6, seed).expect_err(via);
                let found = matches!(
                    *fault.kind,
                    FaultKind::Race { .. }
                        | FaultKind::InFlight { .. }
                        | FaultKind::UninitialisedShared { .. }
                        | FaultKind::DivergentBarrier { .. }
                        | FaultKind::Misuse { .. }
                );
                assert!(found, "{via}, {plant}: {fault}");
            }
            let fault = pipeline(via, "lost_arrival", 6, seed).expect_err(via);
            assert!(matches!(*fault.kind, FaultKind::DivergentBarrier { .. }), "{via}: {fault}");
        }
    }
}
