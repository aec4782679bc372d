//! `burrstone bench throughput`: many sequences at a time.

use std::fmt;
use std::time::Instant;

use anyhow::Result;
use burrstone::{Engine, Request};
use clap::{Args, ValueEnum as _};
use serde::Serialize;

use super::mix::{Done, Mix};
use super::table::median;
use super::workload::{Workload, tokens};
use crate::cli::args::ModelArgs;
use crate::cli::{output, values};

/// Measure tokens per second with many requests at once, for mixes of requests and for batches of each size
///
/// All requests of a mix are submitted at once. A batch is N requests of 8 prompt tokens that generate together. The
/// requests are the same in every run.
#[derive(Args)]
#[command(after_help = "Examples:
  burrstone bench throughput
  burrstone bench throughput --model ./Qwen3-0.6B --workload shared-prefix --requests 64
  burrstone bench throughput --model ./Qwen3-0.6B --batch 1,2,4,8,16 --workload fixed --json")]
pub struct Throughput {
    /// Mixes of requests [default: all]
    #[arg(long, value_name = "MIX", value_enum, value_delimiter = ',')]
    workload: Vec<Workload>,

    /// Requests per mix
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = values::bounded)]
    requests: usize,

    /// Batch sizes
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = values::bounded)]
    #[arg(default_value = "1,2,3,4,6,8,12,16,24,32,48,64")]
    batch: Vec<usize>,

    /// Tokens that each sequence of a batch generates
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = values::bounded)]
    decode: usize,

    /// Repetitions of each batch
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = values::bounded)]
    repeat: usize,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    model: String,
    device: String,
    dtype: &'static str,
    kv_dtype: &'static str,
    max_sequences: usize,
    kv_tokens: usize,
    batches: Vec<Batch>,
    mixes: Vec<Mix>,
}

#[derive(Serialize)]
struct Batch {
    sequences: usize,
    /// Of all sequences together; the median of the repetitions.
    tokens_per_s: f64,
}

/// What a number of requests took.
struct Ran {
    seconds: f64,
    requests: Vec<Done>,
}

impl Throughput {
    pub fn run(self) -> Result<()> {
        let engine = self.model.load()?;
        if !self.model.quiet {
            output::memory_table(engine.report());
        }
        let progress = output::working("measuring".to_owned(), self.model.quiet);
        let mixes = if self.workload.is_empty() { Workload::value_variants() } else { &self.workload };
        let (vocab, context) = (engine.spec().vocab_size, engine.report().context);
        let mut round = 0;
        let mut batches = Vec::new();
        // The first touches memory.
        ask_all(&engine, self.batch_of(1, vocab, u64::MAX))?;
        for &sequences in &self.batch {
            let mut rates = Vec::new();
            for _ in 0..self.repeat {
                round += 1;
                let ran = ask_all(&engine, self.batch_of(sequences, vocab, round))?;
                rates.push((sequences * self.decode) as f64 / ran.seconds);
            }
            batches.push(Batch { sequences, tokens_per_s: median(rates) });
        }
        let mut results = Vec::new();
        for &workload in mixes {
            round += 1;
            let ran = ask_all(&engine, workload.requests(self.requests, vocab, context, round))?;
            results.push(Mix::of(workload, ran.seconds, &ran.requests));
        }
        drop(progress);
        let load = engine.report();
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            model: load.model.clone(),
            device: load.device.clone(),
            dtype: load.dtype.name(),
            kv_dtype: load.kv_dtype.name(),
            max_sequences: load.max_sequences,
            kv_tokens: load.kv_tokens,
            batches,
            mixes: results,
        };
        if self.json { output::print_json(&report) } else { output::print(report.to_string()) }
    }

    fn batch_of(&self, sequences: usize, vocab: usize, round: u64) -> Vec<Request> {
        let request = |i: usize| {
            let request = Request::tokens(tokens(8, vocab, i as u64)).max_tokens(self.decode).temperature(0.0);
            request.ignore_eos(true).cache_salt(round)
        };
        (0..sequences).map(request).collect()
    }
}

/// Asks for all at once, and waits for the last.
fn ask_all(engine: &Engine, requests: Vec<Request>) -> Result<Ran> {
    let started = Instant::now();
    let generations: Vec<_> = requests.into_iter().map(|r| engine.generate(r)).collect::<Result<_, _>>()?;
    let mut requests = Vec::new();
    for mut generation in generations {
        for token in generation.by_ref() {
            token?;
        }
        let usage = generation.usage();
        requests.push(Done {
            receipt: generation.receipt(),
            prompt: usage.prompt_tokens,
            tokens: usage.completion_tokens,
        });
    }
    Ok(Ran { seconds: started.elapsed().as_secs_f64(), requests })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "burrstone {}: {}, {} on {}", self.version, self.model, self.dtype, self.device)?;
        let (sequences, tokens, dtype) = (self.max_sequences, self.kv_tokens, self.kv_dtype);
        writeln!(f, "{sequences} sequences at a time, {tokens} tokens of KV cache in {dtype}\n")?;
        writeln!(f, "{:>9} {:>10} {:>9} {:>10}", "sequences", "tokens/s", "of one", "of before")?;
        let first = self.batches.first().map_or(0.0, |batch| batch.tokens_per_s / batch.sequences as f64);
        let mut before = None;
        for Batch { sequences, tokens_per_s } in &self.batches {
            let of_before = before.map_or_else(String::new, |before| format!("{:.2}", tokens_per_s / before));
            let of_one = tokens_per_s / first;
            writeln!(f, "{sequences:>9} {tokens_per_s:>10.1} {of_one:>9.2} {of_before:>10}")?;
            before = Some(*tokens_per_s);
        }
        writeln!(f, "\n{}", Mix::header())?;
        self.mixes.iter().try_for_each(|mix| writeln!(f, "{mix}"))?;
        Ok(())
    }
}
