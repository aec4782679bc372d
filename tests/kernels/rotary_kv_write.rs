use burrstone::DType;
use burrstone::cpu::Isa;
use burrstone::ops::{Batch, CacheShape, Ops, QkNorm, RopeTable, RotaryKvWrite, Span};
use proptest::prelude::*;

use crate::problems::rotary_kv_write::PROBLEMS;
use crate::reference::Real;
use crate::reference::rotary_kv_write::head;
use crate::support::*;

/// Numbers of query and key heads, head dimension, and rotated elements of a head.
fn any_heads() -> impl Strategy<Value = (usize, usize, usize, usize)> {
    let drawn = (1usize..4, 1usize..4, 1usize..40).prop_flat_map(|(group, kv_heads, half)| {
        (Just(group * kv_heads), Just(kv_heads), Just(2 * half), (0..=half).prop_map(|r| 2 * r))
    });
    prop_oneof![drawn, one_of(PROBLEMS, |p| (p.heads, p.kv_heads, p.head_dim, p.head_dim))]
}

/// Asserts what an 8-bit cache stores of heads of `d` elements.
fn assert_stored(what: &str, dtype: DType, d: usize, got: &[f32], exact: &[f64]) {
    for (i, (got, exact)) in got.chunks(d).zip(exact.chunks(d)).enumerate() {
        let largest = exact.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        let scale = if dtype == DType::I8 { (largest / 127.0) as f32 } else { 1.0 };
        let codes: Vec<f32> = got.iter().map(|x| x / scale).collect();
        assert_quantized(&format!("{what}: {dtype} head {i}"), dtype, &codes, scale, exact);
    }
}

/// The kernel's rotary factors.
struct Rows {
    rope_rows: Vec<u32>,
    table: Vec<f32>,
    others: Vec<f32>,
}

