//! `tokenizer.json`: text to token ids and back.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokenizers::{Decoder as _, DecoderWrapper};

use super::one_line;
use super::parts::{ByteRuns, Part};
use crate::error::{Error, Result};

/// The tokenizer of a checkpoint. Clones share one vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    file: PathBuf,
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    vocabulary: OnceLock<Vec<Piece>>,
}

/// What a token adds to a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Perhaps part of a character; none for an id that the tokenizer does not have.
    Bytes(Vec<u8>),
    /// The name of a special token, which leaves no text.
    Special(String),
}

/// What one token is to its decoder; decides how a stream may cut the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pieces {
    /// Every token is a run of bytes, written in the alphabet of GPT-2; the text is their concatenation.
    Bytes,
    /// Tokens are text, or bytes: `<0x41>`.
    TextOrByte,
    /// Tokens are text.
    Text,
}

impl Pieces {
    fn of(decoder: Option<&DecoderWrapper>) -> Self {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Self::Bytes,
            Some(DecoderWrapper::ByteFallback(_)) => Self::TextOrByte,
            Some(DecoderWrapper::Sequence(sequence)) => match sequence.get_decoders() {
                [only] => Self::of(Some(only)),
                several if several.iter().any(|d| Self::of(Some(d)) == Self::TextOrByte) => Self::TextOrByte,
                _ => Self::Text,
            },
            _ => Self::Text,
        }
    }
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`. Its truncation and padding are left out: a prompt is never cut or
    /// filled up in silence.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming `file` where the bytes do not describe a tokenizer.
    pub fn from_bytes(file: &Path, bytes: &[u8]) -> Result<Self> {
        Self::with_tokens(file, bytes, |_| Ok(()))
    }

    /// As [`from_bytes`](Self::from_bytes), where `add` adds tokens that the definition does not have.
    pub(super) fn with_tokens(
        file: &Path,
        bytes: &[u8],
        add: impl FnOnce(&mut tokenizers::Tokenizer) -> Result<()>,
    ) -> Result<Self> {
        let bad =
            |e: &dyn std::fmt::Display| Error::checkpoint(file, "tokenizer", "a tokenizer definition", one_line(e));
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| bad(&e))?;
        inner.with_padding(None).with_truncation(None).map_err(|e| bad(&e))?;
        add(&mut inner)?;
        let pieces = Pieces::of(inner.get_decoder());
        Ok(Self { shared: Arc::new(Shared { file: file.to_owned(), inner, pieces, vocabulary: OnceLock::new() }) })
    }

    /// Token ids of `text`. With `add_special`, those that the tokenizer puts around a whole text (a begin-of-text
    /// token, say) are added. Special tokens spelled out in `text` become their ids either way.
    ///
    /// # Errors
    /// The text holds something that the tokenizer has no token for.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.shared.inner.encode_fast(text, add_special).map_err(|e| {
            Error::request("text", format!("text that {} can encode", self.shared.file.display()), one_line(e))
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD. With `skip_special`, special tokens leave no text.
    ///
    /// # Errors
    /// [`Error::Request`] for an id that the tokenizer does not have.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut runs = ByteRuns::default();
        let mut parts = Vec::with_capacity(ids.len());
        for &id in ids {
            let unknown = || Error::request("token_ids", format!("ids of a vocabulary of {}", self.vocab_size()), id);
            let token = self.id_to_token(id).ok_or_else(unknown)?;
            match self.pieces() {
                _ if skip_special && self.is_special(&token) => {}
                Pieces::TextOrByte => parts.extend(runs.push(token)),
                Pieces::Bytes | Pieces::Text => parts.push(Part::Token(token)),
            }
        }
        parts.extend(runs.finish());
        self.decode_parts(&parts)
    }

    /// Number of tokens, added ones included. A model's embedding table may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.shared.inner.get_vocab_size(true)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.shared.inner.token_to_id(token)
    }

    /// A token as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.shared.inner.id_to_token(id)
    }

    /// The vocabulary as `read` gives it, which is asked once.
    pub(super) fn vocabulary_or(&self, read: impl FnOnce() -> Result<Vec<Piece>>) -> Result<&[Piece]> {
        if let Some(vocabulary) = self.shared.vocabulary.get() {
            return Ok(vocabulary);
        }
        let read = read()?;
        Ok(self.shared.vocabulary.get_or_init(|| read))
    }

    /// One above the largest id.
    pub(super) fn ids_end(&self) -> u32 {
        self.shared.inner.get_vocab(true).into_values().max().map_or(0, |id| id.saturating_add(1))
    }

    pub(super) fn pieces(&self) -> Pieces {
        self.shared.pieces
    }

    pub(super) fn is_special(&self, token: &str) -> bool {
        self.shared.inner.get_added_vocabulary().is_special_token(token)
    }

    /// The name of a special token; `None` for other tokens, and ids that the tokenizer does not have.
    pub fn special_token(&self, id: u32) -> Option<String> {
        self.id_to_token(id).filter(|token| self.is_special(token))
    }

    /// Whether `text` has the name of a special token in it.
    pub fn spells_special(&self, text: &str) -> bool {
        let added = self.shared.inner.get_added_vocabulary().get_vocab();
        added.keys().any(|token| self.is_special(token) && text.contains(token.as_str()))
    }

    /// What the decoder makes of parts that follow one another.
    pub(super) fn decode_parts<'a>(&self, parts: impl IntoIterator<Item = &'a Part>) -> Result<String> {
        let tokens: Vec<String> = parts.into_iter().flat_map(Part::decoder_tokens).collect();
        match self.shared.inner.get_decoder() {
            Some(decoder) => decoder.decode(tokens),
            None => Ok(tokens.join(" ")),
        }
        .map_err(|e| Error::request("token_ids", "ids that decode to text", one_line(e)))
    }

    /// A token that a text may begin with: what comes after it is not the beginning of the text.
    ///
    /// # Errors
    /// The tokenizer has no token for the letter a.
    pub(super) fn some_word(&self) -> Result<Option<String>> {
        Ok(self.encode("a", false)?.first().and_then(|id| self.id_to_token(*id)))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("file", &self.shared.file).field("vocab_size", &self.vocab_size()).finish()
    }
}
