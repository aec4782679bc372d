use burrstone::DType;
use burrstone::cpu::Isa;
use burrstone::ops::{Batch, CacheShape, Ops, QkNorm, RotaryKvWrite, Span};
use proptest::prelude::*;

use crate::problems::rotary_kv_write::PROBLEMS;
use crate::reference::rotary_kv_write::head;
use crate::support::*;

/// Heads, those of keys and values, their dimension, and how much of it rotates.
fn any_heads() -> impl Strategy<Value = (usize, usize, usize, usize)> {
    let drawn = (1usize..4, 1usize..4, 1usize..40).prop_flat_map(|(group, kv_heads, half)| {
        (Just(group * kv_heads), Just(kv_heads), Just(2 * half), (0..=half).prop_map(|r| 2 * r))
    });
    prop_oneof![drawn, one_of(PROBLEMS, |p| (p.heads, p.kv_heads, p.head_dim, p.head_dim))]
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
        norm in any::<bool>(),
    ) {
        let cpu = cpu(isa, threads);
        let width = (heads + 2 * kv_heads) * d;
        let x = numbers(1, tokens * width, DType::F32);
        let rope = numbers(2, tokens * rotary, DType::F32);
        let gains = [numbers(3, d, DType::F32), numbers(4, d, DType::F32)];
        let page_size = 4;
        let pages = tokens.div_ceil(page_size);
        let batch = Batch {
            tokens: vec![0; tokens],
            positions: (0..tokens as u32).collect(),
            // From the last page to the first.
            slots: (0..tokens).map(|t| ((pages - 1 - t / page_size) * page_size + t % page_size) as u32).collect(),
            rope: rope.clone(),
            spans: vec![Span { start: 0, len: tokens, kv_len: tokens, pages: 0 }],
            page_table: (0..pages as u32).rev().collect(),
            ..Batch::default()
        };
        let mut step = cpu.step().unwrap();
        cpu.upload(&batch, &mut step).unwrap();
        let shape = CacheShape { layers: 2, pages, page_size, kv_heads, head_dim: d, dtype };
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

        // The keys' bits lie before the values' in each layer; layer 0 was not touched.
        let stored = cache.read().unwrap();
        let plane = pages * page_size * kv_heads * d;
        prop_assert!(stored[..2 * plane].iter().all(|&x| x == 0.0));
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for &slot in &batch.slots {
            for h in 0..kv_heads {
                let (page, place) = (slot as usize / page_size, slot as usize % page_size);
                let at = ((page * kv_heads + h) * page_size + place) * d;
                keys.extend(&stored[2 * plane + at..][..d]);
                values.extend(&stored[3 * plane + at..][..d]);
            }
        }
        let (plain, exact) = rotated(1, heads, kv_heads);
        assert_close(&format!("{isa} keys"), dtype, &keys, &plain, &exact);
        let from = (heads + kv_heads) * d;
        let expected: Vec<f32> =
            x.chunks(width).flat_map(|row| row[from..].iter().map(|&x| round(x, dtype))).collect();
        assert_same_bits(&format!("{isa} values"), &values, &expected);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let shape = CacheShape { layers: 1, pages: 1, page_size: 4, kv_heads: 1, head_dim: 4, dtype: DType::F32 };
    let attempt = |slot: u32, rope: usize, layer: usize, heads: usize, head_dim: usize, rotary_dim: usize| {
        let mut cache = cpu.cache(shape).unwrap();
        let mut step = cpu.step().unwrap();
        let batch = Batch {
            tokens: vec![0],
            positions: vec![0],
            slots: vec![slot],
            rope: vec![0.0; rope],
            spans: vec![Span { start: 0, len: 1, kv_len: 1, pages: 0 }],
            page_table: vec![0],
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
            qk_norm: None,
        };
        cpu.rotary_kv_write(&step, args)
    };
    const OP: &str = "rotary_kv_write";
    attempt(3, 4, 0, 2, 4, 4).unwrap();
    assert_refused(attempt(4, 4, 0, 2, 4, 4), OP, "slots");
    assert_refused(attempt(3, 2, 0, 2, 4, 4), OP, "rope");
    assert_refused(attempt(3, 4, 1, 2, 4, 4), OP, "layer");
    assert_refused(attempt(3, 4, 0, 3, 4, 4), OP, "qkv");
    assert_refused(attempt(3, 4, 0, 2, 2, 2), OP, "cache");
    assert_refused(attempt(3, 4, 0, 2, 4, 6), OP, "rotary_dim");
    assert_refused(attempt(3, 4, 0, 2, 4, 3), OP, "rotary_dim");
    let odd = CacheShape { page_size: 3, ..shape };
    assert_refused(cpu.cache(odd), "cache", "page_size");
    assert_refused(cpu.cache(CacheShape { pages: usize::MAX, ..shape }), "cache", "shape");
}
