//! `burrstone batch`

mod files;
mod input;
mod lines;
mod openai;
mod output;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Result;
use burrstone::Engine;
use clap::Args;

use super::args::ModelArgs;
use super::exit::{self, Reported};
use super::output as terminal;
use input::Input;
use lines::RequestLine;
use output::{Output, Sink};

/// Errors of input lines that are shown one by one.
const SHOWN_ERRORS: usize = 10;

/// Answer a file of requests in OpenAI's batch format, as fast as the machine goes
///
/// Each line of the input is an object with custom_id, method, url (/v1/chat/completions or /v1/completions) and body;
/// the output gets a line for each, in the order in which they end. Started again after it was stopped, it answers what
/// has no line in the output yet. A line of the input that is not a request is reported, and the others are answered; the
/// exit code is then 2.
#[derive(Args)]
#[command(after_help = "Examples:
  burrstone batch --input questions.jsonl --output answers.jsonl --model ./Qwen3-0.6B
  burrstone batch --input questions.jsonl --output answers.jsonl --max-sequences 32 --kv-memory 4GiB
  cat questions.jsonl | burrstone batch --input - --output - | grep '\"status_code\":200'")]
pub struct Batch {
    /// Requests, one JSON object a line; - is standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// Answers; a file of them is continued, any other file is left alone; - is standard output
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    #[command(flatten)]
    model: ModelArgs,
}

impl Batch {
    pub fn run(self) -> Result<()> {
        let input = Input::read(&self.input)?;
        report(&input.errors);
        let output = Output::inspect(&self.output, &input)?;
        let pending: Vec<&RequestLine> =
            input.requests.iter().filter(|request| !output.has(&request.custom_id)).collect();
        let done = input.requests.len() - pending.len();
        if done > 0 && !self.model.quiet {
            terminal::note(format_args!("{done} of {} are answered already", input.requests.len()));
        }
        if !pending.is_empty() {
            self.answer(&pending, output, &input)?;
        }
        if input.errors.is_empty() { Ok(()) } else { Err(Reported.into()) }
    }

    fn answer(&self, pending: &[&RequestLine], output: Output<'_>, input: &Input) -> Result<()> {
        let engine = self.model.load()?;
        if !self.model.quiet {
            terminal::memory_table(engine.report());
        }
        let sink = output.open(input)?;
        let started = Instant::now();
        let (total, done) = (input.requests.len(), input.requests.len() - pending.len());
        let bar = terminal::bar(total as u64, done as u64, self.model.quiet);
        let totals = answer_all(&engine, pending, &sink, || bar.advance())?;
        drop(bar);
        if !self.model.quiet {
            let seconds = started.elapsed().as_secs_f64();
            terminal::note(format_args!(
                "{} requests, {} failed | {} prompt tokens, {} of them cached | {} tokens in {seconds:.1} s, {:.1} tokens/s",
                pending.len(),
                totals.failed,
                totals.prompt_tokens,
                totals.cached_tokens,
                totals.completion_tokens,
                totals.completion_tokens as f64 / seconds,
            ));
            terminal::preemptions(engine.report(), &engine.status()?.stats);
        }
        Ok(())
    }
}

fn report(errors: &[anyhow::Error]) {
    errors.iter().take(SHOWN_ERRORS).for_each(exit::report);
    if let more @ 1.. = errors.len().saturating_sub(SHOWN_ERRORS) {
        terminal::note(format_args!("error: {more} more lines of the input are not requests"));
    }
}

#[derive(Clone, Copy, Default)]
struct Totals {
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
    failed: usize,
}

/// Answers all requests: as many at a time as the engine runs, and as many again that wait for a place.
fn answer_all(engine: &Engine, requests: &[&RequestLine], sink: &Sink, progress: impl Fn() + Sync) -> Result<Totals> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Totals> {
        let mut totals = Totals::default();
        while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (line, usage) = request.answer(engine);
            // Without a place to write to, no other request is begun.
            sink.write(&line).inspect_err(|_| next.store(requests.len(), Ordering::Relaxed))?;
            match usage {
                Some(usage) => {
                    totals.prompt_tokens += usage.prompt_tokens;
                    totals.cached_tokens += usage.cached_tokens();
                    totals.completion_tokens += usage.completion_tokens;
                }
                None => totals.failed += 1,
            }
            progress();
        }
        Ok(totals)
    };
    let count = requests.len().min(2 * engine.report().max_sequences);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        let mut sum = Totals::default();
        for thread in threads {
            let part = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            sum.prompt_tokens += part.prompt_tokens;
            sum.cached_tokens += part.cached_tokens;
            sum.completion_tokens += part.completion_tokens;
            sum.failed += part.failed;
        }
        Ok(sum)
    })
}
