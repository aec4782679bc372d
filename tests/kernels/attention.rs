use burrstone::DType;
use burrstone::cpu::{Buffer, Cpu, Isa};
use burrstone::device::{Memory, SimOptions};
use burrstone::kernels::Gpu;
use burrstone::ops::{
    Attention, AttentionMask, Batch, CacheShape, Ops, QkNorm, RopeTable, RotaryKvWrite, Scoring, Span,
};
use half::f16;
use proptest::prelude::*;

use super::attention_masks::{Masks, any_masks, seen};
use crate::problems::attention::PROBLEMS;
use crate::reference::attention::{self, attend};
use crate::support::*;

/// One layer and some sequences. Their pages are in shuffled order.
#[derive(Clone, Debug)]
struct Case {
    group: usize,
    kv_heads: usize,
    head_dim: usize,
    page_size: usize,
    window: Option<usize>,
    options: Options,
    query_dtype: DType,
    cache_dtype: DType,
    /// For each sequence: tokens already in the cache, tokens of this batch.
    sequences: Vec<(usize, usize)>,
}

/// Optional features of attention that some model families use.
#[derive(Clone, Copy, Debug)]
struct Options {
    cap: Option<f32>,
    chunk: Option<usize>,
    slopes: bool,
    sinks: bool,
    masks: Masks,
}

impl Options {
    const NONE: Self = Self { cap: None, chunk: None, slopes: false, sinks: false, masks: Masks::None };
}

/// A backend whose buffers the tests can fill and read.
trait Lab: Ops {
    fn put(&self, values: &[f32]) -> Self::Buffer;
    fn get(&self, buffer: &Self::Buffer, len: usize) -> Vec<f32>;
}

impl Lab for Cpu {
    fn put(&self, values: &[f32]) -> Buffer {
        buffer(self, DType::F32, values)
    }

    fn get(&self, buffer: &Buffer, len: usize) -> Vec<f32> {
        buffer.read(len).unwrap()
    }
}

impl Lab for Gpu {
    fn put(&self, values: &[f32]) -> Memory {
        let mut memory = self.buffer(DType::F16, values.len()).unwrap();
        memory.write(&encode(values, DType::F16)).unwrap();
        memory
    }

    fn get(&self, memory: &Memory, len: usize) -> Vec<f32> {
        memory.read::<f16>().unwrap()[..len].iter().map(|x| x.to_f32()).collect()
    }
}

impl Case {
    fn heads(&self) -> usize {
        self.group * self.kv_heads
    }

    fn shape(&self) -> CacheShape {
        let pages = self.sequences.iter().map(|(past, len)| (past + len).div_ceil(self.page_size)).sum();
        CacheShape {
            layers: 2,
            pages,
            page_size: self.page_size,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            dtype: self.cache_dtype,
        }
    }

    /// The physical page of entry `i` of the block table, in shuffled order.
    fn page(&self, i: usize) -> usize {
        let pages = self.shape().pages;
        let step = (1..pages + 1).rev().find(|s| gcd(*s, pages) == 1).unwrap_or(1);
        (i * step + 1) % pages
    }

    /// The batch of tokens `from..to` of each sequence.
    fn batch(&self, ranges: &[(usize, usize)]) -> Batch {
        let (mut batch, mut pages) = (Batch::default(), 0);
        for (&(past, len), &(from, to)) in self.sequences.iter().zip(ranges) {
            let span = Span { start: batch.tokens.len(), len: to - from, kv_len: to, pages };
            for position in from..to {
                let page = self.page(pages + position / self.page_size);
                batch.tokens.push(0);
                batch.rope_rows.push(position as u32);
                batch.slots.push((page * self.page_size + position % self.page_size) as u32);
                if self.options.masks != Masks::None {
                    batch.masks.push(self.options.masks.of(position, past, to));
                }
            }
            if to > from {
                batch.spans.push(span);
            }
            pages += (past + len).div_ceil(self.page_size);
        }
        batch.page_table = (0..pages).map(|i| self.page(i) as u32).collect::<Vec<_>>().into();
        batch
    }

