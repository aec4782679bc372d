//! The decoder on a simulated GPU, with batches of several sequences, as the engine runs it.
#![cfg(all(feature = "engine", feature = "sim"))]

#[allow(dead_code, reason = "only the checkpoints are used, not the expected results")]
#[path = "golden/checkpoint.rs"]
mod checkpoint;
mod simulator;

use burrstone::DType;
use burrstone::device::{SimOptions, Stream};
use burrstone::kernels::Gpu;
use burrstone::model::{Checkpoint, Decoder, Forward, Limits, Rope, WeightPrecision};
use burrstone::ops::{Batch, CacheShape, LogitEdits, SampleRow, Sampled, Span, TokenHistory};

const PAGE_SIZE: usize = 8;
const PAGES_EACH: usize = 65;
const MEMORY: u64 = 1 << 30;

/// A model on the simulator, and sequences whose pages are interleaved.
struct Lab {
    decoder: Decoder<Gpu>,
    rope: Rope,
    sequences: Vec<Vec<u32>>,
    stream: Stream,
    /// Predicted bytes of weights, activations, workspace and cache.
    reckoned: u64,
    /// Steps so far. Every other step is prepared before its tokens are known.
    steps: u64,
}

impl Lab {
    fn new(prompts: &[Vec<u32>]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        checkpoint::case("qwen3").write(folder.path());
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let spec = checkpoint.spec().clone();
        let cache = CacheShape {
            layers: spec.layers,
            pages: PAGES_EACH * prompts.len(),
            page_size: PAGE_SIZE,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            dtype: DType::BF16,
        };
        let limits = Limits { batch_tokens: PAGE_SIZE * PAGES_EACH, cache };
        simulator::load();
        let stream = Stream::sim(SimOptions { memory_bytes: MEMORY, ..SimOptions::default() }).unwrap();
        let gpu = Gpu::new(stream.clone(), DType::BF16, limits.batch_tokens, spec.vocab_size).unwrap();
        let decoder = Decoder::load(gpu, &spec, &checkpoint, WeightPrecision::default(), DType::BF16, limits).unwrap();
        let weights: u64 = checkpoint.tensors().map(|tensor| tensor.bytes).sum();
        let reckoned = weights + limits.activation_bytes(&spec) + Gpu::workspace_bytes(&cache) + cache.bytes() as u64;
        let rope = spec.rope.table(spec.context);
        Self { decoder, rope, sequences: prompts.to_vec(), stream, reckoned, steps: 0 }
    }

    /// Runs the last `new[i]` tokens of each sequence in one step, and appends the sampled tokens.
    fn step(&mut self, new: &[usize], row: impl Fn(usize, &[u32]) -> SampleRow) -> Vec<Sampled> {
        let mut batch = Batch::default();
        for (i, (tokens, &new)) in self.sequences.iter().zip(new).enumerate() {
            let pages: Vec<u32> = (0..PAGES_EACH).map(|p| (p * self.sequences.len() + i) as u32).collect();
            let (start, past) = (batch.tokens.len(), tokens.len() - new);
            for (position, &token) in tokens.iter().enumerate().skip(past) {
                batch.tokens.push(token);
                batch.slots.push(pages[position / PAGE_SIZE] * PAGE_SIZE as u32 + (position % PAGE_SIZE) as u32);
                self.rope.append(position, tokens.len(), usize::MAX, &mut batch.rope_rows, &mut batch.rope);
            }
            batch.spans.push(Span { start, len: new, kv_len: tokens.len(), pages: batch.page_table.len() });
            batch.page_table.append(&pages);
            batch.logit_rows.push(batch.tokens.len() as u32 - 1);
            batch.samples.push(row(i, tokens));
        }
        self.steps += 1;
        if self.steps.is_multiple_of(2) {
            batch.layout = self.steps;
            let (tokens, samples) = (vec![0; batch.tokens.len()], vec![SampleRow::GREEDY; batch.samples.len()]);
            self.decoder.prepare(&Batch { tokens, samples, ..batch.clone() }).unwrap();
        }
        self.decoder.sample(&batch, LogitEdits { rows: &[], edit: &mut |_, _| () }).unwrap();
        let sampled: Vec<Sampled> = self.decoder.sampled().unwrap().into_iter().map(Result::unwrap).collect();
        for (tokens, sampled) in self.sequences.iter_mut().zip(&sampled) {
            tokens.push(sampled.token);
        }
        sampled
    }
}

