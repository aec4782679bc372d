//! Steps that take far longer than they should are reported while they run: a device that hangs is not silent.
//!
//! What a step will take is estimated from what steps of its size took. Sizes are powers of two, of the step's tokens and
//! of the positions that they see; of a size that was not met yet the estimate is the least of what others allow, each
//! scaled in proportion where it is smaller. A step of which nothing can be told is allowed [`FIRST`].

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::engine::scheduler::Scheduler;

/// A step is slow beyond so many times its estimate.
const FACTOR: f64 = 20.0;
/// No step is slow before: machines stall now and then.
const LEAST: Duration = Duration::from_secs(1);
/// What a step may take before anything is known: devices load their code with it.
const FIRST: Duration = Duration::from_secs(60);
/// Weight of the newest step in the estimate.
const NEWEST: f64 = 0.25;

/// What a step asks of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepSize {
    pub tokens: usize,
    pub sequences: usize,
    /// Sequences among them that have one token in the step.
    pub decodes: usize,
    /// Positions of the longest sequence.
    pub longest: usize,
    /// Positions of all sequences.
    pub positions: usize,
}

/// A step beyond its time.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SlowStep {
    pub size: StepSize,
    /// What it should have taken; `None` where nothing was known.
    pub expected: Option<Duration>,
    /// What it has taken so far.
    pub elapsed: Duration,
}

impl fmt::Display for SlowStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StepSize { tokens, sequences, decodes, longest, .. } = self.size;
        write!(
            f,
            "a step of {tokens} tokens of {sequences} sequences ({decodes} of them with one), the longest of {longest}, \
             has been running for {:.1} s",
            self.elapsed.as_secs_f64()
        )?;
        match self.expected {
            Some(expected) => write!(f, ", and should take {:.3} s", expected.as_secs_f64()),
            None => Ok(()),
        }
    }
}

impl StepSize {
    /// Of the scheduler's plan.
    pub(in crate::engine) fn of(scheduler: &Scheduler) -> Self {
        let mut size = Self::default();
        for chunk in &scheduler.plan().chunks {
            let end = chunk.start + chunk.len;
            size.tokens += chunk.len;
            size.sequences += 1;
            size.decodes += usize::from(chunk.len == 1);
            size.longest = size.longest.max(end);
            size.positions += end;
        }
        size
    }

    fn class(&self) -> (u32, u32) {
        (self.tokens.max(1).ilog2(), self.positions.max(1).ilog2())
    }
}

/// What steps take, in seconds.
#[derive(Debug, Default)]
struct Estimates(HashMap<(u32, u32), f64>);

impl Estimates {
    fn expected(&self, size: &StepSize) -> Option<f64> {
        let (tokens, positions) = size.class();
        let scaled = |(&(t, p), seconds): (&(u32, u32), &f64)| {
            let doublings = tokens.saturating_sub(t) + positions.saturating_sub(p);
            seconds * f64::from(doublings.min(30)).exp2()
        };
        let known = self.0.get(&size.class()).copied();
        known.or_else(|| self.0.iter().map(scaled).min_by(f64::total_cmp))
    }

    fn learn(&mut self, size: &StepSize, seconds: f64) {
        let estimate = self.0.entry(size.class()).or_insert(seconds);
        *estimate += NEWEST * (seconds - *estimate);
    }
}

/// Who is told.
pub type Report = Arc<dyn Fn(SlowStep) + Send + Sync>;

/// Watches over one step after another, from a thread of its own.
pub struct Watchdog {
    shared: Arc<Shared>,
    estimates: Estimates,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    least: Duration,
}

#[derive(Default)]
struct State {
    step: Option<Step>,
    /// Nobody runs a step: the thread waits to be woken.
    asleep: bool,
    over: bool,
    slow: u64,
    last: Option<SlowStep>,
}

#[derive(Clone, Copy)]
struct Step {
    size: StepSize,
    begun: Instant,
    expected: Option<Duration>,
    limit: Duration,
    reported: bool,
}

impl Watchdog {
    /// # Errors
    /// The system has no thread.
    pub fn new(report: Report) -> std::io::Result<Self> {
        Self::with_least(LEAST, report)
    }

