//! The step loop, on a thread of its own: take requests in, schedule, run, hand out what came of it.
//!
//! Where a device works on its own, it has a step to work on all the time but for the moment in which the last one's
//! tokens become the next one's: while a step is under way, the last one's tokens are handed out, requests are taken in
//! and the next step is scheduled.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::device::Counters;
use crate::error::{Error, Result};
use crate::kv::Counts;
use crate::model::Checkpoint;
use crate::ops::{Rates, Sampled};

use super::channel::Sender;
use super::incident::{Incident, OnIncident};
use super::runner::{Results, Runner, Wanted};
use super::watchdog::{SlowStep, StepSize, Watchdog};
use crate::engine::sampling::FinishReason;
use crate::engine::sampling::Rules;
use crate::engine::scheduler::{End, Ended, Outcome, Receipt, Refused, Scheduler, SequenceId, Stats, Submission};

/// What the loop is told.
pub enum Command {
    /// The deadline takes the place of the submission's.
    Submit {
        at: Instant,
        deadline: Option<Instant>,
        submission: Submission,
        jobs: Vec<Job>,
    },
    Cancel(u64),
    Status(mpsc::Sender<Status>),
    Rates(mpsc::Sender<Result<Rates>>),
    /// Other weights from now on.
    Update(Box<Checkpoint>, mpsc::Sender<Result<()>>),
    /// Nobody is left to ask for anything.
    Stop,
}

/// What a request's consumer is told.
pub enum Event {
    Token {
        sampled: Sampled,
        finish: Option<FinishReason>,
        /// An end token, which is not part of the text.
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

/// One sequence, for whoever asked for it.
pub struct Job {
    /// Names it in [`Command::Cancel`].
    pub key: u64,
    pub kind: Kind,
}

pub enum Kind {
    Generate { rules: Box<Rules>, consumer: Sender<Event> },
    Score { logprobs: Vec<f32>, reply: mpsc::Sender<Result<Vec<f32>>> },
}

/// What an engine is doing.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Status {
    /// What the device was asked to do since it was last set up; nothing is counted on the CPU.
    pub counters: Counters,
    pub stats: Stats,
    /// Sequences that hold blocks of the KV cache.
    pub running: usize,
    pub waiting: usize,
    pub blocks: Counts,
    /// Steps that took far longer than they should.
    pub slow_steps: u64,
    /// The last of them.
    pub slow_step: Option<SlowStep>,
    /// How often the device was set up anew: because it failed, or for other weights.
    pub restarts: u64,
}

/// Why a step failed.
enum Failure {
    Error(Error),
    /// A defect: nobody knows what it left behind.
    Panic(Error),
}

pub struct Worker {
    runner: Runner,
    scheduler: Scheduler,
    watchdog: Watchdog,
    incident: OnIncident,
    commands: mpsc::Receiver<Command>,
    started: Instant,
    /// By [`SequenceId::slot`].
    live: Vec<Option<Job>>,
    ids: HashMap<u64, SequenceId>,
    /// A step was begun, and what comes of it is not known.
    under_way: bool,
    /// What is to be done between steps.
    aside: Option<Command>,
    /// What the last step gave.
    outbox: Outbox,
}

/// What consumers are to be told.
#[derive(Default)]
struct Outbox {
    events: Vec<(SequenceId, Event)>,
    ended: Vec<Ended>,
}

impl Worker {
    pub fn new(
        runner: Runner,
        scheduler: Scheduler,
        commands: mpsc::Receiver<Command>,
        watchdog: Watchdog,
        incident: OnIncident,
    ) -> Self {
        let (started, live, ids, outbox) = (Instant::now(), Vec::new(), HashMap::new(), Outbox::default());
        let (under_way, aside) = (false, None);
        Self { runner, scheduler, watchdog, incident, commands, started, live, ids, under_way, aside, outbox }
    }

    /// Serves until it is told to stop.
    pub fn run(mut self) {
        while self.take_in() {
            if self.under_way {
                if self.aside.is_none() {
                    self.prepare();
                }
                self.finish();
            }
            if self.scheduler.plan().chunks.is_empty() && self.aside.is_none() {
                self.scheduler.schedule(self.now());
            }
            if !self.scheduler.plan().chunks.is_empty() {
                self.begin();
                if self.under_way && !self.runner.overlaps() {
                    self.finish();
                }
            }
            self.deliver();
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The scheduler's time.
    fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.started)
    }

