use burrstone::DType;
use burrstone::device::{Slice, Stream};
use burrstone::kernels::{AttentionDecode, Heads, KvCache, KvScales, Scoring, SplitStates};
use proptest::prelude::*;

use super::attention_masks::Masks;
use super::paged_attention::{
    Case, Paged, any_case, assert_hidden_values_stay_hidden, assert_no_bank_conflicts, kinds_of_variants, variants,
};
use crate::slice::some_of;
use crate::support::*;

const KERNEL: &str = "attention_decode";

/// Runs all queries by every variant, with room to split all sequences, some or none. Asserts equal bits and a result
/// close to the oracle's.
fn check(stream: &Stream, case: &Case) {
    if !case.runs_on(stream) {
        return;
    }
    let paged = Paged::new(stream, case);
    let all: Vec<_> = case.sequences.iter().map(|&(_, len)| (0, len)).collect();
    let (plain, exact) = case.expected();
    let mut first: Option<Vec<f32>> = None;
    for variant in variants(KERNEL, stream, case) {
        for room in [10_000, 60, 0] {
            let got = paged.decode(stream, variant, &all, room);
            assert_close_but_for(case.truncation(variant), variant.name, case.dtype, &got, &plain, &exact);
            assert_same_bits(variant.name, first.get_or_insert_with(|| got.clone()), &got);
        }
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn agrees_with_the_oracle(seed in any::<u64>(), case in any_case(3)) {
        for stream in stream_in_turn(seed) {
            check(&stream, &case);
        }
    }
}

/// Every variant, with sequences of several splits and pages.
#[test]
fn every_variant_walks_splits_and_pages() {
    for stream in streams(1) {
        for (dtype, head_dim, cache) in some_of(kinds_of_variants(), |(dtype, ..)| *dtype) {
            let case = Case {
                group: 5,
                kv_heads: 1,
                head_dim,
                page_size: 16,
                dtype,
                cache,
                sequences: vec![(511, 2), (40, 1)],
                ..Case::PLAIN
            };
            check(&stream, &case);
        }
    }
}

/// On Hopper tiles of keys and values are copied by TMA, or row by row where an entry is not a multiple of 16 bytes:
/// both with pages of every size.
#[test]
fn pages_of_every_size_are_copied() {
    for stream in streams(9).iter().filter(|stream| stream.arch() == 90) {
        let pages =
            [(4, 80), (8, 128), (16, 80), (32, 64), (64, 24), (128, 128), (128, 79), (8, 192), (4, 256), (64, 131)];
        for (page_size, head_dim) in some_of(pages, |_| ()) {
            let sequences = vec![(193, 2), (64, 1)];
            check(stream, &Case { group: 3, kv_heads: 2, head_dim, page_size, sequences, ..Case::PLAIN });
        }
    }
}

/// More work items than blocks: sequences of one split and of several, more sequences than a warp scans at once, and
/// more than 16 rows a tile.
#[test]
fn blocks_share_the_work() {
    let mut sequences = vec![(1300, 2)];
    sequences.extend((0..40).map(|s| (13 * s, 1)));
    sequences.push((2049, 3));
    let case = Case {
        group: 9,
        kv_heads: 2,
        head_dim: 16,
        page_size: 64,
        window: Some(1200),
        dtype: DType::F16,
        cache: DType::F16,
        sequences,
        ..Case::PLAIN
    };
    for stream in stream_in_turn(4) {
        check(&stream, &case);
    }
}

/// More splits than a thread loads at once when it merges them.
#[test]
fn many_splits_are_merged() {
    check(&stream(10), &Case { kv_heads: 2, head_dim: 16, sequences: vec![(4700, 1)], ..Case::PLAIN });
}

/// Trees of up to 64 nodes that cross the end of a split and of a tile: without a window, and with one shorter than the
/// past or than a branch.
#[test]
fn trees_lie_across_splits() {
    for stream in stream_in_turn(6) {
        for (window, seed) in [(None, 1), (Some(40), 2), (Some(2), 3)] {
            let case = Case {
                group: 2,
                head_dim: 16,
                window,
                masks: Masks::Tree { seed },
                sequences: vec![(490, 64), (0, 40), (70, 1)],
                ..Case::PLAIN
            };
            check(&stream, &case);
        }
    }
}

/// A query has the same bits alone, beside other queries of its sequence, and beside other sequences.
#[test]
fn results_do_not_depend_on_other_queries() {
    let stream = stream(2);
    let case = Case {
        group: 3,
        kv_heads: 2,
        head_dim: 40,
        page_size: 8,
        window: Some(64),
        cap: Some(20.0),
        dtype: DType::F16,
        cache: DType::I8,
        sequences: vec![(530, 4), (31, 3), (0, 5)],
        ..Case::PLAIN
    };
    let paged = Paged::new(&stream, &case);
    let row = 6 * 40;
    for variant in variants(KERNEL, &stream, &case) {
        let together = paged.decode(&stream, variant, &[(0, 4), (0, 3), (0, 5)], 0);
        for (s, start, len) in [(0, 0, 4), (1, 4, 3), (2, 7, 5)] {
            for query in 0..len {
                let mut ranges = [(0, 0); 3];
                ranges[s] = (query, query + 1);
                let alone = paged.decode(&stream, variant, &ranges, 100);
                let at = (start + query) * row;
                assert_same_bits(variant.name, &alone[at..at + row], &together[at..at + row]);
                // Rows outside the spans are not written.
                let others = alone[..at].iter().chain(&alone[at + row..]);
                assert!(others.into_iter().all(|x| x.is_nan()), "{}", variant.name);
            }
        }
    }
}

#[test]
fn hidden_values_stay_hidden() {
    assert_hidden_values_stay_hidden(|stream, case, paged| {
        let variants = variants(KERNEL, stream, case).into_iter();
        variants.map(|variant| (variant.name, paged.decode(stream, variant, &[(0, 20)], 0))).collect()
    });
}

#[test]
fn products_meet_no_bank_conflicts_on_the_simulator() {
    assert_no_bank_conflicts(|stream, case| {
        for variant in variants(KERNEL, stream, case) {
            Paged::new(stream, case).decode(stream, variant, &[(0, 5)], 0);
        }
    });
}

#[test]
fn wrong_shapes_are_refused() {
    let stream = stream(0);
    let query = stream.alloc(DType::F16, 2 * 4 * 8).unwrap();
    let (keys, scales) =
        (stream.alloc(DType::I8, 3 * 2 * 4 * 8).unwrap(), stream.alloc(DType::F32, 3 * 2 * 4).unwrap());
    let half_keys = stream.alloc(DType::F16, 3 * 2 * 4 * 8).unwrap();
    let words = stream.alloc(DType::U32, 8).unwrap();
    let of = Heads { tokens: 2, heads: 4, kv_heads: 2, head_dim: 8 };
    let plain = Scoring { scale: 1.0, soft_cap: None, window: None, chunk: None, slopes: None, sinks: None };
    let entries = KvScales::Entry { keys: scales.slice(), values: scales.slice() };
    let cache = KvCache { keys: keys.slice(), values: keys.slice(), scales: entries, pages: 3, page_size: 4 };
    let mut counters = stream.alloc(DType::U32, 0).unwrap();
    let mut partials = stream.alloc(DType::F32, 0).unwrap();
    let mut attempt = |heads: Heads, cache: KvCache<'_>, scoring: Scoring<'_>, spans, masks: Option<Slice<'_>>| {
        let mut out = stream.alloc(DType::F16, 2 * 4 * 8).unwrap();
        let kernel = AttentionDecode {
            query: query.slice(),
            out: out.slice_mut(),
            cache,
            spans: words.slice().range(0..spans).unwrap(),
            page_table: words.slice(),
            states: SplitStates { counters: counters.slice_mut(), partials: partials.slice_mut() },
            masks,
            heads,
            scoring,
        };
        kernel.launch(&stream)
    };
    // Without spans, or with empty ones, nothing runs.
    attempt(of, cache, plain, 0, None).unwrap();
    attempt(of, cache, plain, 8, Some(words.slice())).unwrap();
    let mut refused =
        |heads, cache, scoring, field| assert_refused(attempt(heads, cache, scoring, 8, None), KERNEL, field);
    refused(Heads { tokens: 3, ..of }, cache, plain, "query");
    refused(Heads { heads: 3, ..of }, cache, plain, "heads");
    refused(Heads { kv_heads: 0, ..of }, cache, plain, "heads");
    refused(Heads { head_dim: 257, ..of }, cache, plain, "head_dim");
    refused(of, KvCache { pages: 4, ..cache }, plain, "keys");
    refused(of, KvCache { page_size: 3, ..cache }, plain, "page_size");
    refused(of, KvCache { page_size: 256, ..cache }, plain, "page_size");
    refused(of, KvCache { values: half_keys.slice(), ..cache }, plain, "values");
    refused(of, KvCache { scales: KvScales::None, ..cache }, plain, "scales");
    refused(of, KvCache { scales: KvScales::Layer { key: 1.0, value: 1.0 }, ..cache }, plain, "scales");
    refused(of, KvCache { keys: half_keys.slice(), values: half_keys.slice(), ..cache }, plain, "scales");
    refused(of, cache, Scoring { window: Some(0), ..plain }, "window");
    refused(of, cache, Scoring { soft_cap: Some(0.0), ..plain }, "soft_cap");
    refused(of, cache, Scoring { chunk: Some(0), ..plain }, "chunk");
    refused(of, cache, Scoring { slopes: Some(words.slice()), ..plain }, "slopes");
    refused(of, cache, Scoring { sinks: Some(scales.slice().range(0..3).unwrap()), ..plain }, "sinks");
    refused(of, cache, Scoring { scale: f32::NAN, ..plain }, "scale");
    assert_refused(attempt(of, cache, plain, 7, None), KERNEL, "spans");
    assert_refused(attempt(of, cache, plain, 8, Some(words.slice().range(0..7).unwrap())), KERNEL, "masks");
    assert_refused(attempt(of, cache, plain, 8, Some(scales.slice())), KERNEL, "masks");
    let bf16 = Case {
        group: 1,
        kv_heads: 1,
        head_dim: 8,
        page_size: 4,
        dtype: DType::BF16,
        cache: DType::BF16,
        sequences: vec![],
        ..Case::PLAIN
    };
    let mut out = stream.alloc(DType::F16, 2 * 4 * 8).unwrap();
    let spans = words.slice();
    let (query, page_table) = (query.slice(), words.slice());
    let out = out.slice_mut();
    let states = SplitStates { counters: counters.slice_mut(), partials: partials.slice_mut() };
    let kernel =
        AttentionDecode { query, out, cache, spans, page_table, states, masks: None, heads: of, scoring: plain };
    assert_refused(kernel.launch_variant(&stream, variants(KERNEL, &stream, &bf16)[0]), KERNEL, "variant");
}