    /// Reads a key (`which` = 0) or value (1) from the whole cache, converted to f32.
    fn stored(&self, cache: &[f32], which: usize, sequence: usize, position: usize, kv_head: usize) -> Vec<f32> {
        let before = &self.sequences[..sequence];
        let pages: usize = before.iter().map(|(past, len)| (past + len).div_ceil(self.page_size)).sum();
        let page = self.page(pages + position / self.page_size);
        let plane = self.shape().pages * self.kv_heads * self.page_size;
        let entry = (page * self.kv_heads + kv_head) * self.page_size + position % self.page_size;
        // Layer 1.
        cache[((2 + which) * plane + entry) * self.head_dim..][..self.head_dim].to_vec()
    }

    fn slope(&self, head: usize) -> f32 {
        if self.options.slopes { 0.3 / (head + 1) as f32 } else { 0.0 }
    }

    fn sink(&self, head: usize) -> Option<f32> {
        self.options.sinks.then_some(3.0 - head as f32)
    }

    fn attend<D: Ops>(&self, device: &D, step: &D::Step, query: &D::Buffer, cache: &D::Cache, out: &mut D::Buffer) {
        let (heads, Options { cap, chunk, slopes, .. }) = (self.heads(), self.options);
        let slope = device.floats(&(0..heads).map(|head| self.slope(head)).collect::<Vec<_>>()).unwrap();
        let sinks: Option<Vec<f32>> = (0..heads).map(|head| self.sink(head)).collect();
        let sinks = sinks.map(|sinks| device.floats(&sinks).unwrap());
        let scoring = Scoring {
            scale: scale(self.head_dim),
            soft_cap: cap,
            window: self.window,
            chunk,
            slopes: slopes.then_some(&slope),
            sinks: sinks.as_ref(),
        };
        device.attention(step, Attention { query, cache, layer: 1, out, heads, scoring }).unwrap();
    }

    /// Asserts that `outs`, the rows of each sequence from its first token on, are close to the oracle's results for
    /// this cache.
    fn assert_expected(&self, what: &str, outs: &[Vec<f32>], cache: &[f32]) {
        let (d, heads) = (self.head_dim, self.heads());
        let (mut got, mut plain, mut exact) = (Vec::new(), Vec::new(), Vec::new());
        for (s, &(past, len)) in self.sequences.iter().enumerate() {
            // The first, the last and a middle position: each sees a different number of keys.
            for position in [past, past + len / 2, past + len - 1] {
                let mask = self.options.masks.of(position, past, past + len);
                let seen = seen(position, mask, past, self.window, self.options.chunk);
                let ahead = seen.iter().filter(|&&p| p > position).count();
                for head in 0..heads {
                    let kv = head / self.group;
                    let stored = |which| seen.iter().map(|&p| self.stored(cache, which, s, p, kv)).collect();
                    let [keys, values]: [Vec<Vec<f32>>; 2] = [0, 1].map(stored);
                    let keys: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
                    let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
                    let query = &token(self, s, position)[head * d..][..d];
                    let query: Vec<f32> = query.iter().map(|&x| round(x, self.query_dtype)).collect();
                    let (cap, slope, sink) = (self.options.cap, self.slope(head), self.sink(head));
                    let scoring = attention::Scoring { scale: scale(d), cap, slope, ahead, sink };
                    plain.extend(attend::<f32>(&query, &keys, &values, scoring));
                    exact.extend(attend::<f64>(&query, &keys, &values, scoring));
                    got.extend(&outs[s][(position * heads + head) * d..][..d]);
                }
            }
        }
        assert_close(what, self.query_dtype, &got, &plain, &exact);
    }
}

fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn any_options() -> impl Strategy<Value = Options> {
    let cap = proptest::option::of(0.5f32..30.0);
    let some = (cap, proptest::option::weighted(0.3, 1usize..200), any::<bool>(), any::<bool>(), any_masks());
    let some = some.prop_map(|(cap, chunk, slopes, sinks, masks)| {
        // Slopes and trees cannot be combined.
        let slopes = slopes && !matches!(masks, Masks::Tree { .. });
        Options { cap, chunk, slopes, sinks, masks }
    });
    prop_oneof![1 => Just(Options::NONE), 2 => some]
}

fn any_case(tokens: usize) -> impl Strategy<Value = Case> {
    let sequence = (prop_oneof![Just(0), 0..2 * tokens], 1..tokens);
    (
        prop_oneof![
            4 => (1usize..8, 1usize..4, prop_oneof![(1usize..40).prop_map(|d| 2 * d), Just(128)]),
            1 => one_of(PROBLEMS, |p| (p.heads / p.kv_heads, p.kv_heads, p.head_dim)),
        ],
        (0u32..7, proptest::option::of(1usize..150), any_options()),
        (any_dtype(), any_cache_dtype()),
        proptest::collection::vec(sequence, 1..4),
    )
        .prop_map(|((group, kv_heads, head_dim), (page, window, options), dtypes, sequences)| Case {
            group,
            kv_heads,
            head_dim,
            page_size: 1 << page,
            window,
            options,
            query_dtype: dtypes.0,
            cache_dtype: dtypes.1,
            sequences,
        })
}

/// Fills the cache by `rotary_kv_write` without rotation; returns the queries.
fn write<D: Lab>(case: &Case, device: &D, step: &D::Step, qkv: &[f32], cache: &mut D::Cache) -> D::Buffer {
    let width = (case.heads() + 2 * case.kv_heads) * case.head_dim;
    let tokens = qkv.len() / width;
    let mut query = device.buffer(case.query_dtype, tokens * case.heads() * case.head_dim).unwrap();
    let args = RotaryKvWrite {
        qkv: &device.put(qkv),
        query: &mut query,
        cache,
        layer: 1,
        heads: case.heads(),
        kv_heads: case.kv_heads,
        head_dim: case.head_dim,
        rotary_dim: 0,
        rope: RopeTable { factors: &device.buffer(DType::F32, 0).unwrap(), rows: 0 },
        qk_norm: None,
    };
    device.rotary_kv_write(step, args).unwrap();
    query
}

/// Row `[q, k, v]` of a token. Queries are scaled up, so that the softmax is not nearly uniform.
fn token(case: &Case, sequence: usize, position: usize) -> Vec<f32> {
    let n = (case.heads() + 2 * case.kv_heads) * case.head_dim;
    let mut row = numbers((sequence * 100_000 + position) as u64, n, DType::F32);
    row[..case.heads() * case.head_dim].iter_mut().for_each(|x| *x *= 4.0);
    row
}

fn rows(case: &Case, ranges: &[(usize, usize)]) -> Vec<f32> {
    let one = |(s, &(from, to)): (usize, &(usize, usize))| (from..to).flat_map(move |p| token(case, s, p));
    ranges.iter().enumerate().flat_map(one).collect()
}

/// Runs all sequences in the given chunks. Returns the output rows of each sequence from its first token on, and the
/// cache.
fn in_chunks<D: Lab>(case: &Case, device: &D, chunks: &[Vec<(usize, usize)>]) -> (Vec<Vec<f32>>, D::Cache) {
    let mut cache = device.cache(case.shape()).unwrap();
    let mut outs = vec![Vec::new(); case.sequences.len()];
    let row = case.heads() * case.head_dim;
    for ranges in chunks {
        let batch = case.batch(ranges);
        let mut step = device.step().unwrap();
        device.upload(&batch, &mut step).unwrap();
        let query = write(case, device, &step, &rows(case, ranges), &mut cache);
        let len = batch.tokens.len() * row;
        let mut out = device.buffer(case.query_dtype, len).unwrap();
        case.attend(device, &step, &query, &cache, &mut out);
        let values = device.get(&out, len);
        let mut at = 0;
        for (out, (from, to)) in outs.iter_mut().zip(ranges) {
            out.extend(&values[at..at + (to - from) * row]);
            at += (to - from) * row;
        }
    }
    (outs, cache)
}

