//! Loads and stores of every width, and atomics.

use crate::probe::{Number, Probe, bytes};

const THREADS: usize = 128;

#[test]
fn every_width_and_every_atomic_gives_the_right_result() {
    for width in [1, 2, 4, 8, 16] {
        for seed in 0..5 {
            let a: Vec<u8> = (0..THREADS * width).map(|i| (i * 7 + 3) as u8).collect();
            let b = bytes(&[10_u32, -1000_i32 as u32, 5]);
            let probe = Probe::new(seed, [&a, &b, &[]], a.len() + (3 * THREADS + 4) * 4);
            let out = probe.run::<u8>(&format!("memory__b{width}_t128"));
            assert_eq!(out[..a.len()], a, "{width} bytes");
            let words: Vec<u32> = out[a.len()..].chunks(4).map(u32::from_bytes).collect();
            let (found, left) = words.split_at(2 * THREADS);
            let (left, ordered) = left.split_at(4);
            let sorted = |found: &[u32]| {
                let mut found = found.to_vec();
                found.sort_unstable();
                found
            };
            // Each thread's atomic returned a different intermediate sum.
            assert_eq!(sorted(&found[..THREADS]), (10..10 + THREADS as u32).collect::<Vec<_>>());
            assert_eq!(sorted(&found[THREADS..]), (0..THREADS as u32).map(|i| 2 * i).collect::<Vec<_>>());
            assert_eq!(sorted(ordered), (0..THREADS as u32).map(|i| 5 + 3 * i).collect::<Vec<_>>());
            assert_eq!(left, [10 + THREADS as u32, -73_i32 as u32, 2 * THREADS as u32, -73_i32 as u32]);
        }
    }
}

#[test]
fn the_order_of_atomics_depends_on_the_seed_on_the_simulator() {
    let order = |seed| {
        let a = [0_u8; THREADS];
        let probe = Probe::new(seed, [&a, &bytes(&[0_u32, 0, 0]), &[]], THREADS + (3 * THREADS + 4) * 4);
        probe.run::<u8>("memory__b1_t128")
    };
    assert_ne!(order(1), order(2));
    assert_eq!(order(1), order(1));
}
