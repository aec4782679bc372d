//! Chooses the cases that a run tests of a list that is too long for every run.
//!
//! A run tests the first case of each kind and an eighth of the others. The number of commits decides which eighth, so
//! that each test of a commit runs the same cases, and eight commits in a row cover all. With `BURRSTONE_TEST_ALL=1` a
//! run tests all.

#![allow(dead_code, reason = "each test program uses a part")]

use std::io::Write;
use std::process::Command;
use std::sync::OnceLock;

const SLICES: usize = 8;

/// The cases of `all` that this run tests.
pub fn some_of<T, K: PartialEq>(all: impl IntoIterator<Item = T>, kind: impl Fn(&T) -> K) -> Vec<T> {
    match slice() {
        None => all.into_iter().collect(),
        Some(slice) => choose(all, kind, slice),
    }
}

/// One of `all`, a different one at each commit; all of them in a run that tests everything.
pub fn one_in_turn<T>(all: Vec<T>) -> Vec<T> {
    let turn = slice().map(|slice| slice % all.len().max(1));
    all.into_iter()
        .enumerate()
        .filter(|(index, _)| turn.is_none_or(|turn| turn == *index))
        .map(|(_, case)| case)
        .collect()
}

fn choose<T, K: PartialEq>(all: impl IntoIterator<Item = T>, kind: impl Fn(&T) -> K, slice: usize) -> Vec<T> {
    let (mut kinds, mut others) = (Vec::new(), 0);
    let chosen = |case: &T| {
        let kind = kind(case);
        if !kinds.contains(&kind) {
            kinds.push(kind);
            return true;
        }
        others += 1;
        (others - 1) % SLICES == slice
    };
    all.into_iter().filter(chosen).collect()
}

/// The slice of this run; `None` if it tests everything.
fn slice() -> Option<usize> {
    static SLICE: OnceLock<Option<usize>> = OnceLock::new();
    *SLICE.get_or_init(|| {
        if std::env::var("BURRSTONE_TEST_ALL").is_ok_and(|value| value == "1") {
            return None;
        }
        let commits = commits();
        let slice = commits % SLICES;
        // Not `eprintln!`, whose output the test harness hides.
        let _ = writeln!(
            std::io::stderr(),
            "note: testing one case of each kind, and slice {} of {SLICES} of the others ({commits} commits); \
             BURRSTONE_TEST_ALL=1 tests everything",
            slice + 1
        );
        Some(slice)
    })
}

/// The number of commits up to HEAD; 0 outside a git repository.
fn commits() -> usize {
    let git = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-list", "--count", "HEAD"]).output();
    let count = git.ok().and_then(|output| String::from_utf8(output.stdout).ok()?.trim().parse().ok());
    count.unwrap_or(0)
}

#[test]
fn eight_slices_cover_everything() {
    let all: Vec<usize> = (0..100).collect();
    let mut found: Vec<usize> = (0..SLICES).flat_map(|slice| choose(all.clone(), |case| case % 3, slice)).collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, all);
}

#[test]
fn a_slice_has_the_first_of_each_kind_and_few_others() {
    for slice in 0..SLICES {
        let chosen = choose(0..100, |case| case % 3, slice);
        assert_eq!(chosen[..3], [0, 1, 2]);
        assert!((12..=13).contains(&(chosen.len() - 3)), "{chosen:?}");
    }
}
