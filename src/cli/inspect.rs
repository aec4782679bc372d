//! `burrstone inspect`

mod census;
mod report;

use anyhow::Result;
use burrstone::model::Checkpoint;
use burrstone::model::resolve;
use clap::Args;

use super::output;
use super::values;

/// Show what is in a checkpoint, from its configuration and file headers; weights are not read
#[derive(Args)]
#[command(after_help = "Examples:
  burrstone inspect
  burrstone inspect ./Qwen3-0.6B --memory 8GiB
  burrstone inspect Qwen/Qwen3-0.6B --tensors
  burrstone inspect ./Qwen3-0.6B --json")]
pub struct Inspect {
    /// A folder in Hugging Face format, or a hub id [default: the built-in model]
    model: Option<String>,

    /// Show how many tokens of KV cache fit in this much memory beside the weights: 8GiB, 500MB
    #[arg(long, value_name = "SIZE", value_parser = values::bytes, allow_negative_numbers = true)]
    memory: Option<u64>,

    /// List every tensor
    #[arg(long)]
    tensors: bool,

    /// Use a hub model from the local cache only
    #[arg(long)]
    offline: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let checkpoint = self.open()?;
        let name = self.model.as_deref().unwrap_or("built-in");
        let report = report::Report::new(name, &checkpoint, self.memory, self.tensors);
        if self.json { output::print_json(&report) } else { output::print(report.to_string()) }
    }

    fn open(&self) -> Result<Checkpoint> {
        match &self.model {
            Some(model) => Ok(Checkpoint::open(&resolve(model, self.offline, &mut output::Downloads::new(false))?)?),
            #[cfg(feature = "builtin-model")]
            None => Ok(Checkpoint::builtin()?),
            #[cfg(not(feature = "builtin-model"))]
            None => Err(super::exit::bad_input("MODEL", "a folder or a hub id", "none, and this build has no model")),
        }
    }
}