    /// With another bound below which no step is slow.
    pub(in crate::engine) fn with_least(least: Duration, report: Report) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), least });
        let watched = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("burrstone-watch".to_owned()).spawn(move || watched.watch(&*report))?;
        Ok(Self { shared, estimates: Estimates::default(), thread: Some(thread) })
    }

    /// A step begins.
    pub fn begin(&self, size: StepSize) {
        let expected = self.estimates.expected(&size).map(Duration::from_secs_f64);
        let limit = expected.map_or(FIRST, |expected| expected.mul_f64(FACTOR)).max(self.shared.least);
        let mut state = self.shared.state();
        state.step = Some(Step { size, begun: Instant::now(), expected, limit, reported: false });
        if std::mem::take(&mut state.asleep) {
            self.shared.changed.notify_one();
        }
    }

    /// It ended; `good` where it did what it should, and says something about steps of its size.
    pub fn end(&mut self, good: bool) {
        let step = self.shared.state().step.take();
        if let Some(step) = step.filter(|_| good) {
            self.estimates.learn(&step.size, step.begun.elapsed().as_secs_f64());
        }
    }

    /// How many steps were slow, and the last of them.
    pub fn slow(&self) -> (u64, Option<SlowStep>) {
        let state = self.shared.state();
        (state.slow, state.last)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // What it may have panicked with was a report's, which was heard.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock leaves the state half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks now and then while steps run: waking it for each would cost more than the look.
    fn watch(&self, report: &(dyn Fn(SlowStep) + Send + Sync)) {
        let mut state = self.state();
        while !state.over {
            let Some(step) = state.step else {
                state.asleep = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let elapsed = step.begun.elapsed();
            if elapsed >= step.limit && !step.reported {
                let slow = SlowStep { size: step.size, expected: step.expected, elapsed };
                state.step = Some(Step { reported: true, ..step });
                state.slow += 1;
                state.last = Some(slow);
                drop(state);
                report(slow);
                state = self.state();
                continue;
            }
            let look = self.least / 4;
            state = self.changed.wait_timeout(state, look).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn size(tokens: usize, positions: usize) -> StepSize {
        StepSize { tokens, sequences: 1, decodes: 0, longest: positions, positions }
    }

    #[test]
    fn estimates_follow_what_was_measured_and_grow_with_the_work() {
        let mut estimates = Estimates::default();
        assert_eq!(estimates.expected(&size(1, 100)), None);
        estimates.learn(&size(1, 100), 0.010);
        // Another of its size; smaller ones; twice the tokens and four times the positions.
        assert_eq!(estimates.expected(&size(1, 70)), Some(0.010));
        assert_eq!(estimates.expected(&size(1, 3)), Some(0.010));
        assert_eq!(estimates.expected(&size(2, 400)), Some(0.080));
        estimates.learn(&size(2, 400), 0.012);
        assert_eq!(estimates.expected(&size(2, 400)), Some(0.012));
        assert_eq!(estimates.expected(&size(4, 400)), Some(0.024));
        for _ in 0..40 {
            estimates.learn(&size(1, 100), 0.020);
        }
        assert!((estimates.expected(&size(1, 100)).unwrap() - 0.020).abs() < 1e-5);
    }

    #[test]
    fn issue_20950_a_step_beyond_its_time_is_reported_once_while_it_runs() {
        let (sender, reports) = mpsc::channel();
        let report = Arc::new(move |slow| sender.send(slow).unwrap());
        let mut watchdog = Watchdog::with_least(Duration::from_millis(80), report).unwrap();
        for _ in 0..20 {
            watchdog.begin(size(8, 8));
            watchdog.end(true);
        }
        assert_eq!(watchdog.slow().0, 0);
        watchdog.begin(size(8, 8));
        let slow = reports.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(slow.elapsed >= Duration::from_millis(80) && slow.expected.unwrap() < Duration::from_millis(80));
        assert_eq!(slow.size, size(8, 8));
        thread::sleep(Duration::from_millis(100));
        watchdog.end(false);
        watchdog.begin(size(8, 8));
        watchdog.end(true);
        assert_eq!(watchdog.slow().0, 1);
        assert!(slow.to_string().contains("a step of 8 tokens of 1 sequences"), "{slow}");
        drop(watchdog);
        assert!(reports.recv().is_err(), "no other report");
    }
}
