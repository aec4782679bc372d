//! `burrstone score`

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use burrstone::Engine;
use clap::Args;
use serde::Serialize;

use super::args::ModelArgs;
use super::output;
use super::prompt::read_file;
use super::values::TokenIds;

/// Print how likely a text is: the log-probability of each token given those before it, and the perplexity
#[derive(Args)]
#[command(after_help = "Examples:
  burrstone score --text \"In the beginning God created the heaven and the earth.\"
  burrstone score --model ./Qwen3-0.6B --text-file chapter.txt --json
  burrstone score --model ./no-tokenizer --token-ids 1,2,3")]
pub struct Score {
    #[command(flatten)]
    text: TextArgs,

    /// Print one JSON object: token_ids, logprobs (null for the first token, which nothing predicts), perplexity
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct TextArgs {
    /// The text itself
    #[arg(long)]
    text: Option<String>,

    /// Read the text from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    text_file: Option<PathBuf>,

    /// Token ids in place of text
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true)]
    token_ids: Option<TokenIds>,
}

#[derive(Serialize)]
struct Report {
    token_ids: Vec<u32>,
    logprobs: Vec<Option<f32>>,
    /// Null for a single token, which nothing predicts.
    perplexity: Option<f64>,
}

impl Score {
    pub fn run(self) -> Result<()> {
        let text = match (&self.text.text_file, self.text.text) {
            (Some(file), _) => Some(read_file(file)?),
            (None, text) => text,
        };
        let engine = self.model.load()?;
        let tokens = match (self.text.token_ids, text) {
            (Some(TokenIds(ids)), _) => ids,
            (None, text) => engine.tokenizer()?.encode(&text.unwrap_or_default(), true)?,
        };
        let burrstone::Score { token_ids, logprobs, perplexity } = {
            let _progress = output::working(format!("scoring {} tokens", tokens.len()), self.model.quiet);
            engine.score(&tokens)?
        };
        let report = Report { token_ids, logprobs, perplexity };
        if self.json { output::print_json(&report) } else { output::print(report.table(&engine)?) }
    }
}

impl Report {
    fn table(&self, engine: &Engine) -> Result<String> {
        let mut out = String::from("      id   logprob  token\n");
        for (id, logprob) in self.token_ids.iter().zip(&self.logprobs) {
            let token = engine.tokenizer().and_then(|t| t.decode(&[*id], false)).unwrap_or_default();
            let logprob = logprob.map_or_else(|| "-".to_owned(), |x| format!("{x:.4}"));
            writeln!(out, "{id:>8} {logprob:>9}  {token:?}")?;
        }
        let perplexity = self.perplexity.map_or_else(|| "none".to_owned(), |p| format!("{p:.4}"));
        writeln!(out, "\nperplexity {perplexity} over {} predicted tokens", self.logprobs.iter().flatten().count())?;
        Ok(out)
    }
}
