//! Clusters: multicast copies between blocks, and synchronization of the blocks.

use burrstone::device::TmaBoxes;
use burrstone::device::sim::{Fault, FaultKind, Swizzle};

use crate::probe::{Probe, bytes};

/// `groups` clusters of `blocks` blocks, each of which loads `boxes` boxes for all.
fn cluster(plant: &str, [groups, blocks, boxes]: [u32; 3], seed: u64) -> Result<(), Fault> {
    let rows = 8 * blocks * boxes;
    let matrix: Vec<u32> = (0..rows * 16).map(|i| i * 7).collect();
    let all = groups * blocks;
    let mut probe = Probe::new(seed, [&bytes(&matrix), &[], &[]], 4 * matrix.len() * all as usize);
    (probe.n, probe.m) = (boxes, blocks);
    let (address, dims) = (probe.input(0), &[16, rows.into()]);
    let (strides, sides, swizzle) = (&[64], &[16, 8], Swizzle::None);
    probe.copy_boxes(&TmaBoxes { address, element_bytes: 4, dims, strides, sides, swizzle });
    let stats = probe.launch_clusters(&format!("cluster__{plant}_t64"), all, blocks)?;
    assert_eq!(stats.blocks, u64::from(all));
    for (block, found) in probe.out::<u32>().chunks(matrix.len()).enumerate() {
        let expected: Vec<u32> = matrix.iter().map(|word| word + block as u32 % blocks).collect();
        assert!(found == expected, "block {block} of {groups} times {blocks}, {boxes} boxes");
    }
    Ok(())
}

#[test]
fn every_block_of_a_cluster_sees_the_copies_of_all() {
    for shape in [[1, 1, 3], [3, 1, 2], [1, 2, 1], [3, 2, 7], [1, 4, 5], [2, 8, 4]] {
        for seed in 0..10 {
            cluster("cluster_correct", shape, seed).unwrap_or_else(|fault| panic!("{shape:?}: {fault}"));
        }
    }
}

#[test]
fn missing_waits_between_blocks_are_found_under_every_seed_on_the_simulator() {
    let find = |plant: &str, is: fn(&FaultKind) -> bool| {
        for seed in 0..10 {
            for blocks in [2, 4] {
                let fault = cluster(&format!("cluster_{plant}"), [2, blocks, 6], seed).expect_err(plant);
                assert!(is(&fault.kind), "{plant}, {blocks} blocks: {fault}");
                assert_eq!(fault.place.file, "probes/cluster.cu");
                assert!(fault.block[0] < 2 * blocks && fault.thread < 64, "{fault}");
            }
        }
    };
    // Another block's barriers are used before they may be initialised.
    find("no_first_sync", |k| matches!(k, FaultKind::Race { .. } | FaultKind::UninitialisedShared { .. }));
    find("no_last_sync", |k| matches!(k, FaultKind::BlockEnded { .. }));
    let mixed_up =
        |k: &FaultKind| matches!(k, FaultKind::Race { .. } | FaultKind::InFlight { .. } | FaultKind::Misuse { .. });
    find("no_empty_wait", mixed_up);
    find("no_remote_arrival", |k| matches!(k, FaultKind::DivergentBarrier { .. }));
    find("own_address", mixed_up);
    find("beyond", |k| matches!(k, FaultKind::Misuse { .. }));
    find("early_exit", |k| matches!(k, FaultKind::BlockEnded { .. } | FaultKind::DivergentBarrier { .. }));
}

#[test]
fn a_cluster_divides_its_grid_and_has_at_most_eight_blocks_on_the_simulator() {
    let probe = Probe::new(1, [&[], &[], &[]], 4);
    for (blocks, cluster) in [(3, 2), (9, 9), (2, 0)] {
        let fault = probe.launch_clusters("cluster__cluster_correct_t64", blocks, cluster).unwrap_err();
        assert!(matches!(*fault.kind, FaultKind::Misuse { .. }), "{fault}");
    }
    let fault = probe.launch_clusters("fault__plant_none_t128", 2, 2).unwrap_err();
    assert!(fault.to_string().contains("clusters need sm_90"), "{fault}");
}
