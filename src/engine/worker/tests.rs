//! The step loop over a device that fails now and then.

use std::panic::resume_unwind;
use std::thread;

use super::*;
use crate::engine::channel::{Receiver, channel};
use crate::engine::request::Sampling;
use crate::engine::scheduler::{CacheSize, Policy};
use crate::model::{Forward, GenerationConfig, RopeKind, RopeSpec};
use crate::ops::{Batch, Rates};

const PAGE_SIZE: usize = 4;
const PAGES: usize = 64;
const FAILURE: &str = "the device has failed";

/// Its memory holds tokens; the next token is a sum over all that a query sees.
struct Fake {
    slots: Vec<u32>,
    steps: usize,
    faulty: bool,
}

impl Fake {
    fn write(&mut self, batch: &Batch) {
        for (&slot, &token) in batch.slots.iter().zip(&batch.tokens) {
            self.slots[slot as usize] = token;
        }
    }

    fn seen(&self, batch: &Batch, row: u32) -> Vec<u32> {
        let row = row as usize;
        let span = batch.spans.iter().find(|span| (span.start..span.start + span.len).contains(&row)).unwrap();
        let at =
            |p: usize| self.slots[batch.page_table[span.pages + p / PAGE_SIZE] as usize * PAGE_SIZE + p % PAGE_SIZE];
        (0..=batch.positions[row] as usize).map(at).collect()
    }
}

fn next_token(seen: &[u32], seed: u64) -> u32 {
    seen.iter().fold(seed as u32, |sum, &token| sum.wrapping_mul(31).wrapping_add(token)) % 500
}

impl Forward for Fake {
    fn rates(&self) -> Result<Rates> {
        Ok(Rates { gb_s: 1.0, gflop_s: 1.0 })
    }

    fn describe(&self) -> String {
        "fake".to_owned()
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn copy_pages(&mut self, pairs: &[[u32; 2]]) -> Result<()> {
        for pair in pairs {
            let [from, to] = pair.map(|page| page as usize * PAGE_SIZE);
            self.slots.copy_within(from..from + PAGE_SIZE, to);
        }
        Ok(())
    }

    fn run(&mut self, batch: &Batch) -> Result<()> {
        self.sample(batch).map(|_| ())
    }

    fn sample(&mut self, batch: &Batch) -> Result<Vec<Sampled>> {
        batch.check()?;
        self.steps += 1;
        if self.faulty && self.steps.is_multiple_of(23) {
            return Err(Error::Device { device: "fake".to_owned(), reason: FAILURE.to_owned() });
        }
        self.write(batch);
        if self.faulty && self.steps.is_multiple_of(41) {
            // A panic without the message on standard error.
            resume_unwind(Box::new(FAILURE));
        }
        let rows = batch.logit_rows.iter().zip(&batch.samples);
        let sampled = |(&row, sample): (&u32, &SampleRow)| {
            let token = next_token(&self.seen(batch, row), sample.seed);
            Sampled { token, logprob: 0.0 }
        };
        Ok(rows.map(sampled).collect())
    }

    fn target_logprobs(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.run(batch)?;
        Ok(batch.targets.iter().map(|&target| -(target as f32)).collect())
    }
}

struct Lab {
    commands: mpsc::Sender<Command>,
    worker: Option<Worker>,
    keys: u64,
}

struct Asked {
    key: u64,
    prompt: Vec<u32>,
    max_tokens: usize,
    events: Receiver<Event>,
}

impl Lab {
    fn new(faulty: bool) -> Self {
        let fake = Fake { slots: vec![0; PAGES * PAGE_SIZE], steps: 0, faulty };
        let rope = RopeSpec { rotary_dim: 2, theta: 1e4, kind: RopeKind::Default };
        let policy = Policy { step_tokens: 32, max_running: 8, min_chunk: 8, reserve: 4, ..Policy::default() };
        let cache = CacheSize { blocks: PAGES, block_size: PAGE_SIZE, window: None, balance: 100 };
        let (commands, receiver) = mpsc::channel();
        let runner = Runner::new(Box::new(fake), rope.table(), PAGE_SIZE);
        let worker = Worker::new(runner, Scheduler::new(policy, cache), receiver);
        Self { commands, worker: Some(worker), keys: 0 }
    }

    /// From here on what was asked for is done, and what will be.
    fn start(&mut self) -> thread::JoinHandle<()> {
        let worker = self.worker.take().unwrap();
        thread::spawn(|| worker.run())
    }

    fn score(&self, prompt: Vec<u32>) -> mpsc::Receiver<Result<Vec<f32>>> {
        let (reply, scores) = mpsc::channel();
        let jobs = vec![Job { key: 0, kind: Kind::Score { logprobs: Vec::new(), reply } }];
        let submission =
            Submission { prompt, max_tokens: 0, branches: 1, priority: 0, deadline: None, salt: 0, reuse: false };
        self.commands.send(Command::Submit { at: Instant::now(), deadline: None, submission, jobs }).unwrap();
        scores
    }

