use burrstone::DType;
use burrstone::cpu::{Cache, Cpu, Isa};
use burrstone::ops::{CacheShape, Ops, RopeTable, RotaryKvWrite};
use proptest::prelude::*;

use crate::reference::page_copy::page_copy;
use crate::support::*;

/// `copies` pairs of pages. No page occurs twice, as long as there are enough pages.
fn pairs(seed: u64, pages: usize, copies: usize) -> Vec<[u32; 2]> {
    shuffled(seed, pages).chunks_exact(2).take(copies).map(|pair| [pair[0], pair[1]]).collect()
}

/// A cache whose entries all differ.
fn filled(cpu: &Cpu, shape: CacheShape) -> Cache {
    let (tokens, d) = (shape.pages * shape.page_size, shape.kv_heads * shape.head_dim);
    let mut cache = cpu.cache(shape).unwrap();
    let step = step_of(cpu, &vec![0; tokens], &[]);
    for layer in 0..shape.layers {
        let args = RotaryKvWrite {
            qkv: &buffer(cpu, DType::F32, &numbers(layer as u64, tokens * 2 * d, DType::F32)),
            query: &mut cpu.buffer(DType::F32, 0).unwrap(),
            cache: &mut cache,
            layer,
            heads: 0,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            rotary_dim: 0,
            rope: RopeTable { factors: &cpu.buffer(DType::F32, 0).unwrap(), rows: 0 },
            qk_norm: None,
        };
        cpu.rotary_kv_write(&step, args).unwrap();
    }
    cache
}

proptest! {
    #![proptest_config(cases(30))]

    #[test]
    fn agrees_with_the_oracle(
        threads in 1usize..4,
        shape in (1usize..3, 1usize..9, 0u32..3, 1usize..3, 1usize..20),
        dtype in any_cache_dtype(),
        copies in 0usize..5,
        seed in any::<u64>(),
    ) {
        let (layers, pages, page_bits, kv_heads, head_dim) = shape;
        let shape = CacheShape { layers, pages, page_size: 1 << page_bits, kv_heads, head_dim, dtype };
        let cpu = cpu(Isa::best(), threads);
        let mut cache = filled(&cpu, shape);
        let mut expected = cache.read().unwrap();
        let pairs = pairs(seed, pages, copies);
        page_copy(&mut expected, pages, shape.page_size * kv_heads * head_dim, &pairs);
        cpu.copy_pages(&mut cache, &pairs).unwrap();
        assert_same_bits("cache", &cache.read().unwrap(), &expected);
    }
}

#[test]
fn wrong_pairs_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let shape = CacheShape { layers: 1, pages: 3, page_size: 2, kv_heads: 1, head_dim: 2, dtype: DType::F32 };
    let mut cache = cpu.cache(shape).unwrap();
    let mut attempt = |pairs: &[[u32; 2]]| cpu.copy_pages(&mut cache, pairs);
    attempt(&[[0, 1], [0, 2]]).unwrap();
    assert_refused(attempt(&[[0, 3]]), "page_copy", "pairs");
    assert_refused(attempt(&[[3, 0]]), "page_copy", "pairs");
    assert_refused(attempt(&[[0, 2], [1, 2]]), "page_copy", "pairs");
    assert_refused(attempt(&[[0, 1], [1, 2]]), "page_copy", "pairs");
}

mod on_the_device {
    use burrstone::kernels::PageCopy;

    use super::*;
    use crate::device::{Placed, stream, variants};

    proptest! {
        #![proptest_config(cases(30))]

        #[test]
        fn every_variant_copies(
            planes in 1usize..4,
            pages in 1usize..9,
            page in prop_oneof![1usize..70, Just(1024usize), 4090usize..4100],
            dtype in proptest::sample::select(vec![DType::BF16, DType::F32, DType::U8]),
            shift in 0usize..3,
            copies in 0usize..5,
            seed in any::<u64>(),
        ) {
            let bytes: Vec<u8> = (0..planes * pages * page * dtype.size()).map(|i| bits(7, i as u64) as u8).collect();
            let mut pairs = pairs(seed, pages, copies);
            let mut expected = bytes.clone();
            page_copy(&mut expected, pages, page * dtype.size(), &pairs);
            // Pages outside the cache are ignored.
            pairs.extend([[pages as u32, 0], [0, pages as u32], [u32::MAX, u32::MAX]]);
            for variant in variants("page_copy", &[]) {
                let Some(stream) = stream(variant, 3) else { continue };
                let mut cache = Placed::new(&stream, dtype, &bytes, shift);
                let pairs_there = Placed::indices(&stream, pairs.as_flattened(), 1);
                let (count, there) = (pairs.len(), pairs_there.slice());
                let args = PageCopy { cache: cache.slice_mut(), pairs: there, count, planes, pages, page };
                args.launch_variant(&stream, variant).unwrap();
                prop_assert_eq!(cache.bytes(), expected.as_slice(), "{}", variant.name);
            }
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let stream = stream(variants("page_copy", &[])[0], 1).expect("a variant for every device");
        let attempt = |len: usize, count, pages| {
            let mut cache = Placed::of(&stream, DType::F32, &vec![0.0; len], 0);
            let pairs = Placed::indices(&stream, &[0, 1], 0);
            let (cache, pairs) = (cache.slice_mut(), pairs.slice());
            PageCopy { cache, pairs, count, planes: 2, pages, page: 2 }.launch(&stream)
        };
        attempt(8, 1, 2).unwrap();
        assert_refused(attempt(7, 1, 2), "page_copy", "cache");
        assert_refused(attempt(8, 2, 2), "page_copy", "pairs");
        assert_refused(attempt(8, 1, usize::MAX), "page_copy", "cache");
    }
}
