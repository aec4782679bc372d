//! Shared by the tests of both attention kernels: sequences in a paged cache on a device.

use burrstone::DType;
use burrstone::device::sim::{SiteStats, Space};
use burrstone::device::{Kernel, Memory, SimOptions, Slice, Stream, Variant};
use burrstone::kernels::{AttentionDecode, AttentionPrefill, Heads, KvCache, KvScales, Scoring, SplitStates};
use burrstone::ops::AttentionMask;
use half::{bf16, f16};
use proptest::prelude::*;

use super::attention_masks::{Masks, any_masks, seen};
use super::device::assert_no_waste;
use crate::gpu::{announce, is_left_out, on_a_gpu};
use crate::reference::attention::{self, attend};
use crate::slice::one_in_turn;
use crate::support::*;
use crate::tensor_cores::{largest_partial, products_a_step, truncation};

/// One layer and some sequences.
#[derive(Clone, Debug)]
pub struct Case {
    pub group: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_size: usize,
    pub window: Option<usize>,
    pub cap: Option<f32>,
    pub chunk: Option<usize>,
    /// Whether heads have ALiBi slopes.
    pub slopes: bool,
    pub sinks: bool,
    pub masks: Masks,
    pub dtype: DType,
    pub cache: DType,
    /// For each sequence: tokens already in the cache, queries.
    pub sequences: Vec<(usize, usize)>,
}

/// Scales of an fp8 layer: powers of two, so that scaling is exact.
const LAYER: (f32, f32) = (0.5, 2.0);

impl Case {
    /// No sequences and no optional features.
    pub const PLAIN: Self = Self {
        group: 1,
        kv_heads: 1,
        head_dim: 64,
        page_size: 16,
        window: None,
        cap: None,
        chunk: None,
        slopes: false,
        sinks: false,
        masks: Masks::None,
        dtype: DType::F16,
        cache: DType::F16,
        sequences: Vec::new(),
    };

