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
    /// Log-probabilities after negative prompts, by the sequence that they guide.
    negatives: HashMap<SequenceId, Vec<f32>>,
    /// See [`Edited`].
    edited: HashMap<usize, Result<Vec<f32>>>,
}

#[derive(Clone, Copy)]
enum Edit<'a> {
    /// The row of a negative prompt: it is stored for this sequence.
    NegativePrompt(SequenceId),
    Own {
        id: SequenceId,
        rules: &'a Rules,
        view: View<'a>,
    },
}

impl<'a> Editor<'a> {
    /// Adds the row of a negative prompt. It must come before the row of the sequence that it guides.
    pub fn negative(&mut self, row: usize, of: SequenceId) {
        self.rows.push(row);
        self.edits.push(Edit::NegativePrompt(of));
    }

    /// Adds a sequence's row, if its rules change logits.
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

    /// Edits a row of logits. After an error the row stays as it was, so that the step can go on for the other rows.
    pub fn edit(&mut self, row: usize, logits: &mut [f32]) {
        let Some(edit) = self.rows.binary_search(&row).ok().map(|at| self.edits[at]) else { return };
        match edit {
            Edit::NegativePrompt(of) => {
                self.negatives.insert(of, log_softmax(logits));
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
            let negative = self.negatives.get(&id).ok_or_else(missing)?;
            let own = log_softmax(logits);
            for ((logit, own), negative) in logits.iter_mut().zip(own).zip(negative) {
                *logit = negative + scale * (own - negative);
            }
        }
        for processor in &rules.processors {
            let context = LogitsContext { tokens: view.tokens, prompt_len: view.prompt_len };
            processor.apply(context, logits)?;
        }
        Ok(())
    }

    /// Results of the edits.
    pub fn edited(self) -> Edited {
        Edited(self.edited)
    }
}

/// For each edited row, the model's own logits or the error that ends its request.
#[derive(Default)]
pub struct Edited(HashMap<usize, Result<Vec<f32>>>);

impl Edited {
    /// The token that was chosen for a row. For an edited row, its log-probability is that of the model's own logits.
    ///
    /// # Errors
    /// The row could not be edited, or no token could be chosen: its request ends.
    pub fn result(&mut self, row: usize, chosen: Result<Sampled>) -> Result<Sampled> {
        let Some(edited) = self.0.remove(&row) else { return chosen };
        let (own, chosen) = (edited?, chosen?);
        Ok(Sampled { logprob: own[chosen.token as usize] - log_sum_exp(&own), ..chosen })
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
