use burrstone::device::Stream;
use proptest::prelude::*;

use super::attention_masks::Masks;
use super::paged_attention::{
    Case, Paged, any_case, assert_hidden_values_stay_hidden, assert_no_bank_conflicts, kinds_of_variants, variants,
};
use crate::slice::some_of;
use crate::support::*;

const KERNEL: &str = "attention_prefill";

/// Runs all queries by every variant in tiles of any size. Asserts the decode kernel's bits and a result close to the
/// oracle's.
fn check(stream: &Stream, case: &Case, tile: usize) {
    if !case.runs_on(stream) {
        return;
    }
    let paged = Paged::new(stream, case);
    let all: Vec<_> = case.sequences.iter().map(|&(_, len)| (0, len)).collect();
    let (plain, exact) = case.expected();
    let decoded = paged.decode(stream, variants("attention_decode", stream, case)[0], &all, 100);
    for (i, variant) in variants(KERNEL, stream, case).into_iter().enumerate() {
        let got = paged.prefill(stream, variant, &all, tile + i);
        assert_close_but_for(case.truncation(variant), variant.name, case.dtype, &got, &plain, &exact);
        assert_same_bits(variant.name, &decoded, &got);
    }
}

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn agrees_with_the_oracle_and_with_decode(seed in any::<u64>(), case in any_case(14), tile in 1usize..15) {
        for stream in stream_in_turn(seed) {
            check(&stream, &case, tile);
        }
    }

    /// Splitting a prompt into chunks does not change a bit.
    #[test]
    fn chunks_change_nothing(seed in any::<u64>(), mut case in any_case(24), cut in 0usize..24, tile in 1usize..9) {
        case.sequences.truncate(2);
        if matches!(case.masks, Masks::Tree { .. }) {
            case.masks = Masks::None;
        }
        let stream = stream(seed);
        let paged = Paged::new(&stream, &case);
        let variant = *variants(KERNEL, &stream, &case).last().unwrap();
        let whole: Vec<_> = case.sequences.iter().map(|&(_, len)| (0, len)).collect();
        let at_once = paged.prefill(&stream, variant, &whole, tile);
        // Not inside an image.
        let border = |(&(past, _), &(_, end)): (&(usize, usize), &(usize, usize))| {
            case.masks.border(past + cut.min(end)).saturating_sub(past)
        };
        let borders: Vec<usize> = case.sequences.iter().zip(&whole).map(border).collect();
        let parts = [
            borders.iter().map(|&border| (0, border)).collect::<Vec<_>>(),
            borders.iter().zip(&whole).map(|(&border, &(_, end))| (border, end)).collect(),
        ];
        let [before, after] = parts.map(|ranges| paged.prefill(&stream, variant, &ranges, tile + 3));
        for (i, &whole) in at_once.iter().enumerate() {
            // Each chunk leaves the other chunk's rows as they were, NaN.
            let part = if before[i].is_nan() { after[i] } else { before[i] };
            prop_assert_eq!(part.to_bits(), whole.to_bits(), "{}: element {}", variant.name, i);
        }
    }
}

/// Every variant, with sequences of several splits and pages.
#[test]
fn every_variant_walks_splits_and_pages() {
    for stream in streams(3) {
        for (dtype, head_dim, cache) in some_of(kinds_of_variants(), |(dtype, ..)| *dtype) {
            let case = Case {
                group: 2,
                kv_heads: 1,
                head_dim,
                page_size: 32,
                window: Some(500),
                dtype,
                cache,
                sequences: vec![(507, 6)],
                ..Case::PLAIN
            };
            check(&stream, &case, 4);
        }
    }
}

/// Images that cross the ends of tiles and of a split and are longer than a window; and a tree of several tiles.
#[test]
fn masks_lie_across_tiles() {
    for stream in stream_in_turn(7) {
        for (masks, window) in [
            (Masks::Images { every: 37, len: 20 }, None),
            (Masks::Images { every: 64, len: 40 }, Some(9)),
            (Masks::Tree { seed: 4 }, Some(5)),
        ] {
            let sequences = vec![(480, 60), (0, 50)];
            let case = Case { group: 2, head_dim: 16, window, masks, sequences, ..Case::PLAIN };
            check(&stream, &case, 17);
        }
    }
}

/// Two warpgroups of a block that each skip some tiles, that have no tile in common, or of which one has no rows. They
/// take turns even on tiles that one of them skips: a missing turn would hang.
#[test]
fn warpgroups_see_different_tiles() {
    for stream in streams(8).iter().filter(|stream| stream.arch() == 90) {
        let cases = [
            (64, Some(40), None, vec![(100, 128)]),
            (128, None, None, vec![(130, 128)]),
            (64, None, None, vec![(500, 70), (0, 3)]),
            (64, None, Some(256), vec![(192, 128)]),
            (64, Some(1), Some(192), vec![(128, 128)]),
        ];
        for (head_dim, window, chunk, sequences) in some_of(cases, |_| ()) {
            check(stream, &Case { head_dim, window, chunk, sequences, ..Case::PLAIN }, 128);
        }
    }
}

/// A block that computes several parts of a tile's rows resets its barriers for the next part.
#[test]
fn one_block_may_take_all_parts() {
    for stream in streams(11) {
        let case = Case { group: 2, head_dim: 128, sequences: vec![(70, 150)], ..Case::PLAIN };
        let paged = Paged::new(&stream, &case);
        for variant in variants(KERNEL, &stream, &case) {
            let many = paged.prefill(&stream, variant, &[(0, 150)], 150);
            let one = paged.prefill_in_batches(&stream, variant, &[(0, 150)], 150, 1);
            assert_same_bits(variant.name, &many, &one);
        }
    }
}

#[test]
fn hidden_values_stay_hidden() {
    assert_hidden_values_stay_hidden(|stream, case, paged| {
        let variants = variants(KERNEL, stream, case).into_iter();
        variants.map(|variant| (variant.name, paged.prefill(stream, variant, &[(0, 20)], 20))).collect()
    });
}

#[test]
fn products_meet_no_bank_conflicts_on_the_simulator() {
    assert_no_bank_conflicts(|stream, case| {
        for variant in variants(KERNEL, stream, case) {
            Paged::new(stream, case).prefill(stream, variant, &[(0, 5)], 5);
        }
    });
}
