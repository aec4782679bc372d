//! What each token of a vocabulary is by itself: bytes of the text, or a special token.

use super::stream::{byte_of_token, token_bytes};
use super::tokenizer::{Pieces, Tokenizer};
use crate::error::Result;

/// What a token adds to a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Perhaps part of a character; none for an id that the tokenizer does not have.
    Bytes(Vec<u8>),
    /// The name of a special token, which leaves no text.
    Special(String),
}

impl Tokenizer {
    /// Every token, in the order of the ids.
    pub(super) fn read_vocabulary(&self) -> Result<Vec<Piece>> {
        let joins = Joins::new(self)?;
        let piece = |id| {
            let Some(token) = self.id_to_token(id) else { return Ok(Piece::Bytes(Vec::new())) };
            if self.is_special(&token) {
                return Ok(Piece::Special(token));
            }
            Ok(Piece::Bytes(match self.pieces() {
                Pieces::Bytes => token_bytes(&token),
                Pieces::TextOrByte => match byte_of_token(&token) {
                    Some(byte) => vec![byte],
                    None => joins.text(self, id)?,
                },
                Pieces::Text => joins.text(self, id)?,
            }))
        };
        (0..self.ids_end()).map(piece).collect()
    }
}

/// What a token says after another one: some decoders put spaces between tokens, or drop the first.
struct Joins {
    anchor: Vec<u32>,
    before: String,
}

impl Joins {
    fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let anchor: Vec<u32> = tokenizer.encode("a", false)?.into_iter().take(1).collect();
        let before = tokenizer.decode_known(&anchor, false)?;
        Ok(Self { anchor, before })
    }

    fn text(&self, tokenizer: &Tokenizer, id: u32) -> Result<Vec<u8>> {
        let both: Vec<u32> = self.anchor.iter().copied().chain([id]).collect();
        let after = tokenizer.decode_known(&both, false)?;
        Ok(after.strip_prefix(&self.before).unwrap_or_default().as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Tokens by themselves, one after another, are the text that they are together, but for a space in front that some
    /// decoders drop.
    #[test]
    fn tokens_add_up_to_the_text() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers");
        let mut kinds = Vec::new();
        for file in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let tokenizer = Tokenizer::from_bytes(&file, &fs::read(&file).unwrap()).unwrap();
            kinds.push(tokenizer.pieces());
            let vocabulary = tokenizer.vocabulary().unwrap();
            for text in ["a b", "{\"key\": [1, 2.5e-3]}", "Grüße, 世界! 🦀", "def f(x):\n    return x\n"] {
                let ids = tokenizer.encode(text, false).unwrap();
                let mut bytes = Vec::new();
                for &id in &ids {
                    match &vocabulary[id as usize] {
                        Piece::Bytes(piece) => bytes.extend_from_slice(piece),
                        Piece::Special(name) => assert!(tokenizer.is_special(name)),
                    }
                }
                let joined = String::from_utf8(bytes).unwrap();
                let expected = tokenizer.decode(&ids, true).unwrap();
                assert_eq!(joined.trim_start(), expected.trim_start(), "{}", file.display());
            }
        }
        assert!(kinds.contains(&Pieces::Bytes) && kinds.contains(&Pieces::TextOrByte), "{kinds:?}");
    }
}
