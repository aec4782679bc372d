//! Stop strings, in text that arrives in pieces.

use crate::error::{Error, Result};

/// Looks for the first of several strings in a stream, and holds back text that may be the start of one.
///
/// The match that is complete first wins; of those complete at the same character, the longest. So the outcome is a
/// property of the text, not of how it was cut into pieces.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    held: String,
    stopped: bool,
}

/// What came of a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Text that is certain to come before any stop string.
    pub text: String,
    /// Whether a stop string is complete. Nothing follows then.
    pub stopped: bool,
}

/// One string with its Knuth-Morris-Pratt automaton.
#[derive(Clone, Debug)]
struct Stop {
    bytes: Vec<u8>,
    /// For each prefix length, the length of its longest proper border.
    borders: Vec<usize>,
    /// Bytes of the string that the text seen so far ends with.
    matched: usize,
}

impl StopMatcher {
    /// # Errors
    /// [`Error::Request`] for an empty string: it would match everywhere.
    pub fn new(stops: &[String]) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::request("stop", "strings that are not empty", "an empty one"));
        }
        Ok(Self { stops: stops.iter().map(|s| Stop::new(s)).collect(), held: String::new(), stopped: false })
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Stopped {
        if self.stopped {
            return Stopped { text: String::new(), stopped: true };
        }
        for (i, byte) in text.bytes().enumerate() {
            for stop in &mut self.stops {
                stop.step(byte);
            }
            if let Some(length) = self.stops.iter().filter(|s| s.complete()).map(|s| s.bytes.len()).max() {
                self.stopped = true;
                self.held.push_str(&text[..=i]);
                let mut before = std::mem::take(&mut self.held);
                before.truncate(before.len() - length);
                return Stopped { text: before, stopped: true };
            }
        }
        self.held.push_str(text);
        let keep = self.stops.iter().map(|s| s.matched).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        Stopped { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    /// The text that was held back, once it is certain that nothing follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

impl Stop {
    fn new(string: &str) -> Self {
        let bytes = string.as_bytes().to_vec();
        let mut borders = vec![0; bytes.len() + 1];
        let mut border = 0;
        for end in 1..bytes.len() {
            while border > 0 && bytes[border] != bytes[end] {
                border = borders[border];
            }
            border += usize::from(bytes[border] == bytes[end]);
            borders[end + 1] = border;
        }
        Self { bytes, borders, matched: 0 }
    }

    fn step(&mut self, byte: u8) {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.borders[self.matched];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
    }

    fn complete(&self) -> bool {
        self.matched == self.bytes.len()
    }
}
