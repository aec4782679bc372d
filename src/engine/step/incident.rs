//! What befalls an engine, besides its requests.

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
    /// The device failed and was set up anew: the simulator or the CPU, for instance after a panic. A GPU on which a kernel
    /// has faulted cannot be: see [`Down`](Self::Down).
    Restarted { device: String, reason: String, after: Duration },
    /// The device failed and could not be set up anew. The next step tries again, except on a GPU on which a kernel has
    /// faulted: that breaks the process's CUDA context for good. Then `error` asks for a restart of the process, this incident
    /// is reported once, and every request is refused with the same error.
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

/// Who is told of incidents.
pub type OnIncident = Arc<dyn Fn(Incident) + Send + Sync>;
