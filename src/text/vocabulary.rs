//! What each token of a vocabulary is by itself: bytes of the text, or a special token.

use super::bytes::{byte_level_bytes, fallback_byte};
use super::parts::Part;
use super::tokenizer::{Piece, Pieces, Tokenizer};
use crate::error::Result;

impl Tokenizer {
    /// Every token by itself, in the order of the ids: what it adds within a text.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses a token.
    pub(crate) fn vocabulary(&self) -> Result<&[Piece]> {
        self.vocabulary_or(|| {
            let within = Within::new(self)?;
            (0..self.ids_end()).map(|id| self.piece(id, &within)).collect()
        })
    }

    fn piece(&self, id: u32, within: &Within) -> Result<Piece> {
        let Some(token) = self.id_to_token(id) else { return Ok(Piece::Bytes(Vec::new())) };
        if self.is_special(&token) {
            return Ok(Piece::Special(token));
        }
        let byte = match self.pieces() {
            Pieces::Bytes => return Ok(Piece::Bytes(byte_level_bytes(&token))),
            Pieces::TextOrByte => fallback_byte(&token),
            Pieces::Text => None,
        };
        Ok(Piece::Bytes(match byte {
            Some(byte) => vec![byte],
            None => within.text(self, token)?,
        }))
    }
}

/// A token within a text, after another one: some decoders put spaces between tokens, or drop the first.
struct Within {
    first: Option<Part>,
    before: String,
}

impl Within {
    fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let first = tokenizer.some_word()?.map(Part::Token);
        let before = tokenizer.decode_parts(&first)?;
        Ok(Self { first, before })
    }

    fn text(&self, tokenizer: &Tokenizer, token: String) -> Result<Vec<u8>> {
        let after = tokenizer.decode_parts(self.first.iter().chain([&Part::Token(token)]))?;
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