/// In two steps: first the tokens that the case has in the cache, then the rest.
fn in_two<D: Lab>(case: &Case, device: &D) -> (Vec<Vec<f32>>, D::Cache) {
    let past: Vec<_> = case.sequences.iter().map(|&(past, _)| (0, past)).collect();
    let now: Vec<_> = case.sequences.iter().map(|&(past, len)| (past, past + len)).collect();
    in_chunks(case, device, &[past, now])
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn agrees_with_the_oracle(isa in any_isa(), threads in 1usize..4, case in any_case(60)) {
        let (outs, cache) = in_two(&case, &cpu(isa, threads));
        case.assert_expected(&format!("{isa}"), &outs, &cache.read().unwrap());
    }

    /// Chunking, other sequences in the batch and the number of threads do not change a bit.
    #[test]
    fn chunks_and_neighbours_change_nothing(
        isa in any_isa(),
        mut case in any_case(100),
        cuts in proptest::collection::vec(0usize..300, 0..4),
    ) {
        // Trees cannot be split into chunks.
        if matches!(case.options.masks, Masks::Tree { .. }) {
            case.options.masks = Masks::None;
        }
        let whole: Vec<_> = case.sequences.iter().map(|&(past, len)| (0, past + len)).collect();
        let (at_once, _) = in_chunks(&case, &cpu(isa, 1), std::slice::from_ref(&whole));
        let mut borders: Vec<usize> = cuts.iter().map(|&cut| case.options.masks.border(cut)).collect();
        borders.extend([0, 400]);
        borders.sort_unstable();
        let chunks: Vec<Vec<(usize, usize)>> = borders
            .windows(2)
            .map(|cut| whole.iter().map(|&(_, end)| (cut[0].min(end), cut[1].min(end))).collect())
            .collect();
        let (cut, _) = in_chunks(&case, &cpu(isa, 3), &chunks);
        for (s, (a, b)) in at_once.iter().zip(&cut).enumerate() {
            assert_same_bits(&format!("{isa}, sequence {s}"), a, b);
        }
    }
}

/// Devices support every option of the trait, with the CPU's results.
#[test]
fn devices_take_every_option() {
    let stream = stream(8);
    let gpu = Gpu::new(stream, DType::F16, 256, 8).unwrap();
    let images = Masks::Images { every: 30, len: 11 };
    // CPU and device round to f16 alike, so their caches are equal.
    let check = |case: &Case, what| {
        let (_, cache) = in_two(case, &cpu(Isa::best(), 1));
        case.assert_expected(what, &in_two(case, &gpu).0, &cache.read().unwrap());
    };
    for (window, options) in [
        (None, Options::NONE),
        (Some(33), Options { cap: Some(2.0), chunk: Some(50), slopes: true, sinks: true, masks: images }),
        (Some(9), Options { sinks: true, masks: Masks::Tree { seed: 1 }, ..Options::NONE }),
    ] {
        let case = Case {
            group: 2,
            kv_heads: 2,
            head_dim: 16,
            page_size: 16,
            window,
            options,
            query_dtype: DType::F16,
            cache_dtype: DType::F16,
            sequences: vec![(70, 13), (0, 40), (5, 1)],
        };
        check(&case, "gpu");
        // One query a sequence: the decode kernel.
        let case = Case { sequences: vec![(70, 1), (20, 1)], ..case };
        check(&case, "gpu, decode");
    }
}