    pub fn heads(&self) -> Heads {
        let tokens = self.sequences.iter().map(|(_, len)| len).sum();
        Heads { tokens, heads: self.group * self.kv_heads, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    /// Volta and Turing have no bf16.
    pub fn runs_on(&self, stream: &Stream) -> bool {
        self.dtype == DType::F16 || stream.arch() >= 80
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn slope(&self, head: usize) -> f32 {
        if self.slopes { 0.3 / (head + 1) as f32 } else { 0.0 }
    }

    fn sink(&self, head: usize) -> Option<f32> {
        self.sinks.then_some(3.0 - head as f32)
    }

    fn mask(&self, sequence: usize, position: usize) -> AttentionMask {
        let (past, len) = self.sequences[sequence];
        self.masks.of(position, past, past + len)
    }

    /// The positions that a query sees.
    pub fn seen(&self, sequence: usize, position: usize) -> Vec<usize> {
        seen(position, self.mask(sequence, position), self.sequences[sequence].0, self.window, self.chunk)
    }

    /// A query head, scaled up, so that the softmax is not nearly uniform.
    fn query(&self, sequence: usize, position: usize, head: usize) -> Vec<f32> {
        let seed = ((sequence * 10_000 + position) * 100 + head) as u64;
        numbers(seed, self.head_dim, self.dtype).iter().map(|x| 4.0 * x).collect()
    }

    /// A head of a key (0) or a value (1) as the cache stores it: codes and their scale.
    fn entry(&self, which: usize, sequence: usize, position: usize, head: usize) -> (Vec<u8>, f32) {
        let seed = (((which + 1) * 1_000_000 + sequence * 10_000 + position) * 100 + head) as u64;
        let codes = (0..self.head_dim as u64).flat_map(|i| code(self.cache, bits(seed, i))).collect();
        let scale = match self.cache {
            DType::I8 => 0.004 + (bits(seed, 999) % 1000) as f32 * 1e-5,
            DType::E4M3 | DType::E5M2 => [LAYER.0, LAYER.1][which],
            _ => 1.0,
        };
        (codes, scale)
    }

    fn decoded(&self, which: usize, sequence: usize, position: usize, head: usize) -> Vec<f32> {
        let (codes, scale) = self.entry(which, sequence, position, head);
        codes.chunks(self.cache.size()).map(|code| number(self.cache, code) * scale).collect()
    }

    /// Results of all queries in f32 and in f64, `[tokens, heads, head_dim]`.
    pub fn expected(&self) -> (Vec<f32>, Vec<f64>) {
        let (mut plain, mut exact) = (Vec::new(), Vec::new());
        for (s, &(past, len)) in self.sequences.iter().enumerate() {
            let of_head = |which, kv| -> Vec<Vec<f32>> {
                (0..past + len).map(|position| self.decoded(which, s, position, kv)).collect()
            };
            let keys: Vec<_> = (0..self.kv_heads).map(|kv| of_head(0, kv)).collect();
            let values: Vec<_> = (0..self.kv_heads).map(|kv| of_head(1, kv)).collect();
            for position in past..past + len {
                let seen = self.seen(s, position);
                let ahead = seen.iter().filter(|&&p| p > position).count();
                for head in 0..self.group * self.kv_heads {
                    let kv = head / self.group;
                    let keys: Vec<&[f32]> = seen.iter().map(|&p| keys[kv][p].as_slice()).collect();
                    let values: Vec<&[f32]> = seen.iter().map(|&p| values[kv][p].as_slice()).collect();
                    let (slope, sink) = (self.slope(head), self.sink(head));
                    let scoring = attention::Scoring { scale: self.scale(), cap: self.cap, slope, ahead, sink };
                    let query = self.query(s, position, head);
                    plain.extend(attend::<f32>(&query, &keys, &values, scoring));
                    exact.extend(attend::<f64>(&query, &keys, &values, scoring));
                }
            }
        }
        (plain, exact)
    }
}

impl Case {
    /// The error that tensor cores may add on a GPU, see [`tensor_cores`](crate::tensor_cores); 0 on the simulator. An
    /// error of a score becomes an equal relative error of its weight. As weights add up to 1, it changes the result by
    /// at most that part of the largest value, and again as much through the division by the weights' sum. The sum of
    /// weighted values adds its own truncation.
    pub fn truncation(&self, variant: &Variant) -> f64 {
        if !on_a_gpu() {
            return 0.0;
        }
        let (a_step, d) = (products_a_step(variant), self.head_dim);
        let (mut score, mut value, mut most_seen) = (0.0f64, 0.0f64, 0);
        for (s, &(past, len)) in self.sequences.iter().enumerate() {
            for kv in 0..self.kv_heads {
                let of_head =
                    |which| (0..past + len).flat_map(move |at| self.decoded(which, s, at, kv)).collect::<Vec<_>>();
                value = of_head(1).iter().fold(value, |a, v| a.max(f64::from(v.abs())));
                let queries =
                    (past..past + len).flat_map(|at| (0..self.group).map(move |own| (at, kv * self.group + own)));
                let queries: Vec<f32> = queries.flat_map(|(at, head)| self.query(s, at, head)).collect();
                score = score.max(largest_partial(&queries, &of_head(0), d));
            }
            most_seen = most_seen.max(past + len);
        }
        let scores = truncation(d, a_step, score * f64::from(self.scale()));
        (2.0 * scores + truncation(most_seen, a_step, 1.0)) * value
    }
}

/// A finite stored number from random bits.
fn code(dtype: DType, random: u64) -> Vec<u8> {
    let (sign, low) = ((random >> 63) as u8, random % 10_007);
    match dtype {
        DType::BF16 | DType::F16 => encode(&numbers(random, 1, dtype), dtype),
        // Exponents from the subnormals' to that of 2.
        DType::E4M3 => vec![sign << 7 | (low % 72) as u8],
        DType::E5M2 => vec![sign << 7 | (low % 68) as u8],
        _ => vec![(low % 255) as u8],
    }
}

/// Decodes a stored number by the format's definition.
fn number(dtype: DType, code: &[u8]) -> f32 {
    let eight_bits = |code: u8, mantissa: i32, bias: i32| {
        let (sign, magnitude) = (if code >> 7 == 1 { -1.0 } else { 1.0 }, i32::from(code & 0x7f));
        let (exponent, rest) = (magnitude >> mantissa, magnitude & ((1 << mantissa) - 1));
        let (whole, exponent) = if exponent == 0 { (0, 1) } else { (1 << mantissa, exponent) };
        sign * (whole + rest) as f32 * 2f32.powi(exponent - bias - mantissa)
    };
    match (dtype, code) {
        (DType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (DType::E4M3, &[code]) => eight_bits(code, 3, 7),
        (DType::E5M2, &[code]) => eight_bits(code, 2, 15),
        (_, code) => f32::from(code[0] as i8),
    }
}

/// A case on a device. All entries that no query may see are NaN: free pages, and positions beyond a sequence's end or
/// before its window.
pub struct Paged {
    case: Case,
    query: Memory,
    keys: Memory,
    values: Memory,
    key_scales: Memory,
    value_scales: Memory,
    slopes: Memory,
    sinks: Memory,
    masks: Memory,
    pages: usize,
    table: Memory,
    /// The page table on the host.
    table_entries: Vec<u32>,
    /// First token of each sequence's queries.
    starts: Vec<usize>,
    /// First entry of each sequence in the table.
    entries: Vec<usize>,
}

impl Paged {
    pub fn new(stream: &Stream, case: &Case) -> Self {
        let (d, page_size) = (case.head_dim, case.page_size);
        let lengths = case.sequences.iter().map(|(past, len)| past + len);
        let entries: Vec<usize> =
            lengths.clone().scan(0, |at, len| Some(std::mem::replace(at, *at + len.div_ceil(page_size)))).collect();
        let used: usize = lengths.map(|len| len.div_ceil(page_size)).sum();
        let pages = used + 3;
        // Shuffles the pages: a stride coprime to their number visits each once.
        let step = (1..pages).rev().find(|step| gcd(*step, pages) == 1).unwrap_or(1);
        let table: Vec<u32> = (0..used).map(|entry| ((entry * step + 2) % pages) as u32).collect();
        let slots = pages * case.kv_heads * page_size;
        let bytes = d * case.cache.size();
        let mut planes = [vec![0xff; slots * bytes], vec![0xff; slots * bytes]];
        let mut scales = [vec![f32::NAN; slots], vec![f32::NAN; slots]];
        let (mut query, mut masks) = (Vec::new(), Vec::new());
        for (s, &(past, len)) in case.sequences.iter().enumerate() {
            let seen = (past..past + len).flat_map(|position| case.seen(s, position)).min();
            for position in seen.unwrap_or(past)..past + len {
                let page = table[entries[s] + position / page_size] as usize;
                for head in 0..case.kv_heads {
                    let slot = (page * case.kv_heads + head) * page_size + position % page_size;
                    for which in 0..2 {
                        let (codes, scale) = case.entry(which, s, position, head);
                        planes[which][slot * bytes..][..bytes].copy_from_slice(&codes);
                        scales[which][slot] = scale;
                    }
                }
            }
            for position in past..past + len {
                masks.extend(match case.mask(s, position) {
                    AttentionMask::Causal => [0; 4],
                    AttentionMask::Range { begin, end } => [begin, end, 0, 0],
                    AttentionMask::Branch(nodes) => [0, 0, nodes as u32, (nodes >> 32) as u32],
                });
                for head in 0..case.group * case.kv_heads {
                    query.extend(encode(&case.query(s, position, head), case.dtype));
                }
            }
        }
        let memory = |dtype: DType, bytes: &[u8]| {
            let mut memory = stream.alloc(dtype, bytes.len() / dtype.size()).unwrap();
            memory.write(bytes).unwrap();
            memory
        };
        let heads = 0..case.group * case.kv_heads;
        let floats = |floats: &[f32]| memory(DType::F32, &encode(floats, DType::F32));
        let mut on_device = stream.alloc(DType::U32, table.len()).unwrap();
        on_device.write(&table).unwrap();
        Self {
            query: memory(case.dtype, &query),
            keys: memory(case.cache, &planes[0]),
            values: memory(case.cache, &planes[1]),
            key_scales: floats(&scales[0]),
            value_scales: floats(&scales[1]),
            slopes: floats(&heads.clone().map(|head| case.slope(head)).collect::<Vec<_>>()),
            sinks: floats(&heads.map(|head| case.sink(head).unwrap_or(f32::NAN)).collect::<Vec<_>>()),
            masks: words(stream, &masks),
            pages,
            table: on_device,
            table_entries: table,
            starts: case.sequences.iter().scan(0, |at, (_, len)| Some(std::mem::replace(at, *at + len))).collect(),
            entries,
            case: case.clone(),
        }
    }

    /// Makes the values of a position infinite, or NaN where the cache's type has no infinity.
    pub fn spoil(&mut self, sequence: usize, position: usize) {
        let Case { kv_heads, head_dim, page_size, .. } = self.case;
        let page = self.table_entries[self.entries[sequence] + position / page_size] as usize;
        let code: &[u8] = match self.case.cache {
            DType::BF16 => &[0x80, 0x7f],
            DType::F16 => &[0x00, 0x7c],
            DType::E5M2 => &[0x7c],
            _ => &[0x7f],
        };
        for head in 0..kv_heads {
            let slot = (page * kv_heads + head) * page_size + position % page_size;
            if self.case.cache == DType::I8 {
                self.value_scales.write_at(slot, &[f32::INFINITY]).unwrap();
            } else {
                self.values.write_at(slot * head_dim, &code.repeat(head_dim)).unwrap();
            }
        }
    }

    fn scoring(&self) -> Scoring<'_> {
        Scoring {
            scale: self.case.scale(),
            soft_cap: self.case.cap,
            window: self.case.window,
            chunk: self.case.chunk,
            slopes: self.case.slopes.then(|| self.slopes.slice()),
            sinks: self.case.sinks.then(|| self.sinks.slice()),
        }
    }

    fn masks(&self) -> Option<Slice<'_>> {
        (self.case.masks != Masks::None).then(|| self.masks.slice())
    }

    fn cache(&self) -> KvCache<'_> {
        let scales = match self.case.cache {
            DType::I8 => KvScales::Entry { keys: self.key_scales.slice(), values: self.value_scales.slice() },
            DType::E4M3 | DType::E5M2 => KvScales::Layer { key: LAYER.0, value: LAYER.1 },
            _ => KvScales::None,
        };
        let (keys, values) = (self.keys.slice(), self.values.slice());
        KvCache { keys, values, scales, pages: self.pages, page_size: self.case.page_size }
    }

    /// `[spans, 4]` for queries `from..to` of each sequence, with an empty span after each, like the padding of a step.
    fn spans(&self, ranges: &[(usize, usize)]) -> Vec<u32> {
        let of_sequence = |(s, &(from, to)): (usize, &(usize, usize))| {
            let kv_len = self.case.sequences[s].0 + to;
            let span = [self.starts[s] + from, to - from, kv_len, self.entries[s]].map(|x| x as u32);
            [span, [u32::MAX, 0, 0, u32::MAX]].concat()
        };
        ranges.iter().enumerate().flat_map(of_sequence).collect()
    }

    /// Runs queries `from..to` of each sequence by the decode kernel. Other rows stay NaN. Splits have room for the
    /// states of `room` rows.
    pub fn decode(
        &self,
        stream: &Stream,
        variant: &'static Variant,
        ranges: &[(usize, usize)],
        room: usize,
    ) -> Vec<f32> {
        announce(variant.name);
        let spans = words(stream, &self.spans(ranges));
        let mut counters = words(stream, &vec![0; room]);
        let mut partials = stream.alloc(DType::F32, room * (self.case.head_dim + 3)).unwrap();
        let got = self.run(stream, |out| {
            let kernel = AttentionDecode {
                query: self.query.slice(),
                out: out.slice_mut(),
                cache: self.cache(),
                spans: spans.slice(),
                page_table: self.table.slice(),
                states: SplitStates { counters: counters.slice_mut(), partials: partials.slice_mut() },
                masks: self.masks(),
                heads: self.case.heads(),
                scoring: self.scoring(),
            };
            kernel.launch_variant(stream, variant)
        });
        assert!(
            counters.read::<u32>().unwrap().iter().all(|&count| count == 0),
            "counters are not reset for the next launch"
        );
        got
    }

    /// The same by the prefill kernel, in tiles of `tile` queries.
    pub fn prefill(
        &self,
        stream: &Stream,
        variant: &'static Variant,
        ranges: &[(usize, usize)],
        tile: usize,
    ) -> Vec<f32> {
        self.prefill_in_batches(stream, variant, ranges, tile, usize::MAX)
    }

    /// The same with at most `batches` blocks for each tile and key head.
    pub fn prefill_in_batches(
        &self,
        stream: &Stream,
        variant: &'static Variant,
        ranges: &[(usize, usize)],
        tile: usize,
        batches: usize,
    ) -> Vec<f32> {
        announce(variant.name);
        let spans = words(stream, &self.spans(ranges));
        let tiles: Vec<u32> = ranges
            .iter()
            .enumerate()
            .flat_map(|(s, &(from, to))| {
                (0..to - from).step_by(tile).flat_map(move |first| [2 * s as u32, first as u32])
            })
            .collect();
        let tiles = words(stream, &tiles);
        self.run(stream, |out| {
            let kernel = AttentionPrefill {
                query: self.query.slice(),
                out: out.slice_mut(),
                cache: self.cache(),
                spans: spans.slice(),
                tiles: tiles.slice(),
                tile_queries: tile,
                kv_len: 0,
                page_table: self.table.slice(),
                masks: self.masks(),
                heads: self.case.heads(),
                scoring: self.scoring(),
            };
            kernel.launch_batches(stream, variant, batches)
        })
    }

    fn run(&self, stream: &Stream, launch: impl FnOnce(&mut Memory) -> burrstone::Result<()>) -> Vec<f32> {
        let mut out = stream.alloc(self.case.dtype, self.query.len()).unwrap();
        out.write(&vec![u16::MAX; out.len()]).unwrap();
        launch(&mut out).unwrap();
        let bits: Vec<u16> = out.read().unwrap();
        bits.iter().map(|bits| number(self.case.dtype, &bits.to_le_bytes())).collect()
    }
}

fn words(stream: &Stream, words: &[u32]) -> Memory {
    let mut memory = stream.alloc(DType::U32, words.len()).unwrap();
    memory.write(words).unwrap();
    memory
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The kernel's variants for a case's dtypes and head dimension.
pub fn variants(kernel: &str, stream: &Stream, case: &Case) -> Vec<&'static Variant> {
    let kernel: &'static Kernel = burrstone::kernels::ALL.iter().find(|own| own.name == kernel).unwrap();
    let laid_out_for = case.head_dim.next_power_of_two().max(64) as u32;
    let fits = |variant: &&'static Variant| {
        let text = |axis| variant.value(axis).unwrap().to_string();
        text("dtype") == case.dtype.name()
            && text("cache") == case.cache.name()
            && variant.int("head_dim") == Some(laid_out_for)
            && variant.archs.contains(&stream.arch())
            && !(on_a_gpu() && is_left_out(variant.name))
    };
    let found: Vec<_> = kernel.variants.iter().filter(fits).collect();
    assert!(!found.is_empty(), "{} for {case:?}", kernel.name);
    found
}

