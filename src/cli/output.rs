//! Standard output and standard error. Text goes out as it is; a closed pipe is an error that ends the program in
//! silence.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Result;
use burrstone::model::source::Progress;
use burrstone::ops::CacheShape;
use burrstone::scheduler::Stats;
use burrstone::{KvLimit, LoadReport};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Writes to standard output and flushes.
pub fn print(text: impl AsRef<[u8]>) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref())?;
    out.flush()?;
    Ok(())
}

/// Writes one JSON object and a line end to standard output.
pub fn print_json(object: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(object)?;
    line.push(b'\n');
    print(line)
}

/// Writes a line to standard error.
pub fn note(line: impl Display) {
    // Nobody is left to tell when this fails.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Shows `what` as in progress on standard error, if that is a terminal, until dropped.
pub fn working(what: String, quiet: bool) -> impl Drop {
    Working((!quiet && io::stderr().is_terminal()).then(|| {
        let bar = ProgressBar::new_spinner().with_message(what);
        bar.set_style(ProgressStyle::default_spinner());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }))
}

/// A progress bar on standard error, if that is a terminal, until dropped.
pub struct Bar(Option<ProgressBar>);

pub fn bar(total: u64, done: u64, quiet: bool) -> Bar {
    Bar((!quiet && io::stderr().is_terminal()).then(|| {
        let bar = ProgressBar::new(total).with_position(done);
        // A template that indicatif refuses costs the look, not the work.
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len} {per_sec} {eta}") {
            bar.set_style(style);
        }
        bar
    }))
}

impl Bar {
    pub fn advance(&self) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Progress bars of downloads, on standard error if that is a terminal.
pub struct Downloads {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Downloads {
    pub fn new(quiet: bool) -> Self {
        Self { bar: None, quiet }
    }
}

impl Progress for Downloads {
    fn start(&mut self, file: &str, total: u64) {
        if self.quiet || !io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::new(total).with_message(file.to_owned());
        let style =
            "{msg:40!} {bar:30} {binary_bytes:>10} of {binary_total_bytes:<10} {binary_bytes_per_sec:>12} {eta}";
        // A template that indicatif refuses costs the look, not the download.
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        self.bar = Some(bar);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }

    fn notice(&mut self, text: &str) {
        if !self.quiet {
            note(text);
        }
    }
}

struct Working(Option<ProgressBar>);

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The memory table: where memory goes, why, and how many sequences that is for.
pub fn memory_table(report: &LoadReport) {
    let LoadReport { step_tokens, max_sequences, context, kv_tokens, kv_shape, .. } = *report;
    let kv = match report.kv_limit {
        KvLimit::Asked => "as asked for".to_owned(),
        KvLimit::Memory => "what --memory leaves".to_owned(),
        KvLimit::Sequences => format!("{max_sequences} sequences of {context} tokens could not fill more"),
        KvLimit::Free(free) => format!("half of {} that are free", size(free)),
        _ => String::new(),
    };
    let CacheShape { layers, kv_heads, head_dim, dtype, .. } = kv_shape;
    let scale = if kv_shape.has_scales() { " and a scale" } else { "" };
    let token = format!("keys and values: 2 x {layers} layers x {kv_heads} heads x {head_dim} of {dtype}{scale}");
    let host = report.host_kv_bytes;
    let owners = [
        ("weights", report.weight_bytes, "as stored".to_owned()),
        ("activations", report.activation_bytes, format!("at the most, for {step_tokens} tokens of a step")),
        ("KV cache", report.kv_bytes, format!("{kv_tokens} tokens: {kv}")),
        ("of a token", kv_shape.bytes_per_token() as u64, token),
        ("host's KV", host, "at the most, for what the cache gives up: as asked for".to_owned()),
    ];
    for (owner, bytes, why) in owners.into_iter().filter(|(_, bytes, _)| *bytes > 0) {
        note(format_args!("{owner:<12} {:>10}  {why}", size(bytes)));
    }
    let all = report.sequences_of(context);
    let typical = report.typical.iter().sum();
    let more = report.sequences_of(typical);
    let modelled = report.tokens_per_s.map(|rate| format!(", {rate:.0} tokens/s by the kernels' cost model"));
    let modelled = modelled.unwrap_or_default();
    note(format_args!(
        "{:<12} {all:>10}  at a time of {context} tokens, the whole context; {more} of {typical}{modelled}",
        "sequences"
    ));
}

/// What preemption cost, if there was any.
pub fn preemptions(report: &LoadReport, stats: &Stats) {
    let block = (report.kv_shape.page_size * report.kv_shape.bytes_per_token()) as u64;
    if stats.preemptions > 0 || stats.stored_blocks > 0 {
        note(format_args!(
            "{} preemptions, {} tokens computed again, {:.1} s until all was as before | to the host's memory {}, back {}",
            stats.preemptions,
            stats.recomputed_tokens,
            stats.stalled.as_secs_f64(),
            size(stats.stored_blocks * block),
            size(stats.fetched_blocks * block),
        ));
    }
}

/// Bytes in binary units.
pub fn size(bytes: u64) -> String {
    const KIB: f64 = 1024.0;
    let bytes = bytes as f64;
    match bytes {
        b if b < KIB => format!("{b} B"),
        b if b < KIB * KIB => format!("{:.1} KiB", b / KIB),
        b if b < KIB * KIB * KIB => format!("{:.1} MiB", b / KIB / KIB),
        b => format!("{:.2} GiB", b / KIB / KIB / KIB),
    }
}
