//! What a benchmark says, for people and as JSON.

use std::fmt;

use burrstone::LoadReport;
use serde::Serialize;

use crate::cli::output::size;

#[derive(Serialize)]
pub struct Report {
    version: &'static str,
    model: String,
    device: String,
    dtype: &'static str,
    kv_dtype: &'static str,
    load_s: f64,
    weight_bytes: u64,
    /// After a run of each figure; null where the system does not say.
    peak_rss_bytes: Option<u64>,
    repeat: usize,
    figures: Vec<Figure>,
}

/// One line: medians.
#[derive(Serialize)]
pub struct Figure {
    pub phase: &'static str,
    /// Tokens in the KV cache before.
    pub depth: usize,
    /// Tokens of the prompt, or generated.
    pub tokens: usize,
    /// Seconds of the prompt, or of one generated token.
    pub seconds: f64,
    pub tokens_per_s: f64,
    /// Of `rate` and `machine`.
    pub unit: &'static str,
    /// Unavoidable work per second.
    pub rate: f64,
    /// The machine's rate in the same seconds.
    pub machine: f64,
    /// Seconds of the unavoidable work at that rate.
    pub floor_s: f64,
    /// Fraction of the machine's rate.
    pub of_floor: f64,
}

impl Report {
    pub fn new(load: &LoadReport, peak_rss_bytes: Option<u64>, repeat: usize, figures: Vec<Figure>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            model: load.model.clone(),
            device: load.device.clone(),
            dtype: load.dtype.name(),
            kv_dtype: load.kv_dtype.name(),
            load_s: load.load_s,
            weight_bytes: load.weight_bytes,
            peak_rss_bytes,
            repeat,
            figures,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "burrstone {}: {}, {} on {}", self.version, self.model, self.dtype, self.device)?;
        if self.kv_dtype != self.dtype {
            writeln!(f, "KV cache in {}", self.kv_dtype)?;
        }
        let peak = self.peak_rss_bytes.map_or_else(|| "unknown".to_owned(), size);
        writeln!(f, "load {:.3} s, weights {}, peak memory {peak}", self.load_s, size(self.weight_bytes))?;
        writeln!(f, "medians of {}, the machine's rate measured around each run\n", self.repeat)?;
        writeln!(
            f,
            "{:<22} {:>10} {:>11} {:>11} {:>17} {:>17} {:>9}",
            "", "tokens/s", "time", "floor", "rate", "machine", "of floor"
        )?;
        for figure in &self.figures {
            let what = match figure.phase {
                "decode" => format!("decode {} at {}", figure.tokens, figure.depth),
                phase => format!("{phase} {}", figure.tokens),
            };
            writeln!(
                f,
                "{what:<22} {:>10.1} {:>8.2} ms {:>8.2} ms {:>9.1} {:<7} {:>9.1} {:<7} {:>7.1} %",
                figure.tokens_per_s,
                figure.seconds * 1e3,
                figure.floor_s * 1e3,
                figure.rate,
                figure.unit,
                figure.machine,
                figure.unit,
                figure.of_floor * 100.0,
            )?;
        }
        Ok(())
    }
}

/// The middle value; of two, their mean. 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_middle_of_an_unordered_list() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