/// One (dtype, head dimension, cache dtype) for each kind of variant.
pub fn kinds_of_variants() -> impl Iterator<Item = (DType, usize, DType)> {
    let heads = [48, 112, 136].into_iter().flat_map(|d| [(DType::BF16, d), (DType::F16, d)]);
    heads.flat_map(|(dtype, d)| [dtype, DType::E4M3, DType::E5M2, DType::I8].map(|cache| (dtype, d, cache)))
}

/// Lengths around multiples of tiles (64) and splits (512), and others.
fn any_length(most: usize) -> impl Strategy<Value = usize> {
    let border = prop_oneof![Just(0), Just(1), Just(63), Just(64), Just(65), Just(128)];
    prop_oneof![4 => border, 1 => 510usize..514, 5 => 0..most]
}

/// Small cases with at most `queries` queries a sequence.
pub fn any_case(queries: usize) -> impl Strategy<Value = Case> {
    let head_dim = prop_oneof![4 => 1usize..70, 2 => Just(64), 1 => Just(128), 1 => 129usize..=256];
    let dtypes = (any::<bool>(), 0usize..4).prop_map(|(bf16, cache)| {
        let dtype = if bf16 { DType::BF16 } else { DType::F16 };
        (dtype, [dtype, DType::E4M3, DType::E5M2, DType::I8][cache])
    });
    (
        (1usize..6, 1usize..4, head_dim, 0u32..8),
        (proptest::option::of(1usize..70), proptest::option::of(0.5f32..30.0), dtypes),
        (proptest::option::weighted(0.3, 1usize..200), any::<bool>(), any::<bool>(), any_masks()),
        proptest::collection::vec((any_length(140), 1..=queries), 1..4),
    )
        .prop_map(|((group, kv_heads, head_dim, page), (window, cap, (dtype, cache)), options, sequences)| {
            let (chunk, slopes, sinks, masks) = options;
            // Slopes and trees cannot be combined.
            let slopes = slopes && !matches!(masks, Masks::Tree { .. });
            Case {
                group,
                kv_heads,
                head_dim,
                page_size: 1 << page,
                window,
                cap,
                chunk,
                slopes,
                sinks,
                masks,
                dtype,
                cache,
                sequences,
            }
        })
}

