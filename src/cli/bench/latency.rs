//! `burrstone bench latency`: one sequence at a time.

use anyhow::{Context as _, Result};
use burrstone::ops::Rates;
use burrstone::{Engine, Generation, Request};
use clap::Args;

use super::cost::Cost;
use super::table::{Figure, Report, median};
use super::workload::tokens;
use crate::cli::args::ModelArgs;
use crate::cli::exit::bad_input;
use crate::cli::{output, values};

/// Measure the time of a prompt and of a generated token, beside the machine's floors
///
/// A prompt is bound by arithmetic, a generated token by reading the weights and the KV cache. The machine's rates are
/// measured right before and after each run, on as many threads (a GPU's arithmetic rate is its data sheet's). The
/// floor is the unavoidable work at that rate. Figures are medians over the repetitions.
#[derive(Args)]
#[command(after_help = "Examples:
  burrstone bench latency
  burrstone bench latency --model ./Qwen3-0.6B --prefill 128,512,2048 --depth 1024 --threads 2
  burrstone bench latency --model ./Qwen3-0.6B --dtype f32 --json")]
pub struct Latency {
    /// Prompt lengths
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "128,512", value_parser = values::bounded)]
    prefill: Vec<usize>,

    /// Tokens to generate
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = values::bounded)]
    decode: usize,

    /// Tokens in the KV cache before the first generated one
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = values::bounded)]
    depth: usize,

    /// Repetitions of each figure
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = values::bounded)]
    repeat: usize,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArgs,
}

/// What is measured.
#[derive(Clone, Copy)]
enum Run {
    Prefill { tokens: usize },
    Decode { depth: usize, tokens: usize },
}

/// One repetition: seconds, and the machine's rates around it.
struct Sample {
    seconds: f64,
    machine: f64,
}

impl Latency {
    pub fn run(self) -> Result<()> {
        let engine = self.model.load()?;
        self.check(engine.report().context)?;
        let cost = Cost::of(engine.spec(), engine.report().read_bytes, engine.report().kv_dtype);
        let runs: Vec<Run> = (self.prefill.iter().map(|&tokens| Run::Prefill { tokens }))
            .chain([Run::Decode { depth: self.depth, tokens: self.decode }])
            .collect();

        let progress = output::working("measuring".to_owned(), self.model.quiet);
        // First touches of memory are not the model's speed. The probes' own memory is not the model's need.
        let mut count = 0;
        for run in &runs {
            run.seconds(&engine, &mut count)?;
        }
        let peak_rss_bytes = peak_rss();
        let mut samples: Vec<Vec<Sample>> = runs.iter().map(|_| Vec::new()).collect();
        let mut before = engine.rates()?;
        for _ in 0..self.repeat {
            for (run, samples) in runs.iter().zip(&mut samples) {
                let seconds = run.seconds(&engine, &mut count)?;
                let after = engine.rates()?;
                samples.push(Sample { seconds, machine: (run.machine(&before) + run.machine(&after)) / 2.0 });
                before = after;
            }
        }
        drop(progress);

        let figures = runs.iter().zip(&samples).map(|(run, samples)| run.figure(&cost, samples)).collect();
        let report = Report::new(engine.report(), peak_rss_bytes, self.repeat, figures);
        if self.json { output::print_json(&report) } else { output::print(report.to_string()) }
    }

    /// Generations end silently at the context; a measurement must have its full length.
    fn check(&self, context: usize) -> Result<()> {
        let too_long = |field: &str, tokens: usize| {
            Err(bad_input(field, format!("at most {context} tokens, the context"), format!("{tokens} tokens")))
        };
        match self.prefill.iter().find(|tokens| **tokens > context) {
            Some(tokens) => too_long("--prefill", *tokens),
            None if self.depth + self.decode > context => too_long("--depth and --decode", self.depth + self.decode),
            None => Ok(()),
        }
    }
}

impl Run {
    /// Seconds of a prompt, or of one generated token. `count` numbers the runs, so that none hits the prefix cache.
    fn seconds(self, engine: &Engine, count: &mut u64) -> Result<f64> {
        *count += 1;
        let (prompt, generated) = match self {
            Self::Prefill { tokens } => (tokens, 1),
            Self::Decode { depth, tokens } => (depth, tokens + 1),
        };
        let ids = tokens(prompt, engine.spec().vocab_size, *count);
        let request = Request::tokens(ids).max_tokens(generated).temperature(0.0).ignore_eos(true);
        let timings = finish(engine.generate(request)?)?.timings();
        Ok(match self {
            Self::Prefill { .. } => timings.prefill_s,
            Self::Decode { tokens, .. } => timings.decode_s / tokens as f64,
        })
    }

    /// The bounding rate: operations per second for prompts, bytes per second for generated tokens.
    fn machine(self, rates: &Rates) -> f64 {
        1e9 * match self {
            Self::Prefill { .. } => rates.gflop_s,
            Self::Decode { .. } => rates.gb_s,
        }
    }

    /// The work that cannot be avoided.
    fn work(self, cost: &Cost) -> f64 {
        match self {
            Self::Prefill { tokens } => cost.prefill_flops(tokens) as f64,
            Self::Decode { depth, tokens } => {
                let bytes: u64 = (1..=tokens).map(|i| cost.decode_bytes(depth + i)).sum();
                bytes as f64 / tokens as f64
            }
        }
    }

    fn figure(self, cost: &Cost, samples: &[Sample]) -> Figure {
        let work = self.work(cost);
        let of = |f: &dyn Fn(&Sample) -> f64| median(samples.iter().map(f).collect());
        let seconds = of(&|s| s.seconds);
        let (phase, depth, tokens, unit) = match self {
            Self::Prefill { tokens } => ("prefill", 0, tokens, "GFLOP/s"),
            Self::Decode { depth, tokens } => ("decode", depth, tokens, "GB/s"),
        };
        let at_once = if matches!(self, Self::Prefill { .. }) { tokens } else { 1 };
        Figure {
            phase,
            depth,
            tokens,
            seconds,
            tokens_per_s: at_once as f64 / seconds,
            unit,
            rate: work / seconds / 1e9,
            machine: of(&|s| s.machine) / 1e9,
            floor_s: of(&|s| work / s.machine),
            of_floor: of(&|s| work / s.seconds / s.machine),
        }
    }
}

/// Runs a generation to its end.
fn finish(mut generation: Generation) -> Result<Generation> {
    for token in generation.by_ref() {
        token?;
    }
    Ok(generation)
}

/// Peak memory of this process, if the system reports it.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("peak memory").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}
