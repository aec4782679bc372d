//! Why a generation ended.

use std::fmt;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// An end token, a stop text, or a constraint that is fulfilled.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// Its deadline passed.
    Deadline,
    /// It went round in circles, as [`RepetitionDetection`](super::RepetitionDetection) has it.
    Repetition,
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Deadline => "deadline",
            Self::Repetition => "repetition",
        })
    }
}