/// Tokens selected by the bits of `own` get their own factors; those of the others are rows of a table, in reverse
/// order.
fn rows(rope: &[f32], tokens: usize, rotary: usize, own: u64) -> Rows {
    let (mut table, mut others) = (vec![0.0; tokens * rotary], Vec::new());
    let mut rope_rows = Vec::new();
    for t in 0..tokens {
        let factors = &rope[t * rotary..][..rotary];
        if own >> (t % 64) & 1 == 1 {
            others.resize(tokens * rotary, 0.0);
            others[t * rotary..][..rotary].copy_from_slice(factors);
            rope_rows.push((tokens + t) as u32);
        } else {
            let row = tokens - 1 - t;
            table[row * rotary..][..rotary].copy_from_slice(factors);
            rope_rows.push(row as u32);
        }
    }
    Rows { rope_rows, table, others }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn agrees_with_the_oracle(
        isa in any_isa(),
        threads in 1usize..4,
        tokens in 1usize..12,
        (heads, kv_heads, d, rotary) in any_heads(),
        dtype in any_dtype(),
        stored in any_cache_dtype(),
        norm in any::<bool>(),
        own in any::<u64>(),
    ) {
        let cpu = cpu(isa, threads);
        let width = (heads + 2 * kv_heads) * d;
        let x = numbers(1, tokens * width, DType::F32);
        let rope = numbers(2, tokens * rotary, DType::F32);
        let Rows { rope_rows, table, others } = rows(&rope, tokens, rotary, own);
        let gains = [numbers(3, d, DType::F32), numbers(4, d, DType::F32)];
        let page_size = 4;
        let pages = tokens.div_ceil(page_size);
        let batch = Batch {
            tokens: vec![0; tokens],
            // From the last page to the first.
            slots: (0..tokens).map(|t| ((pages - 1 - t / page_size) * page_size + t % page_size) as u32).collect(),
            rope_rows,
            rope: others,
            spans: vec![Span { start: 0, len: tokens, kv_len: tokens, pages: 0 }],
            page_table: (0..pages as u32).rev().collect::<Vec<_>>().into(),
            ..Batch::default()
        };
        let mut step = cpu.step().unwrap();
        cpu.upload(&batch, &mut step).unwrap();
        let shape = CacheShape { layers: 2, pages, page_size, kv_heads, head_dim: d, dtype: stored };
        let mut cache = cpu.cache(shape).unwrap();
        let mut query = cpu.buffer(dtype, tokens * heads * d).unwrap();
        let [query_gain, key_gain] = gains.each_ref().map(|gain| cpu.vector(view(gain, &[d], DType::F32)).unwrap());
        let args = RotaryKvWrite {
            qkv: &buffer(&cpu, DType::F32, &x),
            query: &mut query,
            cache: &mut cache,
            layer: 1,
            heads,
            kv_heads,
            head_dim: d,
            rotary_dim: rotary,
            rope: RopeTable { factors: &buffer(&cpu, DType::F32, &table), rows: tokens },
            qk_norm: norm.then_some(QkNorm { query: &query_gain, key: &key_gain, eps: 1e-6 }),
        };
        cpu.rotary_kv_write(&step, args).unwrap();

        let rotated = |gain: usize, first: usize, count: usize| {
            let (mut plain, mut exact) = (Vec::new(), Vec::new());
            for t in 0..tokens {
                let (cos, sin) = rope[t * rotary..][..rotary].split_at(rotary / 2);
                for h in first..first + count {
                    let x = &x[t * width + h * d..][..d];
                    let gain = norm.then_some((gains[gain].as_slice(), 1e-6));
                    plain.extend(head::<f32>(x, gain, cos, sin));
                    exact.extend(head::<f64>(x, gain, cos, sin));
                }
            }
            (plain, exact)
        };
        let (plain, exact) = rotated(0, 0, heads);
        assert_close(&format!("{isa} queries"), dtype, &query.read(tokens * heads * d).unwrap(), &plain, &exact);

        // Each layer stores keys before values. Layer 0 must be untouched.
        let all = cache.read().unwrap();
        let plane = pages * page_size * kv_heads * d;
        prop_assert!(all[..2 * plane].iter().all(|&x| x == 0.0));
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for &slot in &batch.slots {
            for h in 0..kv_heads {
                let (page, place) = (slot as usize / page_size, slot as usize % page_size);
                let at = ((page * kv_heads + h) * page_size + place) * d;
                keys.extend(&all[2 * plane + at..][..d]);
                values.extend(&all[3 * plane + at..][..d]);
            }
        }
        let (plain, exact) = rotated(1, heads, kv_heads);
        let from = (heads + kv_heads) * d;
        if stored.size() == 1 {
            assert_stored(&format!("{isa} keys"), stored, d, &keys, &exact);
            let exact: Vec<f64> = x.chunks(width).flat_map(|row| &row[from..]).map(|&x| x.into()).collect();
            assert_stored(&format!("{isa} values"), stored, d, &values, &exact);
            return Ok(());
        }
        assert_close(&format!("{isa} keys"), stored, &keys, &plain, &exact);
        let expected: Vec<f32> =
            x.chunks(width).flat_map(|row| row[from..].iter().map(|&x| round(x, stored))).collect();
        assert_same_bits(&format!("{isa} values"), &values, &expected);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let shape = CacheShape { layers: 1, pages: 1, page_size: 4, kv_heads: 1, head_dim: 4, dtype: DType::F32 };
    let attempt = |slot: u32, row: u32, layer: usize, heads: usize, head_dim: usize, rotary_dim: usize| {
        let mut cache = cpu.cache(shape).unwrap();
        let mut step = cpu.step().unwrap();
        let batch = Batch {
            tokens: vec![0],
            slots: vec![slot],
            rope_rows: vec![row],
            spans: vec![Span { start: 0, len: 1, kv_len: 1, pages: 0 }],
            page_table: vec![0].into(),
            ..Batch::default()
        };
        cpu.upload(&batch, &mut step).unwrap();
        let args = RotaryKvWrite {
            qkv: &buffer(&cpu, DType::F32, &[0.0; 16]),
            query: &mut cpu.buffer(DType::F32, 8).unwrap(),
            cache: &mut cache,
            layer,
            heads,
            kv_heads: 1,
            head_dim,
            rotary_dim,
            rope: RopeTable { factors: &buffer(&cpu, DType::F32, &[0.0; 6]), rows: 1 },
            qk_norm: None,
        };
        cpu.rotary_kv_write(&step, args)
    };
    const OP: &str = "rotary_kv_write";
    attempt(3, 0, 0, 2, 4, 4).unwrap();
    assert_refused(attempt(4, 0, 0, 2, 4, 4), OP, "slots");
    assert_refused(attempt(3, 1, 0, 2, 4, 4), "upload", "rope_rows");
    assert_refused(attempt(3, 0, 1, 2, 4, 4), OP, "layer");
    assert_refused(attempt(3, 0, 0, 3, 4, 4), OP, "qkv");
    assert_refused(attempt(3, 0, 0, 2, 2, 2), OP, "cache");
    assert_refused(attempt(3, 0, 0, 2, 4, 6), OP, "rotary_dim");
    assert_refused(attempt(3, 0, 0, 2, 4, 3), OP, "rotary_dim");
    let odd = CacheShape { page_size: 3, ..shape };
    assert_refused(cpu.cache(odd), "cache", "page_size");
    assert_refused(cpu.cache(CacheShape { pages: usize::MAX, ..shape }), "cache", "shape");
}

mod on_the_device {
    use burrstone::device::{Stream, Variant};
    use burrstone::kernels::{KvCacheMut, KvScalesMut, QkGains, RopeRows, RotaryKvWrite};

    use super::*;
    use crate::device::{Placed, assert_scale, decode, is_untouched, named, stream, variants};

    #[derive(Clone, Debug)]
    struct Case {
        tokens: usize,
        heads: usize,
        kv_heads: usize,
        d: usize,
        rotary: usize,
        page_size: usize,
        dtype: DType,
        cache: DType,
        norm: bool,
        offset: f32,
        /// Distance from an aligned address, in elements: qkv, query, keys, gains.
        shifts: [usize; 4],
        seed: u64,
    }

    /// The kernel's output, as it is stored.
    #[derive(Clone, PartialEq)]
    struct Written {
        query: Vec<u8>,
        /// Keys, then values.
        cache: [Vec<u8>; 2],
        scales: [Vec<u8>; 2],
    }

    const EPS: f32 = 1e-5;
    const SCALES: [f32; 2] = [0.02, 0.003];

    impl Case {
        fn width(&self) -> usize {
            (self.heads + 2 * self.kv_heads) * self.d
        }

        fn pages(&self) -> usize {
            self.tokens.div_ceil(self.page_size) + 2
        }

        fn qkv(&self) -> Vec<f32> {
            numbers(1, self.tokens * self.width(), self.dtype)
        }

        fn rope(&self) -> Vec<f32> {
            numbers(2, self.tokens * self.rotary, DType::F32)
        }

        fn gains(&self) -> [Vec<f32>; 2] {
            [numbers(3, self.d, self.dtype), numbers(4, self.d, self.dtype)]
        }

        /// A distinct slot for each token, spread over the cache; some tokens have none.
        fn slots(&self) -> Vec<u32> {
            let count = (self.pages() * self.page_size) as u32;
            let mut slots = shuffled(self.seed, count as usize);
            slots.truncate(self.tokens);
            for (t, slot) in slots.iter_mut().enumerate() {
                match bits(self.seed, 1000 + t as u64) % 6 {
                    0 => *slot = u32::MAX,
                    1 => *slot = count,
                    _ => {}
                }
            }
            slots
        }

        /// Whether a token has rotary factors.
        fn has_row(&self, t: usize) -> bool {
            self.rotary == 0 || !bits(self.seed, 2000 + t as u64).is_multiple_of(8)
        }

        /// Runs the kernel for tokens from `first` on.
        fn run(&self, stream: &Stream, variant: &'static Variant, first: usize) -> Written {
            let Case { heads, kv_heads, d, rotary, page_size, dtype, cache, offset, shifts, .. } = *self;
            let (tokens, pages) = (self.tokens - first, self.pages());
            let qkv = Placed::of(stream, dtype, &self.qkv()[first * self.width()..], shifts[0]);
            let mut query = Placed::untouched(stream, dtype, tokens * heads * d, shifts[1]);
            let entries = pages * kv_heads * page_size;
            let mut keys = Placed::untouched(stream, cache, entries * d, shifts[2]);
            let mut values = Placed::untouched(stream, cache, entries * d, shifts[2]);
            let mut key_scales = Placed::untouched(stream, DType::F32, entries, 1);
            let mut value_scales = Placed::untouched(stream, DType::F32, entries, 2);
            let slots = Placed::indices(stream, &self.slots()[first..], 1);
            // A token whose row is out of range is skipped, like one whose slot is.
            let Rows { rope_rows, table, others } = rows(&self.rope(), self.tokens, rotary, self.seed);
            let of_tokens: Vec<u32> = (first..self.tokens)
                .map(|t| if self.has_row(t) { rope_rows[t] } else { 2 * self.tokens as u32 })
                .collect();
            let of_tokens = Placed::indices(stream, &of_tokens, 1);
            let table = Placed::of(stream, DType::F32, &table, shifts[0]);
            let other_rows = others.len() / rotary.max(1);
            let others = Placed::of(stream, DType::F32, &others, shifts[0]);
            let gains = self.gains().map(|gain| Placed::of(stream, dtype, &gain, shifts[3]));
            let scales = match cache {
                DType::I8 => KvScalesMut::Entry { keys: key_scales.slice_mut(), values: value_scales.slice_mut() },
                DType::E4M3 | DType::E5M2 => KvScalesMut::Layer { key: SCALES[0], value: SCALES[1] },
                _ => KvScalesMut::None,
            };
            let gains_there = QkGains { query: gains[0].slice(), key: gains[1].slice(), eps: EPS, offset };
            let args = RotaryKvWrite {
                qkv: qkv.slice(),
                query: query.slice_mut(),
                cache: KvCacheMut { keys: keys.slice_mut(), values: values.slice_mut(), scales, pages, page_size },
                slots: slots.slice(),
                rope: RopeRows {
                    of_tokens: of_tokens.slice(),
                    table: table.slice(),
                    table_rows: self.tokens,
                    others: others.slice(),
                    other_rows,
                },
                gains: self.norm.then_some(gains_there),
                tokens,
                heads,
                kv_heads,
                head_dim: d,
                rotary_dim: rotary,
            };
            args.launch_variant(stream, variant).unwrap();
            let cache = [keys.bytes(), values.bytes()];
            Written { query: query.bytes(), cache, scales: [key_scales.bytes(), value_scales.bytes()] }
        }

        /// Heads `heads` of token `t`; values are not rotated.
        fn expected<T: Real>(&self, t: usize, heads: std::ops::Range<usize>) -> Vec<T> {
            let (qkv, rope, gains) = (self.qkv(), self.rope(), self.gains());
            let (cos, sin) = rope[t * self.rotary..][..self.rotary].split_at(self.rotary / 2);
            let one = |h: usize| {
                let x = &qkv[t * self.width() + h * self.d..][..self.d];
                if h >= self.heads + self.kv_heads {
                    return x.iter().map(|&x| T::of(x)).collect();
                }
                let gain: Vec<f32> = gains[usize::from(h >= self.heads)].iter().map(|g| g + self.offset).collect();
                head(x, self.norm.then_some((gain.as_slice(), EPS)), cos, sin)
            };
            heads.flat_map(one).collect()
        }

        fn check_written(&self, what: &str, written: &Written) {
            let Case { heads, kv_heads, d, page_size, dtype, cache, .. } = *self;
            let query = decode(dtype, &written.query);
            let mut left = vec![true; self.pages() * kv_heads * page_size];
            for (t, slot) in self.slots().into_iter().enumerate() {
                let slot = slot as usize;
                let own = t * heads * d..(t + 1) * heads * d;
                if slot >= self.pages() * page_size || !self.has_row(t) {
                    assert!(is_untouched(&written.query[own.start * 2..own.end * 2]), "{what}: token {t} has no slot");
                    continue;
                }
                let (plain, exact) = (self.expected(t, 0..heads), self.expected(t, 0..heads));
                assert_close(&format!("{what}: queries of token {t}"), dtype, &query[own], &plain, &exact);
                for h in 0..kv_heads {
                    let entry = (slot / page_size * kv_heads + h) * page_size + slot % page_size;
                    left[entry] = false;
                    for (which, first) in [heads, heads + kv_heads].into_iter().enumerate() {
                        let what = format!("{what}: token {t}, head {h}, {}", ["key", "value"][which]);
                        let codes =
                            decode(cache, &written.cache[which][entry * d * cache.size()..][..d * cache.size()]);
                        let (plain, exact) =
                            (self.expected(t, first + h..first + h + 1), self.expected(t, first + h..first + h + 1));
                        match cache {
                            DType::I8 => {
                                let scale = decode(DType::F32, &written.scales[which][4 * entry..][..4])[0];
                                assert_quantized(&what, cache, &codes, scale, &exact);
                                assert_scale(&what, cache, &codes, scale, &exact);
                            }
                            DType::E4M3 | DType::E5M2 => assert_quantized(&what, cache, &codes, SCALES[which], &exact),
                            _ => assert_close(&what, dtype, &codes, &plain, &exact),
                        }
                    }
                }
            }
            for entry in left.iter().enumerate().filter(|(_, left)| **left).map(|(entry, _)| entry) {
                let bytes = d * cache.size();
                for (cache, scales) in written.cache.iter().zip(&written.scales) {
                    let whole =
                        is_untouched(&cache[entry * bytes..][..bytes]) && is_untouched(&scales[4 * entry..][..4]);
                    assert!(whole, "{what}: entry {entry} was written, but belongs to no token");
                }
            }
        }

        fn check(&self) {
            let mut first: Option<Written> = None;
            for variant in variants("rotary_kv_write", &[("dtype", named(self.dtype)), ("cache", named(self.cache))]) {
                let Some(stream) = stream(variant, self.seed) else { continue };
                let written = self.run(&stream, variant, 0);
                self.check_written(variant.name, &written);
                let alone = self.run(&stream, variant, self.tokens - 1);
                assert!(written.query.ends_with(&alone.query), "{}: the last token alone has other bits", variant.name);
                let expected = first.get_or_insert(written.clone());
                assert!(*expected == written, "{}: differs from the first variant", variant.name);
            }
        }
    }

    fn any_case() -> impl Strategy<Value = Case> {
        let dtypes = proptest::sample::select(vec![DType::BF16, DType::F16]);
        let cache = proptest::sample::select(vec![None, Some(DType::E4M3), Some(DType::E5M2), Some(DType::I8)]);
        let shifts = proptest::sample::select(vec![[0; 4], [8, 8, 16, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 4, 1]]);
        let real = proptest::sample::select(vec![
            (4, 2, 64, 64),
            (2, 1, 128, 128),
            (3, 3, 80, 32),
            (1, 1, 256, 256),
            (2, 1, 296, 128),
        ]);
        let heads = prop_oneof![any_heads(), real];
        let sizes = (1usize..7, proptest::sample::select(vec![1usize, 2, 4, 16]), heads);
        (sizes, dtypes, cache, any::<(bool, bool)>(), shifts, any::<u64>()).prop_map(
            |((tokens, page_size, (heads, kv_heads, d, rotary)), dtype, cache, (norm, one), shifts, seed)| {
                let (cache, offset) = (cache.unwrap_or(dtype), if one { 1.0 } else { 0.0 });
                Case { tokens, heads, kv_heads, d, rotary, page_size, dtype, cache, norm, offset, shifts, seed }
            },
        )
    }

    proptest! {
        #![proptest_config(cases(80))]

        #[test]
        fn every_variant_agrees_with_the_oracle(case in any_case()) {
            case.check();
        }
    }

    /// Another order of summation changes few elements, so this test has many.
    #[test]
    fn many_wide_heads_agree_with_the_oracle() {
        let (tokens, heads, kv_heads, d, page_size) = (4, 16, 4, 512, 4);
        let (dtype, cache, norm, offset, shifts) = (DType::F16, DType::F16, true, 0.0, [0; 4]);
        let case =
            Case { tokens, heads, kv_heads, d, rotary: d, page_size, dtype, cache, norm, offset, shifts, seed: 1 };
        case.check();
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let key = [("dtype", named(DType::F16)), ("cache", named(DType::F16))];
        let stream = stream(variants("rotary_kv_write", &key)[0], 1).expect("every architecture has an f16 variant");
        let attempt = |qkv_len, stored, layer_scale: bool, rope_len, rotary_dim, pages| {
            let qkv = Placed::untouched(&stream, DType::F16, qkv_len, 0);
            let mut query = Placed::untouched(&stream, DType::F16, 8, 0);
            let (mut keys, mut values) =
                (Placed::untouched(&stream, stored, 16, 0), Placed::untouched(&stream, stored, 16, 0));
            let slots = Placed::indices(&stream, &[0], 0);
            let (rope, none) =
                (Placed::untouched(&stream, DType::F32, rope_len, 0), Placed::of(&stream, DType::F32, &[], 0));
            let scales = if layer_scale { KvScalesMut::Layer { key: 1.0, value: 1.0 } } else { KvScalesMut::None };
            let args = RotaryKvWrite {
                qkv: qkv.slice(),
                query: query.slice_mut(),
                cache: KvCacheMut { keys: keys.slice_mut(), values: values.slice_mut(), scales, pages, page_size: 4 },
                slots: slots.slice(),
                rope: RopeRows {
                    of_tokens: slots.slice(),
                    table: rope.slice(),
                    table_rows: 1,
                    others: none.slice(),
                    other_rows: 0,
                },
                gains: None,
                tokens: 1,
                heads: 2,
                kv_heads: 1,
                head_dim: 4,
                rotary_dim,
            };
            args.launch(&stream)
        };
        const OP: &str = "rotary_kv_write";
        attempt(16, DType::F16, false, 4, 4, 1).unwrap();
        attempt(16, DType::E4M3, true, 4, 4, 1).unwrap();
        assert_refused(attempt(15, DType::F16, false, 4, 4, 1), OP, "qkv");
        assert_refused(attempt(16, DType::BF16, false, 4, 4, 1), OP, "keys");
        assert_refused(attempt(16, DType::F16, true, 4, 4, 1), OP, "scales");
        assert_refused(attempt(16, DType::E5M2, false, 4, 4, 1), OP, "scales");
        assert_refused(attempt(16, DType::I8, true, 4, 4, 1), OP, "scales");
        assert_refused(attempt(16, DType::F16, false, 3, 4, 1), OP, "rope.table");
        assert_refused(attempt(16, DType::F16, false, 4, 3, 1), OP, "rotary_dim");
        assert_refused(attempt(16, DType::F16, false, 6, 6, 1), OP, "rotary_dim");
        assert_refused(attempt(16, DType::F16, false, 4, 4, 2), OP, "keys");
        assert_refused(attempt(16, DType::F16, false, 4, 4, usize::MAX), OP, "pages");
    }
}
