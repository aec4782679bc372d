//! The step loop, on a thread of its own: takes requests in, schedules, runs steps and hands out their tokens.
//!
//! Where a device works asynchronously (a GPU), the loop overlaps with it: while a step is under way, the tokens of the
//! step before are handed out, requests are taken in and the next step is scheduled. The device waits only while the
//! tokens of one step are entered into the next.

mod constraints;
mod recovery;

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::engine::sampling::FinishReason;
use crate::engine::scheduler::{End, Ended, Outcome, Refused, Scheduler, SequenceId, Submission};
use crate::error::{Error, Result};
use crate::ops::Sampled;

use super::command::{Command, Event, Job, Kind, Status};
use super::incident::OnIncident;
use super::runner::{Results, Runner, Wanted};
use super::watchdog::{StepSize, Watchdog};
use constraints::WAIT;
use recovery::guarded;

/// A token and why its sequence ends with it; or the error that ends its sequence.
type Taken = Result<(Sampled, Option<FinishReason>)>;

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
    /// A step runs on the device.
    under_way: bool,
    /// A command that waits until no step runs.
    aside: Option<Command>,
    /// Sequences that are left out of steps until their masks are computed.
    held: Vec<SequenceId>,
    /// Sequences whose constraints have not accepted their last token yet. They are left out of steps as well.
    unsettled: Vec<(SequenceId, Sampled, Option<FinishReason>)>,
    /// Events of the last step that are not sent yet.
    outbox: Outbox,
}

/// Events for the consumers.
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
        let (under_way, aside, held, unsettled) = (false, None, Vec::new(), Vec::new());
        Self {
            runner,
            scheduler,
            watchdog,
            incident,
            commands,
            started,
            live,
            ids,
            under_way,
            aside,
            held,
            unsettled,
            outbox,
        }
    }

    /// Runs until [`Command::Stop`].
    pub fn run(mut self) {
        while self.take_in() {
            if self.under_way {
                if self.aside.is_none() {
                    self.prepare();
                }
                self.finish();
            }
            if self.scheduler.plan().chunks.is_empty() && self.aside.is_none() {
                self.resume_held(Instant::now());
                self.scheduler.schedule(self.now());
            }
            self.hold_unready();
            if self.scheduler.plan().chunks.is_empty() {
                self.deliver();
                // Nothing else can run; commands are handled in between.
                self.resume_held(Instant::now() + WAIT);
            } else {
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

    /// Converts to the scheduler's clock.
    fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.started)
    }

    /// Handles the commands that arrived since the last step, with no more requests than the policy's `ingest`. Waits
    /// for one where there is nothing else to do. Returns false to stop.
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
                        // Now, as the next request may get its slot.
                        self.scheduler.take_ended().into_iter().for_each(|ended| self.close(ended, None));
                    }
                }
                Command::Status(reply) => {
                    // The caller may be gone.
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

    /// Schedules and prepares the next step while one is under way.
    fn prepare(&mut self) {
        self.resume_held(Instant::now());
        self.scheduler.schedule(self.now());
        let Self { runner, scheduler, live, .. } = self;
        // An error is returned again when the step is begun.
        let _ = guarded(runner, |runner| runner.prepare(scheduler, wanted(live)));
    }

    /// Starts the planned step.
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

    /// Adds the step's tokens to their sequences, and the events to the outbox.
    fn complete(&mut self, results: Results) {
        for (id, start, scores) in results.scored {
            if self.scheduler.view(id).is_none() {
                // It was cancelled meanwhile, and its slot may belong to another.
                continue;
            }
            if let Some(Job { kind: Kind::Score { logprobs, .. }, .. }) = &mut self.live[id.slot()] {
                if logprobs.len() < start {
                    // It began after its prefix hits, whose scores are cached.
                    *logprobs = self.scheduler.known_scores(id).to_vec();
                }
                // After a preemption the first ones are computed again.
                logprobs.truncate(start);
                logprobs.extend(scores);
                self.scheduler.scored(id, logprobs);
            }
        }
        let mut taken = Vec::with_capacity(results.sampled.len());
        for (id, sampled) in results.sampled {
            // As above.
            let Some(view) = self.scheduler.view(id) else { continue };
            let Some(Job { kind: Kind::Generate { rules, .. }, .. }) = &mut self.live[id.slot()] else { continue };
            // The last one is the placeholder of this token.
            let generated = &view.tokens[view.prompt_len..view.tokens.len() - 1];
            taken.push((id, sampled.and_then(|sampled| Ok((sampled, rules.take(sampled.token, generated)?)))));
        }
        let deadline = Instant::now() + WAIT;
        let mut settled = Vec::with_capacity(taken.len());
        for (id, taken) in taken {
            match taken {
                Ok((sampled, finish)) => match self.settle(id, sampled, finish, deadline) {
                    Some(taken) => settled.push((id, taken)),
                    None => self.unsettled.push((id, sampled, finish)),
                },
                Err(error) => settled.push((id, Err(error))),
            }
        }
        let outcomes: Vec<Outcome> = settled.iter().map(|(id, taken)| outcome(*id, taken)).collect();
        self.scheduler.complete(self.now(), &outcomes);
        self.unsettled.iter().for_each(|(id, ..)| self.scheduler.hold(*id));
        self.record(settled);
    }

    /// Puts the events of tokens into the outbox whose outcomes the scheduler has.
    fn record(&mut self, settled: Vec<(SequenceId, Taken)>) {
        let ended = self.scheduler.take_ended();
        for (id, taken) in settled {
            let gone = || ended.iter().find(|ended| ended.sequence == id).map(|ended| ended.receipt);
            let receipt = self.scheduler.receipt(id).or_else(gone).unwrap_or_default();
            if let Some(Job { kind: Kind::Generate { rules, .. }, .. }) = &self.live[id.slot()] {
                let event = match taken {
                    Ok((sampled, finish)) => {
                        Event::Token { sampled, finish, hidden: rules.is_end(sampled.token), receipt }
                    }
                    Err(error) => Event::Failed(error),
                };
                self.outbox.events.push((id, event));
            }
        }
        self.outbox.ended.extend(ended);
    }

    /// Sends the events of the last step.
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

    /// Removes the job of a sequence that ended, and tells its consumer where it does not know yet.
    fn close(&mut self, ended: Ended, error: Option<Error>) {
        let Some(job) = self.live[ended.sequence.slot()].take() else { return };
        self.ids.remove(&job.key);
        match (error, job.kind) {
            (Some(error), kind) => kind.fail(error),
            (None, Kind::Score { logprobs, reply }) => {
                // The caller may be gone.
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

fn outcome(sequence: SequenceId, taken: &Taken) -> Outcome {
    let (token, last) = match taken {
        Ok((sampled, finish)) => (sampled.token, finish.is_some()),
        // It ends the sequence and is not sent to anyone.
        Err(_) => (0, true),
    };
    Outcome { sequence, token, last }
}

fn wanted<'a>(live: &'a [Option<Job>]) -> impl Fn(SequenceId) -> Wanted<'a> {
    |id| match live.get(id.slot()).and_then(Option::as_ref).map(|job| &job.kind) {
        Some(Kind::Generate { rules, .. }) => Wanted::Sample(rules),
        Some(Kind::Score { .. }) | None => Wanted::Scores,
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

#[cfg(test)]
mod tests;
