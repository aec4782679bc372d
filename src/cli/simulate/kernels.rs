//! `burrstone simulate kernels`

use std::fmt;

use anyhow::Result;
use burrstone::DType;
use burrstone::capacity::{head_product, layer_products};
use burrstone::kernels::{AttentionPlan, AttentionShape, Floor, Gpu, Heads, Machine, MatMul, MatMulPair, MatMulPlan};
use burrstone::model::ArchSpec;
use clap::Args;
use serde::Serialize;

use super::{CardArg, shapes};
use crate::cli::{output, values};

/// Show which kernel variants a GPU would run, and how close they come to its limits. No GPU is needed
///
/// The variants are those that the cost model chooses on the GPU. Times are modelled, not measured, and optimistic:
/// they are for comparing. The floor is the larger of two times: moving each operand and result through memory once,
/// and the multiply-adds at the full tensor core rate.
#[derive(Args)]
#[command(after_help = "Examples:
  burrstone simulate kernels
  burrstone simulate kernels llama-3-8b qwen3-32b --gpu a100 --rows 1,128,129
  burrstone simulate kernels ./Llama-3.1-8B/config.json --gpu t4 --json")]
pub struct Kernels {
    #[arg(help = format!("{}, a folder in Hugging Face format, its config.json alone, or a hub id in the cache \
        [default: the first five]", shapes::NAMES.join(", ")))]
    model: Vec<String>,

    #[command(flatten)]
    card: CardArg,

    /// Rows of the products [default: the powers of two up to 8192]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = values::positive)]
    rows: Vec<usize>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    gpu: &'static str,
    /// True: nothing here was measured.
    modelled: bool,
    machine: Assumptions,
    models: Vec<Model>,
}

/// The GPU's parameters in the cost model.
#[derive(Serialize)]
struct Assumptions {
    multiprocessors: u32,
    clock_hz: f64,
    /// Per SM and cycle.
    multiply_adds: f64,
    memory_bytes_per_s: f64,
    cache_bytes_per_s: f64,
    launch_s: f64,
    memory_latency_s: f64,
    cache_latency_s: f64,
}

#[derive(Serialize)]
struct Model {
    model: String,
    dtype: &'static str,
    products: Vec<Product>,
    attention: Vec<Attention>,
}

#[derive(Serialize)]
struct Product {
    layer: &'static str,
    /// Columns of the result, rows of the weight; with a gate those of both projections.
    n: usize,
    k: usize,
    rows: usize,
    /// Split-K: blocks per tile.
    splits: usize,
    /// The operand that clusters share by multicast, on Hopper.
    pair: Option<&'static str>,
    #[serde(flatten)]
    choice: Choice,
}

/// Attention of one layer without a window.
#[derive(Serialize)]
struct Attention {
    step: &'static str,
    sequences: usize,
    /// Queries per sequence.
    queries: usize,
    /// Positions per sequence, queries included.
    length: usize,
    #[serde(flatten)]
    choice: Choice,
}

#[derive(Serialize)]
struct Choice {
    variant: &'static str,
    seconds: f64,
    floor_s: f64,
    /// `memory` or `products`: what bounds the floor.
    bound: &'static str,
    of_floor: f64,
    runner_up: Option<RunnerUp>,
}

#[derive(Serialize)]
struct RunnerUp {
    variant: &'static str,
    /// Its time relative to the choice's.
    ratio: f64,
}

/// Sequences of a decode step, and positions of each.
const DECODES: [[usize; 2]; 9] =
    [[1, 512], [1, 4096], [1, 32_768], [16, 512], [16, 4096], [16, 32_768], [128, 512], [128, 4096], [128, 32_768]];
/// Sequences of a prefill step, queries of each, and positions.
const PREFILLS: [[usize; 3]; 7] = [
    [1, 128, 128],
    [1, 512, 512],
    [1, 2048, 2048],
    [1, 8192, 8192],
    [1, 32_768, 32_768],
    [8, 512, 512],
    [1, 512, 8192],
];

impl Kernels {
    pub fn run(self) -> Result<()> {
        let card = self.card.card()?;
        let machine = Machine::from(card);
        let rows = if self.rows.is_empty() { (0..14).map(|power| 1 << power).collect() } else { self.rows };
        let names = if self.model.is_empty() { shapes::NAMES.map(str::to_owned).to_vec() } else { self.model };
        let models = names.into_iter().map(|name| Model::of(&machine, name, &rows)).collect::<Result<_>>()?;
        let machine = Assumptions {
            multiprocessors: machine.processors,
            clock_hz: machine.clock,
            multiply_adds: machine.tensor_rate,
            memory_bytes_per_s: machine.memory_bandwidth,
            cache_bytes_per_s: machine.cache_bandwidth,
            launch_s: Machine::LAUNCH,
            memory_latency_s: Machine::LATENCY,
            cache_latency_s: Machine::CACHE_LATENCY,
        };
        let report = Report { version: env!("CARGO_PKG_VERSION"), gpu: card.name, modelled: true, machine, models };
        if self.json { output::print_json(&report) } else { output::print(report.to_string()) }
    }
}