    fn ask(&mut self, prompt: Vec<u32>, max_tokens: usize, branches: usize, wait: Option<Duration>) -> Vec<Asked> {
        let (mut jobs, mut asked) = (Vec::new(), Vec::new());
        for _ in 0..branches {
            self.keys += 1;
            let (consumer, events) = channel();
            let sampling = Sampling { seed: Some(self.keys), ..Sampling::default() };
            let sampling = sampling.resolve(&GenerationConfig::default(), 1000).unwrap();
            let rules = Rules { sampling, max_tokens, min_tokens: 0, eos: (0..10).collect(), ignore_eos: false };
            jobs.push(Job { key: self.keys, kind: Kind::Generate { rules, consumer } });
            asked.push(Asked { key: self.keys, prompt: prompt.clone(), max_tokens, events });
        }
        let submission = Submission { prompt, max_tokens, branches, priority: 0, deadline: None, salt: 0, reuse: true };
        let at = Instant::now();
        let deadline = wait.map(|wait| at + wait);
        self.commands.send(Command::Submit { at, deadline, submission, jobs }).unwrap();
        asked
    }

    fn status(&self) -> Status {
        let (reply, status) = mpsc::channel();
        self.commands.send(Command::Status(reply)).unwrap();
        status.recv().unwrap()
    }
}

/// How a request ended, after its tokens were found to be those that it gets alone.
fn outcome(asked: &Asked) -> &'static str {
    let mut tokens = asked.prompt.clone();
    let mut end = "cancelled";
    while let Some(event) = asked.events.wait() {
        assert_eq!(end, "cancelled", "nothing comes after the end");
        match event {
            Event::Token { sampled, finish, .. } => {
                assert_eq!(sampled.token, next_token(&tokens, asked.key));
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

/// 2000 requests, some of them cancelled, late, too large or in a step that fails: each ends once, the cache is given
/// back, and the loop goes on.
#[test]
fn every_request_ends_once_whatever_happens() {
    let mut lab = Lab::new(true);
    let thread = lab.start();
    let mut asked = Vec::new();
    for i in 0..2000usize {
        let len = if i % 50 == 7 { PAGES * PAGE_SIZE } else { 1 + i * 7 % 40 };
        let prompt = (0..len).map(|at| if at < 16 { 3 } else { (i % 5 + at) as u32 }).collect();
        let branches = if i % 17 == 0 { 3 } else { 1 };
        let wait = (i % 29 == 0).then(|| Duration::from_micros(50 * (i as u64 % 7)));
        let more = lab.ask(prompt, 1 + i % 30, branches, wait);
        if i % 11 == 0 {
            lab.commands.send(Command::Cancel(more[0].key)).unwrap();
        }
        asked.extend(more);
    }
    let mut ends: HashMap<&str, usize> = HashMap::new();
    for asked in &asked {
        *ends.entry(outcome(asked)).or_default() += 1;
    }
    for end in ["finished", "cancelled", "expired", "refused", "failed"] {
        assert!(ends.contains_key(end), "no {end}: {ends:?}");
    }
    let status = lab.status();
    assert_eq!((status.running, status.waiting, status.blocks.held), (0, 0, 0));
    assert_eq!(status.blocks.free + status.blocks.idle, PAGES);
    assert!(status.stats.cached_tokens > 0);
    // A step in which no fault is due: the requests before have left their number of steps to chance.
    let again = (0..3).any(|_| outcome(&lab.ask(vec![1, 2, 3], 2, 1, None)[0]) == "finished");
    assert!(again);
    lab.commands.send(Command::Stop).unwrap();
    thread.join().unwrap();
}

fn scores(of: &[u32]) -> Vec<f32> {
    of[1..].iter().map(|&token| -(token as f32)).collect()
}

#[test]
fn scores_come_in_order_whatever_the_cut() {
    let mut lab = Lab::new(false);
    let prompt: Vec<u32> = (0..100).collect();
    let found = lab.score(prompt.clone());
    lab.start();
    assert_eq!(found.recv().unwrap().unwrap(), scores(&prompt));
}

/// Seven that grow (no token that ends one comes early) leave no room for the last to come, which starts again later.
#[test]
fn a_score_that_was_preempted_has_every_token_once() {
    let mut lab = Lab::new(false);
    let asked: Vec<Asked> = (0..7).flat_map(|i| lab.ask(vec![111 + i, 2, 3, 4], 24, 1, None)).collect();
    let prompt: Vec<u32> = (0..200).collect();
    let found = lab.score(prompt.clone());
    lab.start();
    assert_eq!(found.recv().unwrap().unwrap(), scores(&prompt));
    assert!(asked.iter().all(|asked| outcome(asked) == "finished"));
    assert!(lab.status().stats.preemptions > 0);
}