/// Asserts that an infinite value changes only the queries that see it: not those before it, beyond its window or on
/// other branches. `run` returns the output of all queries.
pub fn assert_hidden_values_stay_hidden(run: impl Fn(&Stream, &Case, &Paged) -> Vec<(&'static str, Vec<f32>)>) {
    const SPOILT: usize = 68;
    let limits =
        [(Some(6), Masks::None), (None, Masks::Tree { seed: 3 }), (Some(3), Masks::Images { every: 36, len: 8 })];
    for stream in stream_in_turn(5) {
        for (cache, (window, masks)) in
            [DType::F16, DType::E4M3, DType::E5M2, DType::I8].into_iter().flat_map(|cache| limits.map(|l| (cache, l)))
        {
            let case = Case {
                group: 2,
                kv_heads: 1,
                head_dim: 20,
                page_size: 16,
                window,
                masks,
                dtype: DType::F16,
                cache,
                sequences: vec![(60, 20)],
                ..Case::PLAIN
            };
            let mut paged = Paged::new(&stream, &case);
            let clean = run(&stream, &case, &paged);
            paged.spoil(0, SPOILT);
            for ((name, clean), (_, spoilt)) in clean.iter().zip(run(&stream, &case, &paged)) {
                for (query, (clean, spoilt)) in clean.chunks(40).zip(spoilt.chunks(40)).enumerate() {
                    let what = format!("{name}, {masks:?}, query {query}");
                    if case.seen(0, 60 + query).contains(&SPOILT) {
                        assert!(spoilt.iter().all(|x| !x.is_finite()), "{what}: {spoilt:?}");
                    } else {
                        assert_same_bits(&what, clean, spoilt);
                    }
                }
            }
        }
    }
}

/// Asserts that shared memory accesses of the two matrix products have no bank conflicts.
pub fn assert_no_bank_conflicts(run: impl Fn(&Stream, &Case)) {
    let files = ["attention_fragments.cuh", "attention_ring.cuh"];
    let in_loop =
        |site: &SiteStats| site.space == Space::Shared && files.iter().any(|file| site.place.file.ends_with(file));
    let archs = [(70, DType::F16), (75, DType::F16), (80, DType::BF16), (90, DType::BF16)];
    for (arch, dtype) in one_in_turn(archs.into()) {
        for (head_dim, cache) in [64, 128, 256].into_iter().flat_map(|d| [(d, dtype), (d, DType::E4M3)]) {
            let stream = simulated(SimOptions { arch, count: true, ..SimOptions::default() });
            let sequences = vec![(70, 5)];
            let case = Case { group: 7, kv_heads: 1, head_dim, page_size: 16, dtype, cache, sequences, ..Case::PLAIN };
            run(&stream, &case);
            assert_no_waste(&stream, in_loop);
        }
    }
}
