//! Edits the logits of one step on the host: classifier-free guidance and callers' logits processors.

use std::collections::HashMap;

use crate::engine::scheduler::{SequenceId, View};
use crate::error::{Error, Result};
use crate::ops::Sampled;

use super::{LogitsContext, Rules};

/// The rows of one step that are changed on the host.
#[derive(Default)]
pub struct Editor<'a> {
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
        for processor in &rules.processors {
            let context = LogitsContext { tokens: view.tokens, prompt_len: view.prompt_len };
            processor.apply(context, logits)?;
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
pub struct Edited(HashMap<usize, Result<Vec<f32>>>);

impl Edited {
    /// What was chosen at a row, with the log-probability that the model itself gives it; or why its request ends.
    pub fn verdict(&mut self, row: usize, sampled: &mut Sampled) -> Result<()> {
        let Some(edited) = self.0.remove(&row) else { return Ok(()) };
        let own = edited?;
        sampled.logprob = own[sampled.token as usize] - log_sum_exp(&own);
        Ok(())
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let total = log_sum_exp(logits);
    logits.iter().map(|logit| logit - total).collect()
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    most + sum.ln() as f32
}
