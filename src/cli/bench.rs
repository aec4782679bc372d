//! `burrstone bench`

mod cost;
mod latency;
pub mod mix;
mod table;
mod throughput;
pub mod workload;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Measure how fast a model runs here, and how close that is to the machine's limits
#[derive(Args)]
#[command(after_help = "Examples:
  burrstone bench latency --model ./Qwen3-0.6B
  burrstone bench throughput --model ./Qwen3-0.6B")]
pub struct Bench {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Latency(latency::Latency),
    Throughput(throughput::Throughput),
}

impl Bench {
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Latency(command) => command.run(),
            Command::Throughput(command) => command.run(),
        }
    }
}
