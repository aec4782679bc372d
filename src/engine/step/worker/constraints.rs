//! Waits for constraints, which run on threads of their own, but not for long: a slow one holds up its own sequence
//! alone.

use std::time::{Duration, Instant};

use crate::engine::sampling::FinishReason;
use crate::engine::scheduler::SequenceId;
use crate::engine::step::command::{Job, Kind};
use crate::ops::{Mask, Sampled};

use super::{Taken, Worker, outcome};

/// How long a step waits for constraints: for the last step's tokens to be accepted, then for the masks of the next.
/// About what a step takes; grammars are nearly always done by then. A sequence whose constraint takes longer is left
/// out of steps until it is done.
pub(super) const WAIT: Duration = Duration::from_millis(5);

impl Worker {
    /// The mask of a sequence's next token, where it has a constraint.
    fn mask(&self, id: SequenceId) -> Option<&Mask> {
        // The slot of a sequence that has ended may belong to another.
        self.scheduler.view(id)?;
        match &self.live.get(id.slot())?.as_ref()?.kind {
            Kind::Generate { rules, .. } => rules.mask(),
            Kind::Score { .. } => None,
        }
    }

    /// Takes sequences out of the plan whose masks are not ready soon.
    pub(super) fn hold_unready(&mut self) {
        let deadline = Instant::now() + WAIT;
        let sampled = self.scheduler.plan().chunks.iter().filter(|chunk| chunk.sample).map(|chunk| chunk.sequence);
        // Branches start with the first mask, which was computed before the request was submitted.
        let unready = sampled.filter(|&id| self.mask(id).is_some_and(|mask| !mask.wait_until(deadline)));
        for id in unready.collect::<Vec<_>>() {
            self.scheduler.hold(id);
            self.held.push(id);
        }
    }

    /// Resumes held sequences whose constraints are done. Waits for the first one until the deadline.
    pub(super) fn resume_held(&mut self, mut deadline: Instant) {
        for (id, sampled, finish) in std::mem::take(&mut self.unsettled) {
            if self.scheduler.view(id).is_none() {
                // It was cancelled meanwhile, and its slot may belong to another.
                continue;
            }
            match self.settle(id, sampled, finish, deadline) {
                None => self.unsettled.push((id, sampled, finish)),
                Some(taken) => {
                    deadline = Instant::now();
                    self.held.push(id);
                    self.scheduler.complete_late(self.now(), outcome(id, &taken));
                    self.record(vec![(id, taken)]);
                }
            }
        }
        let mut held = std::mem::take(&mut self.held);
        held.retain(|&id| {
            let is_ready = self.mask(id).is_none_or(|mask| mask.wait_until(deadline));
            if is_ready {
                self.scheduler.resume(id);
                deadline = Instant::now();
            }
            !is_ready
        });
        self.held = held;
    }

    /// What the sequence's constraint makes of its last token; `None` where that is not known before the deadline.
    pub(super) fn settle(
        &mut self,
        id: SequenceId,
        sampled: Sampled,
        finish: Option<FinishReason>,
        deadline: Instant,
    ) -> Option<Taken> {
        let advanced = match &mut self.live[id.slot()] {
            Some(Job { kind: Kind::Generate { rules, .. }, .. }) => rules.advanced(deadline)?,
            _ => Ok(false),
        };
        Some(advanced.map(|fulfilled| (sampled, if fulfilled { Some(FinishReason::Stop) } else { finish })))
    }
}
