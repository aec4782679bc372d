//! What changes logits before a token is chosen: a prompt to keep away from, and callers' own functions.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ops::Sampled;

use super::guarded::guarded;
use super::request::Prompt;
use super::rules::Rules;
use super::scheduler::{SequenceId, View};

/// Classifier-free guidance: away from what another prompt would be continued with. With `p` the model's
/// log-probabilities after the prompt, and `q` those after the negative prompt and the same generated tokens, tokens are
/// chosen by `q + scale · (p - q)`. (Sanchez, Fan, Spangher, Levi, Ammanamanchi and Biderman: Stay on topic with
/// Classifier-Free Guidance, 2023.)
///
/// Such a request computes both, and counts as two where sequences are counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    /// From 0 up; 1 changes nothing, more keeps away from the negative prompt.
    pub scale: f32,
    /// `None` for the prompt's last token alone.
    pub negative_prompt: Option<Prompt>,
}

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

/// The rows of one step that are changed on the host.
#[derive(Default)]
pub(super) struct Editor<'a> {
    rows: Vec<usize>,
    edits: Vec<Edit<'a>>,
    /// Log-probabilities after negative prompts, by whom they guide.
    contrasts: HashMap<SequenceId, Vec<f32>>,
    /// See [`Edited`].
    edited: HashMap<usize, Result<Vec<f32>>>,
}

#[derive(Clone, Copy)]
enum Edit<'a> {
    /// Is left as it is, and kept for this sequence.
    Contrast(SequenceId),
    Own {
        id: SequenceId,
        rules: &'a Rules,
        view: View<'a>,
    },
}

impl<'a> Editor<'a> {
    /// The row of a negative prompt, before that of the sequence which it guides.
    pub fn contrast(&mut self, row: usize, of: SequenceId) {
        self.rows.push(row);
        self.edits.push(Edit::Contrast(of));
    }

    /// A sequence's row, which is changed if its rules want that.
    pub fn own(&mut self, row: usize, id: SequenceId, rules: &'a Rules, view: View<'a>) {
        if rules.guidance.is_some() || !rules.processors.is_empty() {
            self.rows.push(row);
            self.edits.push(Edit::Own { id, rules, view });
        }
    }

    /// The rows to be changed, ascending.
    pub fn rows(&self) -> Vec<usize> {
        self.rows.clone()
    }

    /// Changes a row of logits. One that cannot be changed stays as it was: the other rows of the step have done nothing.
    pub fn edit(&mut self, row: usize, logits: &mut [f32]) {
        let Some(edit) = self.rows.binary_search(&row).ok().map(|at| self.edits[at]) else { return };
        match edit {
            Edit::Contrast(of) => {
                self.contrasts.insert(of, log_softmax(logits));
            }
            Edit::Own { id, rules, view } => {
                let own = logits.to_vec();
                let edited = self.apply(id, rules, view, logits).map(|()| own.clone());
                if edited.is_err() {
                    logits.copy_from_slice(&own);
                }
                self.edited.insert(row, edited);
            }
        }
    }

    fn apply(&self, id: SequenceId, rules: &Rules, view: View<'_>, logits: &mut [f32]) -> Result<()> {
        if let Some(scale) = rules.guidance {
            let missing = || Error::request("guidance", "a negative prompt in the same step", "none");
            let contrast = self.contrasts.get(&id).ok_or_else(missing)?;
            let own = log_softmax(logits);
            for ((logit, own), contrast) in logits.iter_mut().zip(own).zip(contrast) {
                *logit = contrast + scale * (own - contrast);
            }
        }
        for LogitsProcessor(process) in &rules.processors {
            let context = LogitsContext { tokens: view.tokens, prompt_len: view.prompt_len };
            guarded(PROCESSOR, || process(context, logits))?;
            if let Some(token) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
                let found = format!("{} for token {token}", logits[token]);
                return Err(Error::request(PROCESSOR, "finite numbers or -infinity", found));
            }
            if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
                return Err(Error::request(PROCESSOR, "a token that is left", "a ban of all"));
            }
        }
        Ok(())
    }

    /// What has become of the rows.
    pub fn edited(self) -> Edited {
        Edited(self.edited)
    }
}

/// By row, the model's own logits; or why the row's request ends.
#[derive(Default)]
pub(super) struct Edited(HashMap<usize, Result<Vec<f32>>>);

impl Edited {
    /// What was chosen at a row, with the log-probability that the model itself gives it; or why its request ends.
    pub fn verdict(&mut self, row: usize, sampled: &mut Sampled) -> Result<()> {
        let Some(edited) = self.0.remove(&row) else { return Ok(()) };
        let own = edited?;
        sampled.logprob = own[sampled.token as usize] - log_sum_exp(&own);
        Ok(())
    }
}

const PROCESSOR: &str = "logits_processor";

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let total = log_sum_exp(logits);
    logits.iter().map(|logit| logit - total).collect()
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    most + sum.ln() as f32
}