impl Model {
    fn of(machine: &Machine, model: String, rows: &[usize]) -> Result<Self> {
        let spec = shapes::spec(&model)?;
        let dtype = Gpu::default_dtype(machine.arch, spec.dtype);
        let mut products = Vec::new();
        for (i, layer) in ["qkv", "output", "gate_up", "down", "head"].into_iter().enumerate() {
            for &m in rows {
                products.push(Product::of(machine, &spec, dtype, layer, i, m)?);
            }
        }
        let decodes = DECODES.map(|[sequences, length]| [sequences, 1, length]);
        let steps = decodes.map(|step| ("decode", step)).into_iter().chain(PREFILLS.map(|step| ("prefill", step)));
        let attention = steps.map(|(name, step)| Attention::of(machine, &spec, dtype, name, step));
        Ok(Self { model, dtype: dtype.name(), products, attention: attention.collect::<Result<_>>()? })
    }
}

impl Product {
    /// The layer's product number `i`; the last one is the output projection.
    fn of(machine: &Machine, spec: &ArchSpec, dtype: DType, layer: &'static str, i: usize, m: usize) -> Result<Self> {
        let of_layer = layer_products(spec, dtype, m);
        let shape = of_layer.get(i).copied().unwrap_or_else(|| head_product(spec, dtype, m));
        let plans = MatMulPlan::ranked(machine, &shape, MatMul::WORKSPACE)?;
        let times = plans.iter().map(|plan| (plan.variant.name, plan.seconds));
        let choice = Choice::of(shape.floor(machine), 0, times.collect());
        let MatMulPlan { splits, pair, .. } = plans[0];
        let pair = pair.map(|pair| match pair {
            MatMulPair::X => "x",
            MatMulPair::Weight => "weight",
        });
        Ok(Self { layer, n: shape.weight_rows(), k: shape.k, rows: m, splits, pair, choice })
    }
}

impl Attention {
    fn of(
        machine: &Machine,
        spec: &ArchSpec,
        dtype: DType,
        step: &'static str,
        [sequences, queries, length]: [usize; 3],
    ) -> Result<Self> {
        let &ArchSpec { heads, kv_heads, head_dim, .. } = spec;
        let heads = Heads { tokens: sequences * queries, heads, kv_heads, head_dim };
        let shape = AttentionShape::of_step(dtype, dtype, heads, sequences, length);
        let plans = AttentionPlan::ranked(machine, &shape)?;
        // Steps that only decode are always decode's kernel's.
        let chosen = plans.iter().position(|plan| plan.decodes || step != "decode").unwrap_or(0);
        let times = plans.iter().map(|plan| (plan.variant.name, plan.seconds));
        let choice = Choice::of(shape.floor(machine), chosen, times.collect());
        Ok(Self { step, sequences, queries, length, choice })
    }
}

impl Choice {
    /// The chosen variant and the best other one.
    fn of(floor: Floor, chosen: usize, mut times: Vec<(&'static str, f64)>) -> Self {
        let (variant, seconds) = times.remove(chosen);
        let runner_up = times.first().map(|&(variant, other)| RunnerUp { variant, ratio: other / seconds });
        let bound = if floor.memory >= floor.products { "memory" } else { "products" };
        let floor_s = floor.seconds();
        Self { variant, seconds, floor_s, bound, of_floor: floor_s / seconds, runner_up }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Assumptions { multiprocessors, clock_hz, multiply_adds, memory_bytes_per_s, .. } = self.machine;
        let Assumptions { cache_bytes_per_s, launch_s, memory_latency_s, cache_latency_s, .. } = self.machine;
        writeln!(f, "burrstone {}: kernels on {}, modelled, not measured", self.version, self.gpu)?;
        writeln!(
            f,
            "taken for granted: {multiprocessors} multiprocessors at {:.2} GHz with {multiply_adds} multiply-adds a cycle \
             each, {:.0} GB/s of memory, {:.0} GB/s of L2 cache, {:.1} us for a launch, {:.1} us for an answer of memory, \
             {:.1} us of the cache, and what `burrstone::kernels::Machine` says",
            clock_hz / 1e9,
            memory_bytes_per_s / 1e9,
            cache_bytes_per_s / 1e9,
            launch_s * 1e6,
            memory_latency_s * 1e6,
            cache_latency_s * 1e6,
        )?;
        self.models.iter().try_for_each(|model| write!(f, "\n{model}"))
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} in {}, modelled", self.model, self.dtype)?;
        writeln!(f, "{:<23} {:>6}  {:<9} {}", "product [n, k]", "rows", "by", Choice::HEADER)?;
        for Product { layer, n, k, rows, splits, pair, choice } in &self.products {
            let by = match pair {
                Some(pair) => format!("pairs: {}", &pair[..1]),
                None if *splits > 1 => format!("{splits} splits"),
                None => String::new(),
            };
            writeln!(f, "{:<23} {rows:>6}  {by:<9} {choice}", format!("{layer} [{n}, {k}]"))?;
        }
        writeln!(f, "{:<23} {:>6}  {:<9} {}", "attention", "length", "queries", Choice::HEADER)?;
        for Attention { step, sequences, queries, length, choice } in &self.attention {
            writeln!(f, "{:<23} {length:>6}  {queries:<9} {choice}", format!("{step} of {sequences}"))?;
        }
        Ok(())
    }
}

impl Choice {
    const HEADER: &str =
        "      time      floor  of floor by        variant, and the next one with its time by this one's";
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variant, seconds, floor_s, bound, of_floor, runner_up } = self;
        let [us, floor_us] = [seconds, floor_s].map(|seconds| seconds * 1e6);
        write!(f, "{us:>7.1} us {floor_us:>7.1} us {:>7.1} % {bound:<9} {variant}", of_floor * 100.0)?;
        match runner_up {
            Some(RunnerUp { variant, ratio }) => write!(f, ", {variant} {ratio:.2}"),
            None => Ok(()),
        }
    }
}