/// Greedy, random, and penalized with a ban: each row uses other lists.
fn row(which: usize, tokens: &[u32]) -> SampleRow {
    let position = tokens.len() as u64;
    match which {
        0 => SampleRow { position, ..SampleRow::GREEDY },
        1 => SampleRow { position, temperature: 1.5, top_p: 0.9, seed: 3, ..SampleRow::GREEDY },
        _ => SampleRow {
            position,
            repetition_penalty: 4.0,
            history: Some(TokenHistory::new(tokens, &[])),
            logit_bias: vec![(7, f32::NEG_INFINITY)],
            ..SampleRow::GREEDY
        },
    }
}

/// A prefill, then decode steps in a bucket of four whose last row is padding: every sequence gets the bits that it
/// gets alone.
#[test]
fn sequences_of_a_batch_get_the_bits_they_get_alone() {
    let prompts: Vec<Vec<u32>> = [5, 33, 1].map(|n| (0..n).map(|i| 11 + i * 37 % 90).collect()).to_vec();
    let mut together = Lab::new(&prompts);
    let mut found = vec![together.step(&[5, 33, 1], row)];
    for _ in 0..5 {
        found.push(together.step(&[1, 1, 1], row));
    }
    let counters = together.decoder.counters();
    assert_eq!(counters.replays, 4, "the first decode step is launched and recorded");
    for (which, prompt) in prompts.iter().enumerate() {
        let mut alone = Lab::new(std::slice::from_ref(prompt));
        for (step, found) in found.iter().enumerate() {
            let new = if step == 0 { prompt.len() } else { 1 };
            let expected = alone.step(&[new], |_, tokens| row(which, tokens));
            assert_eq!(found[which].token, expected[0].token, "sequence {which}, step {step}");
            assert_eq!(found[which].logprob.to_bits(), expected[0].logprob.to_bits(), "sequence {which}, step {step}");
        }
    }
}

/// #20256: a model uses no more device memory than predicted.
#[test]
fn issue_20256_memory_use_is_as_predicted_on_the_device() {
    let mut lab = Lab::new(&[vec![20; 40], vec![21; 3]]);
    let taken = |lab: &Lab| MEMORY - lab.stream.free_bytes().unwrap();
    let loaded = taken(&lab);
    assert!(loaded <= lab.reckoned && loaded > lab.reckoned / 2, "{loaded} of {}", lab.reckoned);
    lab.step(&[40, 3], row);
    (0..3).for_each(|_| drop(lab.step(&[1, 1], row)));
    assert!(taken(&lab) <= lab.reckoned, "{} of {}", taken(&lab), lab.reckoned);
}

/// A step recorded at a short length is replayed at longer ones, here across the start of a cache split.
#[test]
fn a_recorded_step_is_replayed_at_any_length() {
    let prompt: Vec<u32> = (0..509).map(|i| 11 + i * 37 % 90).collect();
    let mut decoded = Lab::new(std::slice::from_ref(&prompt));
    decoded.step(&[prompt.len()], row);
    let steps: Vec<Sampled> = (0..6).map(|_| decoded.step(&[1], row)[0]).collect();
    assert_eq!(decoded.decoder.counters().replays, 5);
    let so_far = &decoded.sequences[0][..prompt.len() + 6];
    let at_once = Lab::new(&[so_far.to_vec()]).step(&[so_far.len()], row)[0];
    assert_eq!((steps[5].token, steps[5].logprob.to_bits()), (at_once.token, at_once.logprob.to_bits()));
}

/// A step that outgrows its buffers gets new addresses, so recordings with the old ones must not be replayed.
#[test]
fn steps_are_recorded_again_when_their_buffers_grow() {
    let biased = |tokens: u32| {
        move |_: usize, so_far: &[u32]| {
            let logit_bias = (0..tokens).map(|token| (token, 0.0)).collect();
            SampleRow { position: so_far.len() as u64, logit_bias, ..SampleRow::GREEDY }
        }
    };
    let prompt = vec![20];
    let mut plain = Lab::new(std::slice::from_ref(&prompt));
    let mut grown = Lab::new(std::slice::from_ref(&prompt));
    for step in 0..8 {
        let tokens = if step == 4 { 90 } else { 1 };
        let (a, b) = (plain.step(&[1], biased(1))[0], grown.step(&[1], biased(tokens))[0]);
        assert_eq!((a.token, a.logprob.to_bits()), (b.token, b.logprob.to_bits()), "step {step}");
    }
    assert!(grown.decoder.counters().replays < plain.decoder.counters().replays);
}
