//! `burrstone batch`

mod constraint;
mod format;

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
use burrstone::{Engine, Error};
use clap::Args;

use super::args::ModelArgs;
use super::exit::bad_input;
use super::output;
use format::{Answer, Ask};

/// Answer a file of requests in OpenAI's batch format, as fast as the machine goes
///
/// Each line of the input is an object with custom_id, method, url (/v1/chat/completions or /v1/completions) and body;
/// the output gets a line for each, in the order in which they end. Started again after it was stopped, it answers what
/// has no line in the output yet.
#[derive(Args)]
#[command(after_help = "Examples:
  burrstone batch --input questions.jsonl --output answers.jsonl --model ./Qwen3-0.6B
  burrstone batch --input questions.jsonl --output answers.jsonl --max-sequences 32 --kv-memory 4GiB")]
pub struct Batch {
    /// Requests, one JSON object a line
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// Answers; lines that are there already are kept
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    #[command(flatten)]
    model: ModelArgs,
}

impl Batch {
    pub fn run(self) -> Result<()> {
        let asks = read_asks(&self.input)?;
        let (file, done) = open_output(&self.output, &asks)?;
        let asks: Vec<Ask> = asks.into_iter().filter(|ask| !done.contains(&ask.custom_id)).collect();
        if !done.is_empty() && !self.model.quiet {
            output::note(format_args!("{} of {} are answered already", done.len(), done.len() + asks.len()));
        }
        if asks.is_empty() {
            return Ok(());
        }
        let engine = self.model.load()?;
        if !self.model.quiet {
            output::memory_table(engine.report());
        }
        let started = Instant::now();
        let bar = output::bar((done.len() + asks.len()) as u64, done.len() as u64, self.model.quiet);
        let totals = answer_all(&engine, &asks, Sink { file: Mutex::new(file), path: &self.output }, || bar.advance())?;
        drop(bar);
        if !self.model.quiet {
            let seconds = started.elapsed().as_secs_f64();
            output::note(format_args!(
                "{} requests, {} failed | {} prompt tokens, {} of them cached | {} tokens in {seconds:.1} s, {:.1} tokens/s",
                asks.len(),
                totals.failed,
                totals.prompt_tokens,
                totals.cached_tokens,
                totals.completion_tokens,
                totals.completion_tokens as f64 / seconds,
            ));
            output::preemptions(engine.report(), &engine.status()?.stats);
        }
        Ok(())
    }
}

/// All requests of a file.
fn read_asks(path: &Path) -> Result<Vec<Ask>> {
    let file = File::open(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let (mut asks, mut lines) = (Vec::new(), HashMap::new());
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| path.display().to_string())?;
        if line.trim().is_empty() {
            continue;
        }
        let field = format!("{}: line {}", path.display(), number + 1);
        let ask = Ask::parse(&line).map_err(|reason| bad_input(&field, "a request", reason))?;
        if let Some(before) = lines.insert(ask.custom_id.clone(), number + 1) {
            let found = format!("{:?}, as in line {before}", ask.custom_id);
            return Err(bad_input(&field, "a custom_id of its own", found));
        }
        asks.push(ask);
    }
    Ok(asks)
}

/// The output, to be appended to, and which requests have their line there. A last line that was cut short goes.
fn open_output(path: &Path, asks: &[Ask]) -> Result<(File, HashSet<String>)> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io)?;
    let known: HashSet<&str> = asks.iter().map(|ask| ask.custom_id.as_str()).collect();
    let (mut done, mut whole, mut line) = (HashSet::new(), 0, Vec::new());
    let mut reader = BufReader::new(&mut file);
    for number in 1.. {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(io)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        whole += read as u64;
        let id = format::answered(&line).filter(|id| known.contains(id.as_str()));
        let field = || format!("{}: line {number}", path.display());
        let id = id.ok_or_else(|| bad_input(&field(), "an answer to a request of the input", "something else"))?;
        if !done.insert(id.clone()) {
            return Err(bad_input(&field(), "one answer to each request", format!("a second one to {id:?}")));
        }
    }
    file.set_len(whole).map_err(io)?;
    Ok((file, done))
}

/// Where answers go, a line at a time.
struct Sink<'a> {
    file: Mutex<File>,
    path: &'a Path,
}

impl Sink<'_> {
    fn write(&self, answer: &Answer) -> Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line).map_err(|source| Error::Io { path: self.path.to_owned(), source })?;
        Ok(())
    }
}

#[derive(Clone, Copy, Default)]
struct Totals {
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
    failed: usize,
}

/// Answers all, as many at a time as the engine runs, and some that wait, so that it never does.
fn answer_all(engine: &Engine, asks: &[Ask], sink: Sink<'_>, progress: impl Fn() + Sync) -> Result<Totals> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Totals> {
        let mut totals = Totals::default();
        while let Some(ask) = asks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let answer = ask.answer(engine);
            sink.write(&answer)?;
            totals.prompt_tokens += answer.usage.prompt_tokens;
            totals.cached_tokens += answer.usage.cached_tokens;
            totals.completion_tokens += answer.usage.completion_tokens;
            totals.failed += usize::from(!answer.succeeded());
            progress();
        }
        Ok(totals)
    };
    let count = asks.len().min(2 * engine.report().max_sequences);
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
