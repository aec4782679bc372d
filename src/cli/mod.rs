//! The command line: what each command takes, and how it ends.

mod args;
mod batch;
mod bench;
mod chat;
mod completions;
mod constraint;
mod exit;
mod generate;
mod inspect;
mod interrupt;
mod output;
mod prompt;
mod score;
mod simulate;
mod values;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs large language models: loads Hugging Face checkpoints and generates text.
#[derive(Parser)]
#[command(name = "burrstone", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  burrstone generate                         text from the built-in model
  burrstone generate --model ./Qwen3-0.6B \"The mill stood\"
  burrstone chat --model Qwen/Qwen3-0.6B
  burrstone inspect ./Qwen3-0.6B --memory 8GiB

Exit codes: 0 success, 2 bad input, 1 any other failure, 130 interrupted by Ctrl-C.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Generate(generate::Generate),
    Score(score::Score),
    Chat(chat::Chat),
    Inspect(inspect::Inspect),
    Batch(batch::Batch),
    Bench(bench::Bench),
    Simulate(simulate::Simulate),
    Completions(completions::Completions),
}

/// Parses the command line, runs the command, and says in one line on standard error why it failed, if it did.
pub fn main() -> ExitCode {
    exit::run(|| match Cli::try_parse()?.command {
        Command::Generate(command) => command.run(),
        Command::Score(command) => command.run(),
        Command::Chat(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Batch(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Simulate(command) => command.run(),
        Command::Completions(command) => command.run::<Cli>(),
    })
}
