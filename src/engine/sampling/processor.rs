//! Callers' own functions that change logits.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};

use super::guarded::guarded;

const FIELD: &str = "logits_processor";

/// What a [`LogitsProcessor`] may go by.
#[derive(Clone, Copy, Debug)]
pub struct LogitsContext<'a> {
    /// Prompt and generated tokens.
    pub tokens: &'a [u32],
    pub prompt_len: usize,
}

/// A function of the caller's own that changes the logits of the next token, f32 of the vocabulary's size: after
/// guidance, and before penalties, biases, masks and filters. −∞ bans a token. It is a function of the context alone:
/// engines may call it from any thread, and again for the same token.
///
/// It runs on the step loop's thread, and all requests of a step wait for it. On a GPU the logits come to the host and go
/// back.
///
/// ```
/// # #[cfg(feature = "builtin-model")]
/// # fn main() -> burrstone::Result<()> {
/// use burrstone::{Engine, Request};
///
/// let engine = Engine::builtin().build()?;
/// // No token twice in a row.
/// let request = Request::text("In the beginning").max_tokens(16).logits_processor(|context, logits| {
///     if let Some(&last) = context.tokens.last() {
///         logits[last as usize] = f32::NEG_INFINITY;
///     }
///     Ok(())
/// });
/// let tokens: Vec<u32> = engine.generate(request)?.map(|token| Ok(token?.id)).collect::<burrstone::Result<_>>()?;
/// assert!(tokens.windows(2).all(|pair| pair[0] != pair[1]));
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "builtin-model"))]
/// # fn main() {}
/// ```
#[derive(Clone)]
pub struct LogitsProcessor(Arc<Process>);

type Process = dyn Fn(LogitsContext<'_>, &mut [f32]) -> Result<()> + Send + Sync;

impl LogitsProcessor {
    /// An error that `process` returns, and a panic, ends the request.
    pub fn new(process: impl Fn(LogitsContext<'_>, &mut [f32]) -> Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(process))
    }

    /// # Errors
    /// The function's own error; it panicked; it left NaN, +∞ or no token.
    pub(super) fn apply(&self, context: LogitsContext<'_>, logits: &mut [f32]) -> Result<()> {
        guarded(FIELD, || (self.0)(context, logits))?;
        if let Some(token) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            let found = format!("{} for token {token}", logits[token]);
            return Err(Error::request(FIELD, "finite numbers or -infinity", found));
        }
        if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
            return Err(Error::request(FIELD, "at least one token left", "all tokens banned"));
        }
        Ok(())
    }
}

impl fmt::Debug for LogitsProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogitsProcessor")
    }
}

impl PartialEq for LogitsProcessor {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
