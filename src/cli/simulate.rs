//! `burrstone simulate`

mod kernels;
mod shapes;

use std::fmt;

use anyhow::Result;
use burrstone::capacity::{self, GpuModel};
use burrstone::device::Card;
use burrstone::model::ArchSpec;
use burrstone::scheduler::{Plan, Policy, Scheduler, Submission};
use burrstone::simulation::{Arrival, Costs, Run, simulate};
use burrstone::{Prompt, Request};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum as _};
use serde::Serialize;

use super::bench::mix::{Done, Mix};
use super::bench::workload::{Random, Workload};
use super::values::KvPrecision;
use super::{exit, output, values};

/// Predict latency and throughput on a GPU that need not be here: the real scheduler under a virtual clock
///
/// The scheduler is the engine's own; a step takes the time that the kernels' cost model predicts, which is optimistic.
/// Only the model's config.json is read. The requests are the same in every run.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  burrstone simulate
  burrstone simulate ./Llama-3.1-8B/config.json --gpu a100 --workload conversations --rate 20
  burrstone simulate ./Qwen3-0.6B --gpu t4 --requests 2000 --max-sequences 64 --json")]
pub struct Simulate {
    #[command(subcommand)]
    command: Option<Command>,

    /// A folder in Hugging Face format, its config.json alone, or a hub id in the cache [default: the built-in model]
    model: Option<String>,

    #[command(flatten)]
    card: CardArg,

    /// Mixes of requests [default: all]
    #[arg(long, value_name = "MIX", value_enum, value_delimiter = ',')]
    workload: Vec<Workload>,

    /// Requests per mix
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = values::bounded)]
    requests: usize,

    /// Requests per second, arriving at random [default: all at once]
    #[arg(long, value_name = "N", value_parser = values::rate, allow_negative_numbers = true)]
    rate: Option<f64>,

    /// Precision of the KV cache [default: that of the activations]
    #[arg(long, value_enum, default_value_t = KvPrecision::Auto)]
    kv_dtype: KvPrecision,

    /// Longest sequence in tokens [default: what the model allows]
    #[arg(long, value_name = "TOKENS", value_parser = values::positive, allow_negative_numbers = true)]
    context: Option<usize>,

    /// Sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = values::bounded)]
    max_sequences: usize,

    /// Tokens per step
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = values::bounded)]
    step_tokens: usize,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Kernels(kernels::Kernels),
}

/// A GPU that is not here.
#[derive(Args)]
struct CardArg {
    /// The GPU
    #[arg(long, value_name = "CARD", default_value = "h100")]
    #[arg(value_parser = PossibleValuesParser::new(Card::ALL.map(|card| card.name)))]
    gpu: String,
}

impl CardArg {
    fn card(&self) -> Result<&'static Card> {
        Card::named(&self.gpu).ok_or_else(|| exit::bad_input("--gpu", "one of those in --help", &self.gpu))
    }
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    model: String,
    gpu: &'static str,
    /// True: nothing here was measured.
    modelled: bool,
    dtype: &'static str,
    weight_bytes: u64,
    max_sequences: usize,
    kv_tokens: usize,
    mixes: Vec<Simulated>,
}

#[derive(Serialize)]
struct Simulated {
    #[serde(flatten)]
    mix: Mix,
    capacity: Capacity,
    steps: usize,
    tokens_per_step: f64,
    /// Requests larger than the whole cache.
    refused: usize,
}

/// Predicted capacity.
#[derive(Serialize)]
struct Capacity {
    /// Tokens of a request, prompt and output, and how many such sequences fit at once without common prefixes.
    median_tokens: usize,
    median_sequences: usize,
    p95_tokens: usize,
    p95_sequences: usize,
    /// With requests of the mean lengths that never run out.
    tokens_per_s: f64,
}

