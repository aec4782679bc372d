//! What a mix of requests went through.

use std::fmt;

use burrstone::scheduler::Receipt;
use serde::Serialize;

use super::workload::Workload;

/// Measured, or modelled.
#[derive(Serialize)]
pub struct Mix {
    pub workload: String,
    requests: usize,
    prompt_tokens: usize,
    cached_tokens: usize,
    tokens: usize,
    seconds: f64,
    tokens_per_s: f64,
    /// Seconds in the queue, to the first token from there, and between two tokens.
    queue_s: Quantiles,
    prefill_s: Quantiles,
    between_s: Quantiles,
    preemptions: usize,
}

/// A request that was done.
pub struct Done {
    pub receipt: Receipt,
    pub prompt: usize,
    /// Tokens that were generated.
    pub tokens: usize,
}

#[derive(Serialize)]
struct Quantiles {
    median: f64,
    p99: f64,
}

impl Mix {
    /// Of requests that took so many seconds together.
    pub fn of(workload: Workload, seconds: f64, requests: &[Done]) -> Self {
        let sum = |of: fn(&Done) -> usize| requests.iter().map(of).sum::<usize>();
        let all = |of: fn(&Done) -> f64| Quantiles::of(requests.iter().map(of).collect());
        let tokens = sum(|r| r.tokens);
        Self {
            workload: workload.name(),
            requests: requests.len(),
            prompt_tokens: sum(|r| r.prompt),
            cached_tokens: sum(|r| r.receipt.cached_tokens),
            tokens,
            seconds,
            tokens_per_s: if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
            queue_s: all(|r| r.receipt.queue.as_secs_f64()),
            prefill_s: all(|r| r.receipt.prefill.as_secs_f64()),
            between_s: all(|r| r.receipt.decode.as_secs_f64() / r.tokens.saturating_sub(1).max(1) as f64),
            preemptions: sum(|r| r.receipt.preemptions),
        }
    }

    /// The line above [`Display`](fmt::Display)'s.
    pub fn header() -> String {
        format!(
            "{:<14} {:>9} {:>9} {:>17} {:>17} {:>17} {:>7} {:>9}",
            "mix", "tokens", "tokens/s", "queue, p99", "prompt, p99", "between, p99", "cached", "preempted"
        )
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |q: &Quantiles| format!("{:.3}, {:.3} s", q.median, q.p99);
        write!(
            f,
            "{:<14} {:>9} {:>9.1} {:>17} {:>17} {:>17} {:>7} {:>9}",
            self.workload,
            self.tokens,
            self.tokens_per_s,
            seconds(&self.queue_s),
            seconds(&self.prefill_s),
            seconds(&self.between_s),
            self.cached_tokens,
            self.preemptions,
        )
    }
}

impl Quantiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values.get(((values.len().max(1) - 1) as f64 * share).round() as usize).copied();
        Self { median: at(0.5).unwrap_or(0.0), p99: at(0.99).unwrap_or(0.0) }
    }
}
