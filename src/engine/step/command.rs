//! Messages between requests and the step loop.

use std::sync::mpsc;
use std::time::Instant;

use crate::device::Counters;
use crate::engine::sampling::{FinishReason, Rules};
use crate::engine::scheduler::{Receipt, Stats, Submission};
use crate::error::{Error, Result};
use crate::kv::Counts;
use crate::model::Checkpoint;
use crate::ops::{Rates, Sampled};

use super::channel::Sender;
use super::watchdog::SlowStep;

/// A message to the step loop.
pub enum Command {
    /// `deadline` replaces that of the submission, which is on the scheduler's clock.
    Submit {
        at: Instant,
        deadline: Option<Instant>,
        submission: Submission,
        jobs: Vec<Job>,
    },
    Cancel(u64),
    Status(mpsc::Sender<Status>),
    Rates(mpsc::Sender<Result<Rates>>),
    /// Loads other weights.
    Update(Box<Checkpoint>, mpsc::Sender<Result<()>>),
    /// The engine was dropped.
    Stop,
}

/// A message to a request's consumer.
pub enum Event {
    Token {
        sampled: Sampled,
        finish: Option<FinishReason>,
        /// Whether it is an end token, which is not part of the text.
        hidden: bool,
        receipt: Receipt,
    },
    /// It ended without a further token.
    End {
        finish: FinishReason,
        receipt: Receipt,
    },
    Failed(Error),
}

/// One sequence and the consumer of its results.
pub struct Job {
    /// Identifies it in [`Command::Cancel`].
    pub key: u64,
    pub kind: Kind,
}

pub enum Kind {
    Generate { rules: Box<Rules>, consumer: Sender<Event> },
    Score { logprobs: Vec<f32>, reply: mpsc::Sender<Result<Vec<f32>>> },
}

/// The state of an engine.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Status {
    /// Launches, replays and copies since the device was last set up; zeros on the CPU.
    pub counters: Counters,
    pub stats: Stats,
    /// Running sequences.
    pub running: usize,
    pub waiting: usize,
    pub blocks: Counts,
    /// Steps that took far longer than they should.
    pub slow_steps: u64,
    /// The last of them.
    pub slow_step: Option<SlowStep>,
    /// How often the model was loaded again: after device failures and for other weights.
    pub restarts: u64,
}

impl Kind {
    pub(super) fn fail(self, error: Error) {
        match self {
            Self::Generate { consumer, .. } => consumer.send(Event::Failed(error)),
            Self::Score { reply, .. } => {
                // The caller may be gone.
                let _ = reply.send(Err(error));
            }
        }
    }
}
