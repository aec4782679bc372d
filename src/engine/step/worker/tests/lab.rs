//! A step loop over that device, and requests of which it is known what they are answered with.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::fake::{FAILURE, Faults, PAGE_SIZE, PAGES, next_token};
use crate::engine::sampling::FinishReason;
use crate::engine::sampling::LogitsProcessor;
use crate::engine::sampling::Rules;
use crate::engine::sampling::Sampling;
use crate::engine::scheduler::{CacheSize, NegativePrompt, Policy, Scheduler, Submission};
use crate::engine::step::batching::Batcher;
use crate::engine::step::channel::{Receiver, channel};
use crate::engine::step::command::{Command, Event, Job, Kind, Status};
use crate::engine::step::incident::{Incident, OnIncident};
use crate::engine::step::runner::Runner;
use crate::engine::step::watchdog::Watchdog;
use crate::engine::step::worker::Worker;
use crate::error::Result;
use crate::model::{GenerationConfig, RopeKind, RopeSpec};

pub struct Lab {
    pub commands: mpsc::Sender<Command>,
    worker: Option<Worker>,
    pub incidents: mpsc::Receiver<Incident>,
    keys: u64,
}

pub struct Asked {
    pub key: u64,
    /// What its tokens are to follow.
    prompt: Vec<u32>,
    /// Of its draws.
    seed: u64,
    max_tokens: usize,
    pub events: Receiver<Event>,
}

impl Lab {
    pub fn new(faults: Faults) -> Self {
        let rope = RopeSpec { rotary_dim: 2, theta: 1e4, kind: RopeKind::Default };
        let policy = Policy { step_tokens: 32, max_running: 8, min_chunk: 8, reserve: 4, ..Policy::default() };
        let cache = CacheSize { blocks: PAGES, block_size: PAGE_SIZE, window: None, balance: 100 };
        let (commands, receiver) = mpsc::channel();
        let runner = Runner::new(Box::new(faults), Batcher::new(rope.table(1000), PAGE_SIZE)).unwrap();
        let (sender, incidents) = mpsc::channel();
        let incident: OnIncident = Arc::new(move |incident| {
            // The lab may be gone.
            let _ = sender.send(incident);
        });
        let slow = Arc::clone(&incident);
        let slow = Arc::new(move |step| slow(Incident::SlowStep(step)));
        let watchdog = Watchdog::with_least(Duration::from_millis(400), slow).unwrap();
        let worker = Worker::new(runner, Scheduler::new(policy, cache), receiver, watchdog, incident);
        Self { commands, worker: Some(worker), incidents, keys: 0 }
    }

    /// From here on what was asked for is done, and what will be.
    pub fn start(&mut self) -> thread::JoinHandle<()> {
        let worker = self.worker.take().unwrap();
        thread::spawn(|| worker.run())
    }

    pub fn score(&self, prompt: Vec<u32>) -> mpsc::Receiver<Result<Vec<f32>>> {
        let (reply, scores) = mpsc::channel();
        let jobs = vec![Job { key: 0, kind: Kind::Score { logprobs: Vec::new(), reply } }];
        let submission = Submission { scored: true, ..Submission::new(prompt, 0) };
        self.commands.send(Command::Submit { at: Instant::now(), deadline: None, submission, jobs }).unwrap();
        scores
    }

    pub fn ask(&mut self, prompt: Vec<u32>, max_tokens: usize, branches: usize, wait: Option<Duration>) -> Vec<Asked> {
        let (mut jobs, mut asked) = (Vec::new(), Vec::new());
        for _ in 0..branches {
            let (job, events) = self.job(max_tokens, None, Vec::new());
            jobs.push(job);
            asked.push(Asked { key: self.keys, prompt: prompt.clone(), seed: self.keys, max_tokens, events });
        }
        self.submit(Submission { branches, ..Submission::new(prompt, max_tokens) }, jobs, wait);
        asked
    }

    pub fn submit(&self, submission: Submission, jobs: Vec<Job>, wait: Option<Duration>) {
        let at = Instant::now();
        let deadline = wait.map(|wait| at + wait);
        self.commands.send(Command::Submit { at, deadline, submission, jobs }).unwrap();
    }

    /// Guided by nothing but the other prompt: that is a scale of 0.
    pub fn ask_guided(&mut self, prompt: Vec<u32>, negative: Vec<u32>, max_tokens: usize) -> Asked {
        let (job, events) = self.job(max_tokens, Some(0.0), Vec::new());
        let asked = Asked { key: job.key, prompt: negative.clone(), seed: 0, max_tokens, events };
        let negative = Some(NegativePrompt { prompt: negative, salt: 0 });
        self.submit(Submission { negative, ..Submission::new(prompt, max_tokens) }, vec![job], None);
        asked
    }

    pub fn job(
        &mut self,
        max_tokens: usize,
        guidance: Option<f32>,
        processors: Vec<LogitsProcessor>,
    ) -> (Job, Receiver<Event>) {
        self.keys += 1;
        let (consumer, events) = channel();
        let sampling = Sampling { seed: Some(self.keys), ..Sampling::default() };
        let rules = Box::new(Rules {
            sampling: sampling.resolve(&GenerationConfig::default(), 1000, 1000).unwrap(),
            bad_words: Arc::default(),
            sequence_bias: Arc::default(),
            dry: None,
            history: None,
            ngram_ban: None,
            detector: None,
            max_tokens,
            min_tokens: 0,
            end_tokens: (0..10).collect(),
            not_first: Vec::new(),
            guide: None,
            guidance,
            processors,
        });
        (Job { key: self.keys, kind: Kind::Generate { rules, consumer } }, events)
    }

    /// A request whose rules are changed before it is submitted.
    pub fn ask_with(&mut self, prompt: Vec<u32>, max_tokens: usize, change: impl FnOnce(&mut Rules)) -> Asked {
        let (mut job, events) = self.job(max_tokens, None, Vec::new());
        if let Kind::Generate { rules, .. } = &mut job.kind {
            change(rules);
        }
        let asked = Asked { key: job.key, prompt: prompt.clone(), seed: job.key, max_tokens, events };
        self.submit(Submission::new(prompt, max_tokens), vec![job], None);
        asked
    }

    pub fn status(&self) -> Status {
        let (reply, status) = mpsc::channel();
        self.commands.send(Command::Status(reply)).unwrap();
        status.recv().unwrap()
    }
}

/// How a request ended, after its tokens were found to be those that it gets alone.
pub fn outcome(asked: &Asked) -> &'static str {
    let mut tokens = asked.prompt.clone();
    let mut end = "cancelled";
    while let Some(event) = asked.events.wait() {
        assert_eq!(end, "cancelled", "nothing comes after the end");
        match event {
            Event::Token { sampled, finish, .. } => {
                assert_eq!(sampled.token, next_token(&tokens, asked.seed));
                tokens.push(sampled.token);
                if finish.is_some() {
                    end = "finished";
                }
            }
            Event::End { finish, .. } => {
                assert_eq!(finish, FinishReason::Deadline);
                end = "expired";
            }
            Event::Failed(error) if error.is_input() => end = "refused",
            Event::Failed(error) if error.to_string().ends_with("restart the process") => end = "lost",
            Event::Failed(error) => {
                assert!(error.to_string().contains(FAILURE), "{error}");
                end = "failed";
            }
        }
    }
    let generated = &tokens[asked.prompt.len()..];
    if end == "finished" {
        assert!(generated.len() == asked.max_tokens || generated.last().is_some_and(|&token| token < 10));
    }
    end
}
