//! Recovery from failed steps: retries sequences, restarts the device.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::engine::scheduler::End;
use crate::engine::step::incident::Incident;
use crate::engine::step::runner::Runner;
use crate::error::{Error, Result};

use super::Worker;

/// Why a step failed.
pub(super) enum Failure {
    Error(Error),
    /// A defect in a kernel or in the runner: the state of the device is unknown.
    Panic(Error),
}

impl Worker {
    /// Handles a failed step. After a device error its sequences end. After any other, which one of its sequences may
    /// have caused, each is retried alone. A device that is unusable is restarted, and the other sequences are computed
    /// again.
    pub(super) fn recover(&mut self, failure: Failure) {
        // Events of the step before come first.
        self.deliver();
        let (error, is_panic) = match failure {
            Failure::Error(error) => (error, false),
            Failure::Panic(error) => (error, true),
        };
        let again = is_panic || !matches!(error, Error::Device { .. });
        let (reason, begun) = (error.to_string(), Instant::now());
        self.fail(error, again);
        if !is_panic && !self.runner.is_lost() {
            return;
        }
        let restarted = self.runner.restart();
        self.scheduler.forget();
        let (device, after) = (self.runner.device().to_owned(), begun.elapsed());
        (self.incident)(match restarted {
            Ok(()) => Incident::Restarted { device, reason, after },
            Err(error) => Incident::Down { device, reason, error: error.to_string() },
        });
    }

    /// Ends the step's sequences with this error, or retries them.
    fn fail(&mut self, error: Error, again: bool) {
        self.scheduler.fail(self.now(), again);
        let ended = self.scheduler.take_ended();
        let reason = format!("a step that this request shared with others failed: {error}");
        let device = self.runner.device().to_owned();
        let mut first = Some(error);
        for ended in ended {
            let shared = || Error::Device { device: device.clone(), reason: reason.clone() };
            let error = (ended.end == End::Failed).then(|| first.take().unwrap_or_else(shared));
            self.close(ended, error);
        }
    }
}

/// Runs part of a step; a panic becomes a failure of the step.
pub(super) fn guarded<T>(runner: &mut Runner, work: impl FnOnce(&mut Runner) -> Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(|| work(runner))) {
        Ok(done) => done.map_err(Failure::Error),
        Err(panic) => {
            let device = runner.device().to_owned();
            let reason = format!("defect: {}", panic_message(&*panic));
            Err(Failure::Panic(Error::Device { device, reason }))
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic")
}
