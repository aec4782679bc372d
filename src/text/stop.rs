//! Stop strings, matched in text that arrives in pieces.

use std::collections::VecDeque;

use crate::error::{Error, Result};

/// Looks for the first of several strings in a stream, and holds back text that may be the start of one.
///
/// The match that is complete first wins; of those complete at the same character, the longest. So the outcome is a
/// property of the text, not of how it was cut into pieces.
///
/// Special tokens leave no text. A stop string that spells one is matched against the text with their names in it, all
/// others against the text alone.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    held: String,
    /// For the last bytes of the text with special tokens in it, whether each is text: as many as a stop string needs.
    is_text: VecDeque<bool>,
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
    text: String,
    /// For each prefix length, the length of its longest proper border.
    borders: Vec<usize>,
    /// Bytes of the string that the text seen so far ends with.
    matched: usize,
    /// Whether it spells a special token.
    special: bool,
}

impl StopMatcher {
    /// # Errors
    /// [`Error::Request`] for an empty string: it would match everywhere.
    pub fn new(stops: &[String]) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::request("stop", "strings that are not empty", "an empty one"));
        }
        Ok(Self { stops: stops.iter().map(|s| Stop::new(s)).collect(), ..Self::default() })
    }

    /// Matches the strings for which `spells_special` holds against special tokens too: see
    /// [`push_special`](Self::push_special).
    #[must_use]
    pub fn with_special(mut self, spells_special: impl Fn(&str) -> bool) -> Self {
        for stop in &mut self.stops {
            stop.special = spells_special(&stop.text);
        }
        self
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Stopped {
        self.advance(text, true)
    }

    /// Takes the name of a special token, which is not part of the text.
    pub fn push_special(&mut self, name: &str) -> Stopped {
        self.advance(name, false)
    }

    fn advance(&mut self, piece: &str, is_text: bool) -> Stopped {
        if self.stopped {
            return Stopped { text: String::new(), stopped: true };
        }
        let reach = self.stops.iter().filter(|s| s.special).map(|s| s.text.len()).max().unwrap_or(0);
        for (i, byte) in piece.bytes().enumerate() {
            self.is_text.push_back(is_text);
            while self.is_text.len() > reach {
                self.is_text.pop_front();
            }
            let heard = self.stops.iter_mut().filter(|stop| is_text || stop.special);
            heard.for_each(|stop| stop.step(byte));
            let complete = self.stops.iter().filter(|stop| stop.complete()).max_by_key(|stop| stop.text.len());
            if let Some(length) = complete.map(|stop| self.text_len(stop)) {
                self.stopped = true;
                let mut before = std::mem::take(&mut self.held);
                if is_text {
                    before.push_str(&piece[..=i]);
                }
                before.truncate(before.len() - length);
                return Stopped { text: before, stopped: true };
            }
        }
        if is_text {
            self.held.push_str(piece);
        }
        let keep = self.stops.iter().map(|stop| self.text_len(stop)).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        Stopped { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    /// Bytes of text in what a string has matched.
    fn text_len(&self, stop: &Stop) -> usize {
        match stop.special {
            false => stop.matched,
            true => self.is_text.iter().rev().take(stop.matched).filter(|is_text| **is_text).count(),
        }
    }

    /// The text that was held back, once it is certain that nothing follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

impl Stop {
    fn new(string: &str) -> Self {
        let bytes = string.as_bytes();
        let mut borders = vec![0; bytes.len() + 1];
        let mut border = 0;
        for end in 1..bytes.len() {
            while border > 0 && bytes[border] != bytes[end] {
                border = borders[border];
            }
            border += usize::from(bytes[border] == bytes[end]);
            borders[end + 1] = border;
        }
        Self { text: string.to_owned(), borders, matched: 0, special: false }
    }

    fn step(&mut self, byte: u8) {
        let bytes = self.text.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.borders[self.matched];
        }
        self.matched += usize::from(bytes[self.matched] == byte);
    }

    fn complete(&self) -> bool {
        self.matched == self.text.len()
    }
}
