//! Device incidents: hangs, failures, restarts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::watchdog::SlowStep;

/// A device that hangs or fails. Each is a line for people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Incident {
    /// A step takes far longer than it should; reported while it does.
    SlowStep(SlowStep),
    /// The device failed and was set up again (the simulator or the CPU, for example after a panic). After a kernel fault a
    /// GPU cannot be: see [`Down`](Self::Down).
    Restarted { device: String, reason: String, after: Duration },
    /// The device failed and could not be set up again. The next step retries, except after a kernel fault on a GPU, which
    /// breaks the process's CUDA context for good: then `error` asks to restart the process, this incident is reported once,
    /// and every request fails with the same error.
    Down { device: String, reason: String, error: String },
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SlowStep(step) => step.fmt(f),
            Self::Restarted { device, reason, after } => {
                write!(f, "{device} was set up anew in {:.2} s after a failure: {reason}", after.as_secs_f64())
            }
            Self::Down { device, reason, error } => {
                write!(f, "{device} could not be set up anew ({error}) after a failure: {reason}")
            }
        }
    }
}

/// Callback for incidents.
pub type OnIncident = Arc<dyn Fn(Incident) + Send + Sync>;
