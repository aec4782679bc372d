//! Text of a sequence that arrives token by token.
//!
//! What a token adds to the text depends on its neighbours: a character may be spread over several tokens, and some
//! tokenizers drop a space at the very start. A stream therefore gives out text only once no later token can change
//! it, and looks back over a bounded number of tokens: the work per token does not grow with the sequence.

use super::tokenizer::{Pieces, Tokenizer};
use crate::error::Result;

/// How many tokens of text that ends in U+FFFD are held back in hope of the rest of a character. No encoding needs
/// more than four tokens for a character; the slack covers tokens without text.
const PATIENCE: usize = 16;

/// Decodes one sequence incrementally. The pieces that [`push`](Self::push) and [`finish`](Self::finish) return add up
/// to what [`Tokenizer::decode`] says of the whole.
///
/// Ids that the tokenizer does not have leave no text: a model's output may be padded beyond its vocabulary.
#[derive(Clone, Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// Bytes of a character that is not complete.
    Bytes(Vec<u8>),
    Window(Window),
}

#[derive(Clone, Debug, Default)]
struct Window {
    /// The last token whose text was given out: it says how the next one joins.
    anchor: Option<u32>,
    /// Tokens since, whose text is held back.
    pending: Vec<u32>,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        let state = match tokenizer.pieces() {
            Pieces::Bytes => State::Bytes(Vec::new()),
            Pieces::Text | Pieces::TextOrByte => State::Window(Window::default()),
        };
        Self { tokenizer, skip_special, state }
    }

    /// Takes the next token and returns the text that became certain, possibly none.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the tokens.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let Some(token) = self.tokenizer.id_to_token(id) else { return Ok(String::new()) };
        if self.skip_special && self.tokenizer.is_special(&token) {
            return Ok(String::new());
        }
        match &mut self.state {
            State::Bytes(held) => {
                held.extend(token_bytes(&token));
                Ok(take_complete(held))
            }
            State::Window(window) => {
                window.pending.push(id);
                if self.tokenizer.pieces() == Pieces::TextOrByte && byte_of_token(&token).is_some() {
                    return Ok(String::new());
                }
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
            State::Bytes(held) => Ok(String::from_utf8_lossy(&std::mem::take(held)).into_owned()),
            State::Window(window) => {
                let text = window.settle(&self.tokenizer, false);
                *window = Window::default();
                text
            }
        }
    }
}

impl Window {
    /// The text that the pending tokens add after the anchor. With `patient`, it is held back while it may be part of
    /// a character.
    fn settle(&mut self, tokenizer: &Tokenizer, patient: bool) -> Result<String> {
        let Some(&last) = self.pending.last() else { return Ok(String::new()) };
        // Special tokens that are to be skipped never get here.
        let before = tokenizer.decode_known(self.anchor.as_slice(), false)?;
        let joined: Vec<u32> = self.anchor.iter().chain(&self.pending).copied().collect();
        let after = tokenizer.decode_known(&joined, false)?;
        let new = match after.strip_prefix(&before) {
            Some(new) => new,
            // A decoder that rewrites text across tokens; give out what differs once waiting has not helped.
            None if patient && self.pending.len() < PATIENCE => return Ok(String::new()),
            None => &after[common_prefix(&before, &after)..],
        };
        if patient && new.ends_with(char::REPLACEMENT_CHARACTER) && self.pending.len() < PATIENCE {
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

/// The byte that a token such as `<0x41>` stands for.
pub(super) fn byte_of_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 2)
}

/// Takes the complete characters from the front of `held`, and leaves at most the start of one.
fn take_complete(held: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = held.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                held.clear();
                return text;
            }
            Err(error) => {
                let (valid, bad) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(skip) = error.error_len() else {
                    *held = bad.to_vec();
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &bad[skip..];
            }
        }
    }
}

/// The bytes that a token of a byte-level vocabulary stands for: those of its characters in GPT-2's alphabet, or its
/// own where it is not written in it (an added token).
pub(super) fn token_bytes(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's alphabet of bytes: the printable ones of Latin-1 stand for themselves, the others are shifted, in order, to
/// U+0100 and up.
fn byte_of(c: char) -> Option<u8> {
    const ALPHABET: [Option<u8>; 324] = {
        let mut table = [None; 324];
        let (mut byte, mut shifted) = (0, 256);
        while byte < 256 {
            let at = match byte {
                0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte,
                _ => {
                    shifted += 1;
                    shifted - 1
                }
            };
            table[at] = Some(byte as u8);
            byte += 1;
        }
        table
    };
    ALPHABET.get(c as usize).copied().flatten()
}
