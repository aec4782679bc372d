//! Grammars by `llguidance`: an Earley parser over a trie of the vocabulary's bytes.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, panic_utils};

use super::ConstraintState;
use crate::error::{Error, Result};
use crate::text::{Piece, Tokenizer};

/// Compiles grammars for one vocabulary.
pub struct Grammars(ParserFactory);

impl Grammars {
    /// For a model with `vocab` tokens, of which `eos` end a text.
    ///
    /// # Errors
    /// The tokenizer refuses a token, or the vocabulary is too large.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, eos: &[u32]) -> Result<Self> {
        let mut words: Vec<Vec<u8>> = tokenizer.vocabulary()?.iter().map(word).collect();
        // A model's table may have more rows than its tokenizer has tokens, or fewer.
        words.resize(vocab, Vec::new());
        let eos: Vec<u32> = eos.iter().copied().filter(|&token| (token as usize) < vocab).collect();
        // A trie that outgrows its fields panics.
        let mut factory = panic_utils::catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, INVALID_TOKEN), &words);
            let trie = if eos.is_empty() { trie } else { trie.with_eos_tokens(&eos) };
            // Approximate: any way to cut a text into tokens will do, not only the tokenizer's own.
            let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new_simple(&environment)
        }))
        .map_err(|cause| Error::request("constraint", "a vocabulary that grammars can be run over", line(cause)))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self(factory))
    }

    /// The start of a grammar that errors call `name`.
    ///
    /// # Errors
    /// It is none, or too large a one.
    pub fn compile(
        &self,
        name: &'static str,
        grammar: TopLevelGrammar,
        expected: &str,
    ) -> Result<Box<dyn ConstraintState>> {
        let parser = self.0.create_parser(grammar).map_err(|cause| Error::request(name, expected, line(cause)))?;
        Ok(Box::new(Grammar { matcher: Matcher::new(Ok(parser)), name }))
    }
}

/// A token as the trie has it.
fn word(piece: &Piece) -> Vec<u8> {
    match piece {
        Piece::Bytes(bytes) => bytes.clone(),
        // No text has this byte: only a grammar that names the token allows it.
        Piece::Special(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
    }
}

/// An error of `llguidance` on one line: its first, and the reason that a regular expression's parser gives last.
fn line(cause: impl ToString) -> String {
    let text = cause.to_string();
    let first = text.lines().next().unwrap_or_default();
    match text.lines().find_map(|line| line.strip_prefix("error: ")) {
        Some(reason) => format!("{first} {reason}"),
        None => first.to_owned(),
    }
}

struct Grammar {
    matcher: Matcher,
    name: &'static str,
}

impl Grammar {
    fn stuck(&self, cause: impl ToString) -> Error {
        Error::request(self.name, "a text that can be completed with this vocabulary", line(cause))
    }
}

impl ConstraintState for Grammar {
    fn allow(&mut self, mask: &mut [u32]) -> Result<()> {
        let allowed = self.matcher.compute_mask().map_err(|cause| self.stuck(cause))?;
        for (word, &allowed) in mask.iter_mut().zip(allowed.as_slice()) {
            *word = allowed;
        }
        Ok(())
    }

    fn advance(&mut self, token: u32) -> Result<bool> {
        self.matcher.consume_token(token).map_err(|cause| self.stuck(cause))?;
        Ok(self.matcher.is_stopped())
    }

    fn fork(&self) -> Box<dyn ConstraintState> {
        // With caches of its own: how a sequence goes on does not depend on another.
        Box::new(Self { matcher: self.matcher.deep_clone(), name: self.name })
    }
}
