//! Incremental decoding: the text of a sequence that arrives token by token.
//!
//! What a token adds to the text depends on its neighbours: a character may be spread over several tokens, and some
//! decoders drop a space at the very start. A stream gives out text only once no later token can change it, and looks
//! back over a bounded number of tokens, so that the work per token does not grow with the sequence.

use super::bytes::{Run, Utf8, byte_level_bytes};
use super::parts::{ByteRuns, Part};
use super::tokenizer::{Pieces, Tokenizer};
use crate::error::Result;

/// How many tokens are held back while their text ends in U+FFFD, in hope of the rest of a character. No encoding needs
/// more than four tokens for a character; the slack covers tokens without text.
const PATIENCE: usize = 16;

/// How many of a prompt's last tokens are read to find out how its text goes on. More than [`PATIENCE`].
const CONTEXT: usize = 20;

/// Decodes one sequence incrementally. The pieces that [`push`](Self::push) and [`finish`](Self::finish) return add up
/// to what [`Tokenizer::decode`] gives for the whole; after [`continuing`](Self::continuing), to what the sequence adds
/// to the text of the prompt.
///
/// Ids that the tokenizer does not have leave no text: a model's output may be padded beyond its vocabulary.
#[derive(Clone, Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    state: State,
}

/// What is held back, by what tokens are to the decoder.
#[derive(Clone, Debug)]
enum State {
    Bytes(Utf8),
    TextOrByte(ByteRuns, Window),
    Text(Window),
}

/// The tokens that the next piece of text depends on.
#[derive(Clone, Debug, Default)]
struct Window {
    /// The last part whose text was given out: it decides how the next one joins.
    anchor: Option<Part>,
    /// Parts since, whose text is held back.
    pending: Vec<Part>,
}

impl Tokenizer {
    /// Text of a sequence that arrives token by token.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        let state = match self.pieces() {
            Pieces::Bytes => State::Bytes(Utf8::default()),
            Pieces::TextOrByte => State::TextOrByte(ByteRuns::default(), Window::default()),
            Pieces::Text => State::Text(Window::default()),
        };
        DecodeStream { tokenizer: self.clone(), skip_special, state }
    }
}

impl DecodeStream {
    /// Continues the text of `prompt`: only a text that begins with this sequence loses a leading space, and a character
    /// that the prompt begins is completed.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the tokens.
    pub fn continuing(mut self, prompt: &[u32]) -> Result<Self> {
        let is_shown = |id: &&u32| self.token(**id).is_some();
        let last: Vec<u32> = prompt.iter().rev().filter(is_shown).take(CONTEXT).copied().collect();
        for &id in last.iter().rev() {
            self.push(id)?;
        }
        match &mut self.state {
            State::Bytes(utf8) => utf8.begin(),
            State::TextOrByte(runs, _) => runs.begin(),
            State::Text(window) => drop(window.settle(&self.tokenizer, false)?),
        }
        Ok(self)
    }

    /// Decodes as within a text, even where nothing came before: no leading space is dropped. A constraint sees tokens
    /// that way.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the tokens.
    pub fn within_text(mut self) -> Result<Self> {
        if let State::TextOrByte(_, window) | State::Text(window) = &mut self.state
            && window.anchor.is_none()
        {
            window.anchor = self.tokenizer.some_word()?.map(Part::Token);
        }
        Ok(self)
    }

    /// The token as the vocabulary spells it, unless it leaves no text.
    fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id).filter(|token| !self.skip_special || !self.tokenizer.is_special(token))
    }

    /// Takes the next token and returns the text that became certain, possibly none.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the tokens.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let Some(token) = self.token(id) else { return Ok(String::new()) };
        match &mut self.state {
            State::Bytes(utf8) => Ok(text_of(utf8.push(&byte_level_bytes(&token)))),
            State::TextOrByte(runs, window) => {
                window.pending.extend(runs.push(token));
                window.settle(&self.tokenizer, false)
            }
            State::Text(window) => {
                window.pending.push(Part::Token(token));
                window.settle(&self.tokenizer, true)
            }
        }
    }

    /// Returns what was held back; a character that never became complete shows as U+FFFD. The stream is empty then
    /// and may take another sequence.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the tokens.
    pub fn finish(&mut self) -> Result<String> {
        match &mut self.state {
            State::Bytes(utf8) => Ok(text_of(utf8.finish())),
            State::TextOrByte(runs, window) => {
                window.pending.extend(runs.finish());
                std::mem::take(window).settle(&self.tokenizer, false)
            }
            State::Text(window) => std::mem::take(window).settle(&self.tokenizer, false),
        }
    }
}

/// The text of runs of bytes in a byte-level vocabulary: U+FFFD for each sequence that is part of no character, as in
/// `String::from_utf8_lossy`. One that the prompt began was shown with it.
fn text_of(runs: impl IntoIterator<Item = Run>) -> String {
    let mut out = String::new();
    for run in runs {
        match run {
            Run::Text(text) => out.push_str(&text),
            Run::Invalid { earlier: 0, .. } => out.push(char::REPLACEMENT_CHARACTER),
            Run::Invalid { .. } => {}
        }
    }
    out
}

impl Window {
    /// The text that the pending parts add after the anchor. With `patient`, it is held back while it may be part of a
    /// character.
    fn settle(&mut self, tokenizer: &Tokenizer, patient: bool) -> Result<String> {
        let Some(last) = self.pending.last().cloned() else { return Ok(String::new()) };
        let before = tokenizer.decode_parts(&self.anchor)?;
        let after = tokenizer.decode_parts(self.anchor.iter().chain(&self.pending))?;
        let patient = patient && self.pending.len() < PATIENCE;
        let new = match after.strip_prefix(&before) {
            Some(new) => new,
            // A decoder that rewrites text across tokens; give out what differs once waiting has not helped.
            None if patient => return Ok(String::new()),
            None => &after[common_prefix(&before, &after)..],
        };
        if patient && new.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.anchor = Some(last);
        self.pending.clear();
        Ok(new.to_owned())
    }
}

/// Length in bytes of the longest common prefix of whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}