    /// Does what was asked for since the last step, and no more requests than the policy says; with nothing else to do,
    /// waits for it. False to stop.
    fn take_in(&mut self) -> bool {
        let mut left = self.scheduler.policy().ingest.max(1);
        let mut next = match self.aside.take() {
            None if !self.under_way && self.scheduler.is_idle() => self.commands.recv().ok(),
            None => self.commands.try_recv().ok(),
            aside => aside,
        };
        while let Some(command) = next {
            match command {
                Command::Rates(_) | Command::Update(..) | Command::Stop if self.under_way => {
                    self.aside = Some(command);
                    return true;
                }
                Command::Submit { at, deadline, submission, jobs } => {
                    let deadline = deadline.map(|deadline| self.since_start(deadline));
                    self.submit(at, Submission { deadline, ..submission }, jobs);
                    left -= 1;
                    if left == 0 {
                        return true;
                    }
                }
                Command::Cancel(key) => {
                    if let Some(&id) = self.ids.get(&key) {
                        self.scheduler.cancel(self.now(), id);
                        // At once: the next request may get its slot.
                        self.scheduler.take_ended().into_iter().for_each(|ended| self.close(ended, None));
                    }
                }
                Command::Status(reply) => {
                    // Whoever asked may be gone.
                    let _ = reply.send(self.status());
                }
                Command::Rates(reply) => {
                    // As above.
                    let _ = reply.send(self.runner.forward().and_then(|forward| forward.rates()));
                }
                Command::Update(checkpoint, reply) => {
                    let updated = self.runner.update(*checkpoint);
                    self.scheduler.forget();
                    // As above.
                    let _ = reply.send(updated);
                }
                Command::Stop => return false,
            }
            next = self.commands.try_recv().ok();
        }
        true
    }

    fn status(&self) -> Status {
        let (slow_steps, slow_step) = self.watchdog.slow();
        Status {
            slow_steps,
            slow_step,
            restarts: self.runner.restarts(),
            counters: self.runner.counters(),
            stats: self.scheduler.stats(),
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            blocks: self.scheduler.blocks(),
        }
    }

    fn submit(&mut self, at: Instant, submission: Submission, jobs: Vec<Job>) {
        match self.scheduler.submit(self.since_start(at), submission) {
            Ok(ids) => {
                for (id, job) in ids.into_iter().zip(jobs) {
                    let slots = self.live.len().max(id.slot() + 1);
                    self.live.resize_with(slots, || None);
                    self.ids.insert(job.key, id);
                    self.live[id.slot()] = Some(job);
                }
            }
            Err(refused) => jobs.into_iter().for_each(|job| job.kind.fail(refusal(refused))),
        }
    }

    /// Schedules the step behind the one under way.
    fn prepare(&mut self) {
        self.scheduler.schedule(self.now());
        let Self { runner, scheduler, live, .. } = self;
        // What fails here fails again when the step is begun.
        let _ = guarded(runner, |runner| runner.prepare(scheduler, wanted(live)));
    }

    /// Begins to carry the plan out.
    fn begin(&mut self) {
        self.watchdog.begin(StepSize::of(&self.scheduler));
        let Self { runner, scheduler, live, .. } = self;
        let begun = guarded(runner, |runner| runner.begin(scheduler, wanted(live)));
        match begun {
            Ok(()) => {
                self.scheduler.begin();
                self.under_way = true;
            }
            Err(failure) => {
                self.watchdog.end(false);
                self.recover(failure);
            }
        }
    }

    /// Waits for the step under way.
    fn finish(&mut self) {
        let done = guarded(&mut self.runner, Runner::finish);
        self.watchdog.end(done.is_ok());
        self.under_way = false;
        match done {
            Ok(results) => self.complete(results),
            Err(failure) => self.recover(failure),
        }
    }

