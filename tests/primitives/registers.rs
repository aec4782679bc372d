//! Register budgets change nothing that a thread can see.

use crate::probe::{Probe, bytes};

#[test]
fn registers_move_without_a_trace() {
    let a: Vec<u32> = (0..384).map(|t| t * 3).collect();
    let out: Vec<u32> = Probe::new(0, [&bytes(&a), &[], &[]], 384 * 4).run("registers__t384");
    assert!(out.iter().enumerate().all(|(t, x)| *x as usize == t * 3 + t / 128));
}