/// A long prompt takes the prefill kernel; a few queries (here a tree) of a long sequence take the decode kernel, which
/// splits.
#[test]
fn devices_split_few_queries_of_long_sequences_on_the_simulator() {
    let stream = simulated(SimOptions { count: true, ..SimOptions::default() });
    let gpu = Gpu::new(stream.clone(), DType::F16, 1024, 8).unwrap();
    let case = Case {
        group: 1,
        kv_heads: 2,
        head_dim: 16,
        page_size: 32,
        window: None,
        options: Options { masks: Masks::Tree { seed: 2 }, ..Options::NONE },
        query_dtype: DType::F16,
        cache_dtype: DType::F16,
        sequences: vec![(1100, 6)],
    };
    let mut cache = gpu.cache(case.shape()).unwrap();
    let mut step = gpu.step().unwrap();
    let mut attended = |range| {
        let batch = case.batch(&[range]);
        gpu.upload(&batch, &mut step).unwrap();
        let query = write(&case, &gpu, &step, &rows(&case, &[range]), &mut cache);
        let mut out = gpu.buffer(DType::F16, query.len()).unwrap();
        case.attend(&gpu, &step, &query, &cache, &mut out);
        let variants = stream.take_launch_stats().into_iter().map(|(variant, _)| variant);
        variants.filter(|variant| variant.starts_with("attention_")).collect::<Vec<_>>()
    };
    assert!(matches!(attended((0, 500))[..], [variant] if variant.starts_with("attention_prefill__")));
    attended((500, 1100));
    assert!(matches!(attended((1100, 1106))[..], [variant] if variant.starts_with("attention_decode__")));
}

/// Decoding token by token over several splits gives the bits of one prefill. Decoding has few tasks, so threads share
/// splits, and few rows, so keys are read in place; the prefill does neither.
#[test]
fn decode_has_the_bits_of_prefill() {
    let shapes =
        [(3, 1, None, DType::BF16), (4, 2, Some(900), DType::BF16), (1, 1, None, DType::BF16), (3, 1, None, DType::I8)];
    for (isa, (group, kv_heads, window, cache_dtype)) in
        isas().into_iter().flat_map(|isa| shapes.map(|shape| (isa, shape)))
    {
        let case = Case {
            group,
            kv_heads,
            head_dim: 16,
            page_size: 32,
            window,
            options: Options::NONE,
            query_dtype: DType::BF16,
            cache_dtype,
            sequences: vec![(2600, 3)],
        };
        let (at_once, cache) = in_chunks(&case, &cpu(isa, 1), &[vec![(0, 2603)]]);
        let decoded = [vec![(0, 2600)], vec![(2600, 2601)], vec![(2601, 2602)], vec![(2602, 2603)]];
        let (decoded, _) = in_chunks(&case, &cpu(isa, 3), &decoded);
        assert_same_bits(&format!("{isa}, {group} of {kv_heads}"), &at_once[0], &decoded[0]);
        let (d, heads) = (case.head_dim, case.heads());
        // The last query head and its key head.
        let seen = window.map_or(0, |window| 2603 - window)..2603;
        let cache = cache.read().unwrap();
        let stored = |which| seen.clone().map(|p| case.stored(&cache, which, 0, p, kv_heads - 1)).collect();
        let [keys, values]: [Vec<Vec<f32>>; 2] = [0, 1].map(stored);
        let query: Vec<f32> =
            token(&case, 0, 2602)[(heads - 1) * d..][..d].iter().map(|&x| round(x, DType::BF16)).collect();
        let keys: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let plain = attend::<f32>(&query, &keys, &values, attention::Scoring::scaled(scale(d)));
        let exact = attend::<f64>(&query, &keys, &values, attention::Scoring::scaled(scale(d)));
        assert_close("last", DType::BF16, &at_once[0][(2602 * heads + heads - 1) * d..], &plain, &exact);
    }
}