impl Simulate {
    pub fn run(self) -> Result<()> {
        if let Some(Command::Kernels(command)) = self.command {
            return command.run();
        }
        let card = self.card.card()?;
        if self.step_tokens < self.max_sequences {
            let expected = format!("at least --max-sequences, {}", self.max_sequences);
            return Err(exit::bad_input("--step-tokens", expected, self.step_tokens));
        }
        let spec = self.spec()?;
        let context = self.context.unwrap_or(spec.context);
        if context > spec.context {
            let expected = format!("at most {}, the model's own", spec.context);
            return Err(exit::bad_input("--context", expected, context));
        }
        let policy = Policy {
            step_tokens: self.step_tokens,
            max_running: self.max_sequences,
            max_waiting: self.requests,
            ..Policy::default()
        };
        let mut gpu = GpuModel::new(&spec, card, self.kv_dtype.dtype())?;
        let cache = gpu.cache(&policy, self.max_sequences.saturating_mul(context))?;
        let mixes = if self.workload.is_empty() { Workload::value_variants() } else { &self.workload };
        let mut simulated = Vec::new();
        for (round, &workload) in (0..).zip(mixes) {
            let arrivals = self.arrivals(workload.requests(self.requests, spec.vocab_size, context, round));
            let capacity = Capacity::of(&arrivals, |prompt, output| gpu.capacity(&policy, cache, prompt, output));
            self.warn(workload, &arrivals, &capacity);
            let costs = Costs { step: |plan: &Plan| gpu.seconds(plan), submit: 0.0 };
            let run = simulate(Scheduler::new(policy, cache), costs, &arrivals, usize::MAX);
            simulated.push(Simulated::of(workload, &run, &arrivals, capacity));
        }
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            model: self.model.as_deref().unwrap_or("built-in").to_owned(),
            gpu: card.name,
            modelled: true,
            dtype: gpu.dtype().name(),
            weight_bytes: gpu.weight_bytes(),
            max_sequences: self.max_sequences,
            kv_tokens: cache.blocks * cache.block_size,
            mixes: simulated,
        };
        if self.json { output::print_json(&report) } else { output::print(report.to_string()) }
    }

    /// Warns if more is asked for than the GPU can serve.
    fn warn(&self, workload: Workload, arrivals: &[Arrival], capacity: &Capacity) {
        let tokens = arrivals.iter().map(|arrival| arrival.output).sum::<usize>() as f64;
        let asked = self.rate.map_or(0.0, |rate| rate * tokens / arrivals.len().max(1) as f64);
        if asked > capacity.tokens_per_s {
            let (name, most) = (workload.name(), capacity.tokens_per_s);
            output::note(format_args!("warning: {name}: {asked:.1} tokens/s are asked for, {most:.1} are to be had"));
        }
    }

    fn spec(&self) -> Result<ArchSpec> {
        match &self.model {
            Some(model) => shapes::configured(model),
            #[cfg(feature = "builtin-model")]
            None => Ok(burrstone::model::Checkpoint::builtin()?.spec().clone()),
            #[cfg(not(feature = "builtin-model"))]
            None => Err(exit::bad_input("MODEL", "a folder or a hub id", "none, and this build has no model")),
        }
    }

    /// The requests and their arrival times, a Poisson process.
    fn arrivals(&self, requests: Vec<Request>) -> Vec<Arrival> {
        let mut random = Random::new(0);
        let mut at = 0.0;
        let arrival = |request: Request| {
            if let Some(rate) = self.rate {
                at += -(1.0 - random.uniform()).ln() / rate;
            }
            let Prompt::Tokens(prompt) = request.prompt else { return None };
            let output = request.max_tokens?;
            let submission =
                Submission { priority: request.priority, salt: request.cache_salt, ..Submission::new(prompt, output) };
            Some(Arrival { at, submission, output })
        };
        requests.into_iter().filter_map(arrival).collect()
    }
}

impl Capacity {
    /// For the median, 95th percentile and mean lengths of these requests.
    fn of(arrivals: &[Arrival], mut with: impl FnMut(usize, usize) -> capacity::Capacity) -> Self {
        let mut lengths: Vec<(usize, usize)> =
            arrivals.iter().map(|arrival| (arrival.submission.prompt.len(), arrival.output)).collect();
        lengths.sort_by_key(|(prompt, output)| prompt + output);
        let count = lengths.len().max(1);
        let mut at = |share: f64| {
            let (prompt, output) = lengths.get(((count - 1) as f64 * share) as usize).copied().unwrap_or_default();
            (prompt + output, with(prompt, output).sequences)
        };
        let ((median_tokens, median_sequences), (p95_tokens, p95_sequences)) = (at(0.5), at(0.95));
        let mean = |of: fn(&(usize, usize)) -> usize| lengths.iter().map(of).sum::<usize>().div_ceil(count);
        let tokens_per_s = with(mean(|(prompt, _)| *prompt), mean(|(_, output)| *output)).tokens_per_s;
        Self { median_tokens, median_sequences, p95_tokens, p95_sequences, tokens_per_s }
    }
}

impl Simulated {
    fn of(workload: Workload, run: &Run, arrivals: &[Arrival], capacity: Capacity) -> Self {
        let done = |(record, arrival): (&burrstone::simulation::Record, &Arrival)| {
            let (_, receipt) = record.end?;
            Some(Done { receipt, prompt: arrival.submission.prompt.len(), tokens: record.tokens.len() })
        };
        let done: Vec<Done> = run.records.iter().zip(arrivals).filter_map(done).collect();
        let tokens: usize = run.steps.iter().map(|step| step.tokens).sum();
        Self {
            mix: Mix::of(workload, run.seconds(), &done),
            capacity,
            steps: run.steps.len(),
            tokens_per_step: tokens as f64 / run.steps.len().max(1) as f64,
            refused: run.records.iter().filter(|record| record.refused.is_some()).count(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weights = output::size(self.weight_bytes);
        writeln!(f, "burrstone {}: {}, {} on {}, modelled", self.version, self.model, self.dtype, self.gpu)?;
        writeln!(
            f,
            "weights {weights}, {} sequences at a time, {} tokens of KV cache\n",
            self.max_sequences, self.kv_tokens
        )?;
        writeln!(f, "{} {:>11} {:>7}", Mix::header(), "tokens/step", "refused")?;
        for Simulated { mix, tokens_per_step, refused, .. } in &self.mixes {
            writeln!(f, "{mix} {tokens_per_step:>11.1} {refused:>7}")?;
        }
        writeln!(
            f,
            "\nto be expected: tokens/s, and sequences at a time of the median length and of the 95th percentile"
        )?;
        for Simulated { mix, capacity, .. } in &self.mixes {
            let Capacity { median_tokens, median_sequences, p95_tokens, p95_sequences, tokens_per_s } = capacity;
            let (median, p95) =
                (format!("{median_sequences} of {median_tokens}"), format!("{p95_sequences} of {p95_tokens}"));
            writeln!(f, "{:<14} {tokens_per_s:>19.1} {median:>17} {p95:>17}", mix.workload)?;
        }
        Ok(())
    }
}