    /// Makes the step's tokens their sequences', and leaves in the outbox what is to be said of them.
    fn complete(&mut self, results: Results) {
        for (id, start, scores) in results.scored {
            if self.scheduler.view(id).is_none() {
                // It was cancelled since, and its slot may be another's.
                continue;
            }
            if let Some(Job { kind: Kind::Score { logprobs, .. }, .. }) = &mut self.live[id.slot()] {
                if logprobs.len() < start {
                    // It began behind what the cache has.
                    *logprobs = self.scheduler.known_scores(id).to_vec();
                }
                // After a preemption the first ones come again.
                logprobs.truncate(start);
                logprobs.extend(scores);
                self.scheduler.scored(id, logprobs);
            }
        }
        let mut outcomes = Vec::with_capacity(results.sampled.len());
        let mut tokens = Vec::with_capacity(results.sampled.len());
        for (id, sampled, verdict) in results.sampled {
            // As above.
            let Some(view) = self.scheduler.view(id) else { continue };
            let Some(Job { kind: Kind::Generate { rules, .. }, .. }) = &mut self.live[id.slot()] else { continue };
            // The last one is this.
            let generated = &view.tokens[view.prompt_len..view.tokens.len() - 1];
            let finish = verdict.and_then(|()| rules.take(sampled.token, generated));
            let last = !matches!(finish, Ok(None));
            outcomes.push(Outcome { sequence: id, token: sampled.token, last });
            tokens.push((id, sampled, finish));
        }
        self.scheduler.complete(self.now(), &outcomes);
        let ended = self.scheduler.take_ended();
        for (id, sampled, finish) in tokens {
            let gone = || ended.iter().find(|ended| ended.sequence == id).map(|ended| ended.receipt);
            let receipt = self.scheduler.receipt(id).or_else(gone).unwrap_or_default();
            if let Some(Job { kind: Kind::Generate { rules, .. }, .. }) = &self.live[id.slot()] {
                let hidden = rules.is_end(sampled.token);
                let event = match finish {
                    Ok(finish) => Event::Token { sampled, finish, hidden, receipt },
                    Err(error) => Event::Failed(error),
                };
                self.outbox.events.push((id, event));
            }
        }
        self.outbox.ended.extend(ended);
    }

    /// Hands out what the last step gave.
    fn deliver(&mut self) {
        let Outbox { events, mut ended } = std::mem::take(&mut self.outbox);
        ended.extend(self.scheduler.take_ended());
        for (id, event) in events {
            if let Some(Job { kind: Kind::Generate { consumer, .. }, .. }) = &self.live[id.slot()] {
                consumer.send(event);
            }
        }
        for ended in ended {
            self.close(ended, None);
        }
    }

    /// A step failed. Where that was the device's fault, its sequences end; where one of them may be to blame, each is tried
    /// once more by itself. A device that is of no use any more is set up anew, and what it held is computed again.
    fn recover(&mut self, failure: Failure) {
        // What came before, first.
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

    /// The step's sequences end with this error, or are tried again.
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

    /// A sequence ended: whoever asked for it learns how.
    fn close(&mut self, ended: Ended, error: Option<Error>) {
        let Some(job) = self.live[ended.sequence.slot()].take() else { return };
        self.ids.remove(&job.key);
        match (error, job.kind) {
            (Some(error), kind) => kind.fail(error),
            (None, Kind::Score { logprobs, reply }) => {
                // Whoever asked may be gone.
                let _ = reply.send(Ok(logprobs));
            }
            (None, Kind::Generate { consumer, .. }) => {
                if ended.end == End::Expired {
                    consumer.send(Event::End { finish: FinishReason::Deadline, receipt: ended.receipt });
                }
            }
        }
    }
}

fn wanted<'a>(live: &'a [Option<Job>]) -> impl Fn(SequenceId) -> Wanted<'a> {
    |id| match live.get(id.slot()).and_then(Option::as_ref).map(|job| &job.kind) {
        Some(Kind::Generate { rules, .. }) => Wanted::Sample(rules),
        Some(Kind::Score { .. }) | None => Wanted::Scores,
    }
}

/// A panic of a kernel fails its step, and no other.
fn guarded<T>(runner: &mut Runner, work: impl FnOnce(&mut Runner) -> Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(|| work(runner))) {
        Ok(done) => done.map_err(Failure::Error),
        Err(panic) => {
            let device = runner.device().to_owned();
            let reason = format!("defect: {}", panic_message(&*panic));
            Err(Failure::Panic(Error::Device { device, reason }))
        }
    }
}

impl Kind {
    fn fail(self, error: Error) {
        match self {
            Self::Generate { consumer, .. } => consumer.send(Event::Failed(error)),
            Self::Score { reply, .. } => {
                // Whoever asked may be gone.
                let _ = reply.send(Err(error));
            }
        }
    }
}

fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::Empty => Error::request("prompt", "at least one token", "none"),
        Refused::TooLarge { tokens, capacity } => {
            let found = format!("{tokens} tokens, prompt and output");
            Error::request("KV cache", format!("at most {capacity} tokens, all that it holds"), found)
        }
        Refused::TooManyBranches { branches, limit } => {
            Error::request("n", format!("at most {limit}, as many as run at a time"), branches)
        }
        Refused::QueueFull { waiting } => Error::Busy { waiting },
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic")
}

#[cfg(test)]
mod tests;
