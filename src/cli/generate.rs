//! `burrstone generate`

use anyhow::Result;
use burrstone::{Engine, Generation, Request, Token};
use clap::Args;
use serde::Serialize;

use super::args::{ModelArgs, SamplingArgs};
use super::exit::Interrupted;
use super::interrupt::Interrupt;
use super::output;
use super::prompt::PromptArgs;
use super::values;

const MAX_TOKENS: usize = 256;

/// Continue a text, and stream it to standard output
#[derive(Args)]
#[command(after_help = "Examples:
  burrstone generate
  burrstone generate \"And the king said\" --temperature 0 --max-tokens 64
  burrstone generate --model ./Qwen3-0.6B --prompt-file notes.txt --stop \"\\n\\n\"
  echo \"The mill stood\" | burrstone generate --model Qwen/Qwen3-0.6B --seed 7 --json
  burrstone generate \"Is the mill old? \" --model ./Qwen3-0.6B --choice yes --choice no
  burrstone generate \"A person, as JSON: \" --model ./Qwen3-0.6B --json-schema person.json
  burrstone generate --model ./no-tokenizer --token-ids 1,2,3")]
pub struct Generate {
    #[command(flatten)]
    prompt: PromptArgs,

    /// Most tokens to generate; the context is a limit too [default: the checkpoint's, or 256]
    #[arg(long, value_name = "N", value_parser = values::positive, allow_negative_numbers = true)]
    max_tokens: Option<usize>,

    /// Generate at least this many tokens: end tokens are not chosen before [default: the checkpoint's]
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    min_tokens: Option<usize>,

    /// Print one JSON object at the end: text, token_ids and logprobs of the generated tokens, finish_reason, usage,
    /// timings. Without a tokenizer, text is "" (and the plain output is token ids with commas between them)
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Serialize)]
struct Report {
    text: String,
    token_ids: Vec<u32>,
    logprobs: Vec<f32>,
    finish_reason: Option<String>,
    usage: Usage,
    timings: Timings,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
}

#[derive(Serialize)]
struct Timings {
    load_s: f64,
    prefill_s: f64,
    decode_s: f64,
}

impl Generate {
    pub fn run(self) -> Result<()> {
        let interrupt = Interrupt::install()?;
        let prompt = self.prompt.resolve(self.model.model.is_none(), self.model.quiet)?;
        let request = Request { prompt, min_tokens: self.min_tokens, ..Request::text("") };
        let mut request = self.sampling.apply(request)?;
        let engine = self.model.load()?;
        let defaults = engine.generation_config();
        let is_limited = defaults.max_new_tokens.is_some() || defaults.max_length.is_some();
        request.max_tokens = self.max_tokens.or((!is_limited).then_some(MAX_TOKENS));
        let mut generation = engine.generate(request)?;
        let mut printer = Printer::new(&engine, self.json);

        interrupt.hold();
        for token in generation.by_ref() {
            printer.take(token?)?;
            if interrupt.noted() {
                break;
            }
        }
        let interrupted = interrupt.release() && generation.finish_reason().is_none();
        printer.finish(&engine, &generation)?;
        if !self.model.quiet {
            output::note(timing_line(&engine, &generation));
        }
        if interrupted { Err(Interrupted.into()) } else { Ok(()) }
    }
}

/// Tokens on their way to standard output.
struct Printer {
    json: bool,
    has_text: bool,
    text: String,
    tokens: Vec<Token>,
}

impl Printer {
    fn new(engine: &Engine, json: bool) -> Self {
        Self { json, has_text: engine.tokenizer().is_ok(), text: String::new(), tokens: Vec::new() }
    }

    fn take(&mut self, token: Token) -> Result<()> {
        self.text += &token.text;
        if !self.json {
            if self.has_text {
                output::print(&token.text)?;
            } else {
                let comma = if self.tokens.is_empty() { "" } else { "," };
                output::print(format!("{comma}{}", token.id))?;
            }
        }
        self.tokens.push(token);
        Ok(())
    }

    fn finish(self, engine: &Engine, generation: &Generation) -> Result<()> {
        if !self.json {
            return if self.text.ends_with('\n') { Ok(()) } else { output::print("\n") };
        }
        let (usage, timings) = (generation.usage(), generation.timings());
        output::print_json(&Report {
            text: self.text,
            token_ids: self.tokens.iter().map(|t| t.id).collect(),
            logprobs: self.tokens.iter().map(|t| t.logprob).collect(),
            finish_reason: generation.finish_reason().map(|reason| reason.to_string()),
            usage: Usage { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens },
            timings: Timings {
                load_s: engine.report().load_s,
                prefill_s: timings.prefill_s,
                decode_s: timings.decode_s,
            },
        })
    }
}

/// Load, prefill and decode, each with its rate.
fn timing_line(engine: &Engine, generation: &Generation) -> String {
    let (usage, timings, report) = (generation.usage(), generation.timings(), engine.report());
    let rate = |tokens: usize, seconds: f64| {
        if seconds > 0.0 { format!(", {:.1} tokens/s", tokens as f64 / seconds) } else { String::new() }
    };
    let decoded = usage.completion_tokens.saturating_sub(1);
    format!(
        "load {:.2} s | prefill {} tokens in {:.2} s{} | decode {} tokens in {:.2} s{} | {} on {}",
        report.load_s,
        usage.prompt_tokens,
        timings.prefill_s,
        rate(usage.prompt_tokens, timings.prefill_s),
        decoded,
        timings.decode_s,
        rate(decoded, timings.decode_s),
        report.dtype,
        report.device,
    )
}
