//! Moving registers between warpgroups does not change results.

use crate::probe::{Probe, bytes};

#[test]
fn moving_registers_keeps_their_values() {
    let a: Vec<u32> = (0..384).map(|t| t * 3).collect();
    let out: Vec<u32> = Probe::new(0, [&bytes(&a), &[], &[]], 384 * 4).run("registers__t384");
    assert!(out.iter().enumerate().all(|(t, x)| *x as usize == t * 3 + t / 128));
}