/// Cache entries beyond a sequence's end or before its window are never used, even if they are NaN.
#[test]
fn stale_cache_entries_are_ignored() {
    let case = Case {
        group: 2,
        kv_heads: 1,
        head_dim: 8,
        page_size: 16,
        window: Some(20),
        options: Options::NONE,
        query_dtype: DType::F32,
        cache_dtype: DType::F32,
        sequences: vec![(100, 1)],
    };
    for isa in isas() {
        let cpu = cpu(isa, 1);
        let (clean, _) = in_chunks(&case, &cpu, &[vec![(0, 100)], vec![(100, 101)]]);
        let mut cache = cpu.cache(case.shape()).unwrap();
        let width = (case.heads() + 2) * case.head_dim;
        let mut step = cpu.step().unwrap();
        cpu.upload(&case.batch(&[(0, 101)]), &mut step).unwrap();
        write(&case, &cpu, &step, &vec![f32::NAN; 101 * width], &mut cache);
        cpu.upload(&case.batch(&[(81, 101)]), &mut step).unwrap();
        write(&case, &cpu, &step, &rows(&case, &[(81, 101)]), &mut cache);
        cpu.upload(&case.batch(&[(100, 101)]), &mut step).unwrap();
        let query = write(&case, &cpu, &step, &rows(&case, &[(100, 101)]), &mut cache);
        let mut out = cpu.buffer(DType::F32, query.len()).unwrap();
        case.attend(&cpu, &step, &query, &cache, &mut out);
        let out = out.read(query.len()).unwrap();
        assert_same_bits(&format!("{isa}"), &out, &clean[0][100 * 16..]);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let case = Case {
        group: 2,
        kv_heads: 2,
        head_dim: 4,
        page_size: 4,
        window: None,
        options: Options::NONE,
        query_dtype: DType::F32,
        cache_dtype: DType::F32,
        sequences: vec![(0, 6)],
    };
    let cache = cpu.cache(case.shape()).unwrap();
    let good = case.batch(&[(0, 6)]);
    let query = cpu.buffer(DType::F32, 96).unwrap();
    let slopes = cpu.floats(&[1.0; 4]).unwrap();
    let attend_as = |batch: &Batch, layer, heads, room: usize, scoring: Scoring<'_, Cpu>| {
        let mut step = cpu.step().unwrap();
        cpu.upload(batch, &mut step)?;
        let mut out = cpu.buffer(DType::F32, room).unwrap();
        let (query, cache) = (&query, &cache);
        cpu.attention(&step, Attention { query, cache, layer, out: &mut out, heads, scoring })
    };
    let attend = |batch: &Batch, layer, heads, room: usize, window| {
        attend_as(batch, layer, heads, room, Scoring { window, ..Scoring::scaled(1.0) })
    };
    attend(&good, 1, 4, 96, None).unwrap();
    assert_refused(attend(&good, 2, 4, 96, None), "attention", "layer");
    assert_refused(attend(&good, 1, 3, 96, None), "attention", "heads");
    assert_refused(attend(&good, 1, 4, 95, None), "attention", "out");
    assert_refused(attend(&good, 1, 6, 200, None), "attention", "query");
    assert_refused(attend(&good, 1, 4, 96, Some(0)), "attention", "window");
    let refused = |scoring, field| assert_refused(attend_as(&good, 1, 4, 96, scoring), "attention", field);
    refused(Scoring { chunk: Some(0), ..Scoring::scaled(1.0) }, "chunk");
    refused(Scoring { soft_cap: Some(-1.0), ..Scoring::scaled(1.0) }, "soft_cap");
    let short_slopes = cpu.floats(&[1.0; 3]).unwrap();
    refused(Scoring { slopes: Some(&short_slopes), ..Scoring::scaled(1.0) }, "slopes");
    refused(Scoring { sinks: Some(&short_slopes), ..Scoring::scaled(1.0) }, "sinks");
    let mut tree = good.clone();
    tree.masks = [1, 0b11, 0b101, 0b1011, 0b10000, 0b100101].map(AttentionMask::Branch).to_vec();
    attend(&tree, 1, 4, 96, None).unwrap();
    let tilted = Scoring { slopes: Some(&slopes), ..Scoring::scaled(1.0) };
    assert_refused(attend_as(&tree, 1, 4, 96, tilted), "attention", "slopes");
    let mut short = good.clone();
    short.page_table = good.page_table.pages()[1..].to_vec().into();
    assert_refused(attend(&short, 1, 4, 96, None), "attention", "page_table");
    let mut beyond = good.clone();
    beyond.page_table.write(1, &[2]);
    assert_refused(attend(&beyond, 1, 4, 96, None), "attention", "page_table");

    let spoilt = |spoil: fn(&mut Batch)| {
        let mut batch = good.clone();
        spoil(&mut batch);
        attend(&batch, 1, 4, 96, None)
    };
    assert_refused(spoilt(|b| b.rope_rows.push(0)), "upload", "rope_rows");
    assert_refused(spoilt(|b| b.slots[3] = b.slots[0]), "upload", "slots");
    assert_refused(spoilt(|b| b.spans[0].len = 5), "upload", "spans");
    assert_refused(spoilt(|b| b.spans[0].len = 0), "upload", "spans");
    assert_refused(spoilt(|b| b.spans[0].len = usize::MAX), "upload", "spans");
    assert_refused(spoilt(|b| b.spans.clear()), "upload", "spans");
    assert_refused(spoilt(|b| b.rope.push(1.0)), "upload", "rope");
    assert_refused(spoilt(|b| b.logit_rows.push(6)), "upload", "logit_rows");
    assert_refused(spoilt(|b| b.spans[0].pages = usize::MAX), "attention", "page_table");

    let masked = |masks: [AttentionMask; 6]| {
        let batch = Batch { masks: masks.to_vec(), ..good.clone() };
        assert_refused(attend(&batch, 1, 4, 96, None), "upload", "masks");
    };
    let (plain, image) = (AttentionMask::Causal, AttentionMask::Range { begin: 1, end: 3 });
    attend(&Batch { masks: vec![plain, image, image, plain, plain, plain], ..good.clone() }, 1, 4, 96, None).unwrap();
    masked([plain, image, plain, plain, plain, plain]);
    masked([image; 6]);
    masked([AttentionMask::Range { begin: 0, end: 7 }; 6]);
    masked([1, 2, 4, 8, 16, 0].map(AttentionMask::Branch));
    masked([1, 2, 4, 8, 16, 0b100011].map(AttentionMask::Branch));
    masked([1, 2, 4, 8, 16 + 32, 32].map(AttentionMask::Branch));
    masked([AttentionMask::Branch(1), plain, plain, plain, plain, plain]);
    assert_refused(spoilt(|b| b.masks = vec![AttentionMask::Causal; 5]), "upload", "masks");
}

#[test]
fn a_norm_of_the_wrong_length_is_refused() {
    let cpu = cpu(Isa::best(), 1);
    let shape = CacheShape { layers: 1, pages: 1, page_size: 4, kv_heads: 1, head_dim: 4, dtype: DType::F32 };
    let mut cache = cpu.cache(shape).unwrap();
    let step = step_of(&cpu, &[0], &[]);
    let qkv = buffer(&cpu, DType::F32, &[0.0; 12]);
    let mut query = cpu.buffer(DType::F32, 4).unwrap();
    let (good, bad) = (view(&[1.0; 4], &[4], DType::F32), view(&[1.0; 3], &[3], DType::F32));
    let (good, bad) = (cpu.vector(good).unwrap(), cpu.vector(bad).unwrap());
    let args = RotaryKvWrite {
        qkv: &qkv,
        query: &mut query,
        cache: &mut cache,
        layer: 0,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        rotary_dim: 0,
        rope: RopeTable { factors: &cpu.buffer(DType::F32, 0).unwrap(), rows: 0 },
        qk_norm: Some(QkNorm { query: &good, key: &bad, eps: 1e-6 }),
    };
    assert_refused(cpu.rotary_kv_write(&step, args), "rotary_kv_write", "qk_norm.key");
}
