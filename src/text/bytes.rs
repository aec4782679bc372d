//! The bytes that tokens stand for, and the UTF-8 characters that they make up.

/// A run of bytes, once no later byte can change what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Whole characters.
    Text(String),
    /// Bytes that are part of no character: a stray byte, or the start of a character that does not go on. `earlier` of
    /// them were there before the stream began (see [`Utf8::begin`]).
    Invalid { bytes: usize, earlier: usize },
}

/// Assembles characters from bytes that arrive in pieces. It holds back at most the start of one character: three bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Utf8 {
    held: Vec<u8>,
    /// Bytes of `held` that were there before the stream began.
    earlier: usize,
}

impl Utf8 {
    /// Takes further bytes and returns what is certain now.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Run> {
        self.held.extend_from_slice(bytes);
        let mut runs = Vec::new();
        let bytes = std::mem::take(&mut self.held);
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            if !chunk.valid().is_empty() {
                runs.push(Run::Text(chunk.valid().to_owned()));
                self.earlier = 0;
            }
            let invalid = chunk.invalid();
            let may_go_on = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if may_go_on && chunks.peek().is_none() {
                self.held = invalid.to_vec();
            } else if !invalid.is_empty() {
                runs.push(Run::Invalid { bytes: invalid.len(), earlier: std::mem::take(&mut self.earlier) });
            }
        }
        runs
    }

    /// Returns what was held back, now that the character does not go on.
    pub fn finish(&mut self) -> Option<Run> {
        let bytes = std::mem::take(&mut self.held).len();
        let earlier = std::mem::take(&mut self.earlier);
        (bytes > 0).then_some(Run::Invalid { bytes, earlier })
    }

    /// Marks all bytes so far as the text before the stream. A character that they begin is still completed.
    pub fn begin(&mut self) {
        self.earlier = self.held.len();
    }
}

/// The byte that a token such as `<0x41>` stands for, by the rule of the decoder `ByteFallback`.
pub(super) fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 2)
}

/// The token that stands for a byte.
pub(super) fn fallback_token(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// The bytes that a token of a byte-level vocabulary stands for: those of its characters in GPT-2's alphabet, or its
/// own where it is not written in it (an added token).
pub(super) fn byte_level_bytes(token: &str) -> Vec<u8> {
    token.chars().map(byte_level_byte).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's alphabet of bytes: the printable ones of Latin-1 stand for themselves, the others are shifted, in order, to
/// U+0100 and up.
fn byte_level_byte(c: char) -> Option<u8> {
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
