//! The step loop over a device that fails now and then.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::*;
use crate::engine::batching::Batcher;
use crate::engine::channel::{Receiver, channel};
use crate::engine::logits::LogitsProcessor;
use crate::engine::runner::Load;
use crate::engine::sampling::Sampling;
use crate::engine::scheduler::{CacheSize, Contrast, Policy};
use crate::model::{Forward, GenerationConfig, RopeKind, RopeSpec};
use crate::ops::{Batch, LogitEdits, PageMoves, Rates, SampleRow};

const PAGE_SIZE: usize = 4;
const PAGES: usize = 64;
const FAILURE: &str = "the device has failed";
/// What memory holds that nobody has written.
const NOTHING: u32 = 12_345;

/// Its memory holds tokens; the next token is a sum over all that a query sees.
struct Fake {
    slots: Vec<u32>,
    plan: Faults,
    is_lost: bool,
    /// What the step that was begun last chose.
    sampled: Option<thread::Result<Result<Vec<Sampled>>>>,
    prepared: Option<Batch>,
}

/// What goes wrong.
#[derive(Clone, Default)]
struct Faults {
    /// It does so when the step is waited for.
    overlaps: bool,
    /// Now and then a step fails, or panics, or the device with it.
    faulty: bool,
    /// A step with this token fails.
    poison: Option<u32>,
    /// This step takes so long.
    slow: Option<(usize, Duration)>,
    /// The device fails in this step, and so often when it is set up anew.
    lost: Option<(usize, usize)>,
    steps: Arc<AtomicUsize>,
    /// Steps that were prepared while another was under way.
    prepared: Arc<AtomicUsize>,
    loads: Arc<AtomicUsize>,
}

impl Load for Faults {
    fn load(&mut self) -> Result<Box<dyn Forward>> {
        let loads = self.loads.fetch_add(1, Ordering::Relaxed);
        if let Some((_, times)) = self.lost
            && (1..=times).contains(&loads)
        {
            return Err(failure());
        }
        Ok(Box::new(Fake {
            slots: vec![NOTHING; PAGES * PAGE_SIZE],
            plan: self.clone(),
            is_lost: false,
            sampled: None,
            prepared: None,
        }))
    }

    fn replace(&mut self, checkpoint: Checkpoint) -> Checkpoint {
        checkpoint
    }
}

fn failure() -> Error {
    Error::Device { device: "fake".to_owned(), reason: FAILURE.to_owned() }
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

const VOCAB: usize = 500;

fn next_token(seen: &[u32], seed: u64) -> u32 {
    seen.iter().fold(seed as u32, |sum, &token| sum.wrapping_mul(31).wrapping_add(token)) % VOCAB as u32
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

    fn check(&self) -> Result<()> {
        if self.is_lost { Err(failure()) } else { Ok(()) }
    }

    fn move_pages(&mut self, moves: &PageMoves) -> Result<()> {
        assert!(moves.is_empty(), "there is no other memory");
        Ok(())
    }

    fn fetch_time(&mut self) -> Result<Duration> {
        Ok(Duration::ZERO)
    }

    fn copy_pages(&mut self, pairs: &[[u32; 2]]) -> Result<()> {
        for pair in pairs {
            let [from, to] = pair.map(|page| page as usize * PAGE_SIZE);
            self.slots.copy_within(from..from + PAGE_SIZE, to);
        }
        Ok(())
    }

    fn overlaps(&self) -> bool {
        self.plan.overlaps
    }

    fn prepare(&mut self, batch: &Batch) -> Result<()> {
        self.prepared = Some(batch.clone());
        Ok(())
    }

    fn run(&mut self, batch: &Batch) -> Result<()> {
        self.step(batch, LogitEdits { rows: &[], edit: &mut |_, _| () }).map(|_| ())
    }

    fn sample(&mut self, batch: &Batch, edits: LogitEdits<'_>) -> Result<()> {
        let done = catch_unwind(AssertUnwindSafe(|| self.step(batch, edits)));
        if !self.plan.overlaps {
            self.sampled = Some(Ok(Ok(done.unwrap_or_else(|panic| resume_unwind(panic))?)));
        } else {
            self.sampled = Some(done);
        }
        Ok(())
    }

    fn sampled(&mut self) -> Result<Vec<Sampled>> {
        self.sampled.take().expect("a step").unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn target_logprobs(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.run(batch)?;
        Ok(batch.targets.iter().map(|&target| -(target as f32)).collect())
    }
}

impl Fake {
    fn step(&mut self, batch: &Batch, edits: LogitEdits<'_>) -> Result<Vec<Sampled>> {
        batch.check()?;
        if let Some(prepared) = self.prepared.take().filter(|prepared| prepared.layout == batch.layout) {
            // All but tokens and samples is as it was.
            let samples = batch.samples.clone();
            assert_eq!(prepared.samples.len(), samples.len());
            let now = Batch { tokens: batch.tokens.clone(), samples, ..prepared };
            assert_eq!(format!("{now:?}"), format!("{batch:?}"));
            self.plan.prepared.fetch_add(1, Ordering::Relaxed);
        }
        let Faults { faulty, poison, slow, lost, .. } = self.plan;
        let step = self.plan.steps.fetch_add(1, Ordering::Relaxed) + 1;
        self.is_lost |= lost.is_some_and(|(at, _)| at == step) || (faulty && step.is_multiple_of(97));
        if self.is_lost || (faulty && step.is_multiple_of(23)) {
            return Err(failure());
        }
        if let Some(at) = batch.tokens.iter().position(|&token| Some(token) == poison) {
            return Err(Error::operator("fake", "tokens", "no poison", format!("some at {at}")));
        }
        self.write(batch);
        if let Some((_, long)) = slow.filter(|(at, _)| *at == step) {
            thread::sleep(long);
        }
        if faulty && step.is_multiple_of(41) {
            // A panic without the message on standard error.
            resume_unwind(Box::new(FAILURE));
        }
        let rows = batch.logit_rows.iter().zip(&batch.samples).enumerate();
        let sampled = |(i, (&row, sample)): (usize, (&u32, &SampleRow))| {
            let mut token = next_token(&self.seen(batch, row), sample.seed);
            if edits.rows.contains(&i) {
                let mut logits = vec![0.0; VOCAB];
                logits[token as usize] = 1.0;
                (edits.edit)(i, &mut logits);
                token = (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
            }
            Sampled { token, logprob: 0.0 }
        };
        Ok(rows.map(sampled).collect())
    }
}

struct Lab {
    commands: mpsc::Sender<Command>,
    worker: Option<Worker>,
    incidents: mpsc::Receiver<Incident>,
    keys: u64,
}

struct Asked {
    key: u64,
    /// What its tokens are to follow.
    prompt: Vec<u32>,
    /// Of its draws.
    seed: u64,
    max_tokens: usize,
    events: Receiver<Event>,
}

impl Lab {
    fn new(faults: Faults) -> Self {
        let rope = RopeSpec { rotary_dim: 2, theta: 1e4, kind: RopeKind::Default };
        let policy = Policy { step_tokens: 32, max_running: 8, min_chunk: 8, reserve: 4, ..Policy::default() };
        let cache = CacheSize { blocks: PAGES, block_size: PAGE_SIZE, window: None, balance: 100 };
        let (commands, receiver) = mpsc::channel();
        let runner = Runner::new(Box::new(faults), Batcher::new(rope.table(), PAGE_SIZE)).unwrap();
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
    fn start(&mut self) -> thread::JoinHandle<()> {
        let worker = self.worker.take().unwrap();
        thread::spawn(|| worker.run())
    }

    fn score(&self, prompt: Vec<u32>) -> mpsc::Receiver<Result<Vec<f32>>> {
        let (reply, scores) = mpsc::channel();
        let jobs = vec![Job { key: 0, kind: Kind::Score { logprobs: Vec::new(), reply } }];
        let submission = Submission { scored: true, ..Submission::new(prompt, 0) };
        self.commands.send(Command::Submit { at: Instant::now(), deadline: None, submission, jobs }).unwrap();
        scores
    }

    fn ask(&mut self, prompt: Vec<u32>, max_tokens: usize, branches: usize, wait: Option<Duration>) -> Vec<Asked> {
        let (mut jobs, mut asked) = (Vec::new(), Vec::new());
        for _ in 0..branches {
            let (job, events) = self.job(max_tokens, None, Vec::new());
            jobs.push(job);
            asked.push(Asked { key: self.keys, prompt: prompt.clone(), seed: self.keys, max_tokens, events });
        }
        self.submit(Submission { branches, ..Submission::new(prompt, max_tokens) }, jobs, wait);
        asked
    }

    fn submit(&self, submission: Submission, jobs: Vec<Job>, wait: Option<Duration>) {
        let at = Instant::now();
        let deadline = wait.map(|wait| at + wait);
        self.commands.send(Command::Submit { at, deadline, submission, jobs }).unwrap();
    }

    /// Guided by nothing but the other prompt: that is a scale of 0.
    fn ask_guided(&mut self, prompt: Vec<u32>, negative: Vec<u32>, max_tokens: usize) -> Asked {
        let (job, events) = self.job(max_tokens, Some(0.0), Vec::new());
        let asked = Asked { key: job.key, prompt: negative.clone(), seed: 0, max_tokens, events };
        let contrast = Some(Contrast { prompt: negative, salt: 0 });
        self.submit(Submission { contrast, ..Submission::new(prompt, max_tokens) }, vec![job], None);
        asked
    }

    fn job(
        &mut self,
        max_tokens: usize,
        guidance: Option<f32>,
        processors: Vec<LogitsProcessor>,
    ) -> (Job, Receiver<Event>) {
        self.keys += 1;
        let (consumer, events) = channel();
        let sampling = Sampling { seed: Some(self.keys), ..Sampling::default() };
        let rules = Rules {
            sampling: sampling.resolve(&GenerationConfig::default(), 1000).unwrap(),
            repetition: Arc::default(),
            detector: None,
            max_tokens,
            min_tokens: 0,
            eos: (0..10).collect(),
            ignore_eos: false,
            guide: None,
            guidance,
            processors,
        };
        (Job { key: self.keys, kind: Kind::Generate { rules, consumer } }, events)
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
    for overlaps in [false, true] {
        let mut lab = Lab::new(Faults { overlaps, faulty: true, ..Faults::default() });
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
            if i % 13 == 0 {
                asked.push(lab.ask_guided(vec![3; 1 + i % 20], vec![5; 1 + i % 31], 1 + i % 30));
            }
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
        assert!(status.stats.cached_tokens > 0 && status.stats.retries > 0 && status.restarts > 1);
        // A step in which no fault is due: the requests before have left their number of steps to chance.
        let again = (0..3).any(|_| outcome(&lab.ask(vec![1, 2, 3], 2, 1, None)[0]) == "finished");
        assert!(again);
        lab.commands.send(Command::Stop).unwrap();
        thread.join().unwrap();
    }
}

/// A token is handed out when the device has its next step, and that was prepared before the token was known.
#[test]
fn a_device_that_works_on_its_own_has_the_next_step_before_the_last_is_spoken_of() {
    for overlaps in [false, true] {
        let faults = Faults { overlaps, ..Faults::default() };
        let mut lab = Lab::new(faults.clone());
        // No token that ends it comes early.
        let asked = lab.ask(vec![112, 2, 3, 4, 5, 6], 12, 1, None).remove(0);
        let thread = lab.start();
        for number in 1..=12 {
            assert!(matches!(asked.events.wait(), Some(Event::Token { .. })));
            let begun = faults.steps.load(Ordering::Relaxed);
            assert!(begun >= if overlaps { 12.min(number + 1) } else { number }, "{begun} steps, {number} tokens");
        }
        lab.commands.send(Command::Stop).unwrap();
        thread.join().unwrap();
        assert_eq!(faults.prepared.load(Ordering::Relaxed), if overlaps { 11 } else { 0 });
    }
}

/// What goes wrong in a request's own code ends that request, and the others of its steps go on.
#[test]
fn a_processor_that_fails_ends_its_own_request() {
    for overlaps in [false, true] {
        let mut lab = Lab::new(Faults { overlaps, ..Faults::default() });
        let good = lab.ask(vec![111, 2, 3, 4, 5, 6], 12, 1, None).remove(0);
        let wrong = || Error::request("mine", "something", "something else");
        let fail = LogitsProcessor::new(move |context, _| if context.tokens.len() > 5 { Err(wrong()) } else { Ok(()) });
        let panic = LogitsProcessor::new(|context, _| match context.tokens.len() - context.prompt_len {
            0..2 => Ok(()),
            _ => resume_unwind(Box::new(FAILURE)),
        });
        let not_a_number = LogitsProcessor::new(|_, logits| {
            logits[7] = f32::NAN;
            Ok(())
        });
        let nothing = LogitsProcessor::new(|_, logits| {
            logits.fill(f32::NEG_INFINITY);
            Ok(())
        });
        let cases = [
            (fail, 2, "mine: expected something"),
            (panic, 2, "found a panic"),
            (not_a_number, 0, "found NaN for token 7"),
            (nothing, 0, "a token that is left"),
        ];
        let asked = cases.map(|(processor, tokens, message)| {
            let (job, events) = lab.job(12, None, vec![processor]);
            // No token that ends it comes early.
            lab.submit(Submission::new(vec![111, 2, 3, 4], 12), vec![job], None);
            (events, tokens, message)
        });
        let thread = lab.start();
        for (events, tokens, message) in asked {
            for _ in 0..tokens {
                assert!(matches!(events.wait(), Some(Event::Token { .. })), "{message}");
            }
            match events.wait() {
                Some(Event::Failed(error)) => assert!(error.to_string().contains(message), "{error}"),
                _ => panic!("no error: {message}"),
            }
        }
        assert_eq!(outcome(&good), "finished");
        let status = lab.status();
        assert_eq!((status.running, status.waiting, status.blocks.held, status.restarts), (0, 0, 0, 0));
        lab.commands.send(Command::Stop).unwrap();
        thread.join().unwrap();
    }
}

/// One request makes every step fail that it is in. The others are tried again, and answered.
#[test]
fn who_shares_a_step_with_a_poisonous_request_is_answered() {
    for overlaps in [false, true] {
        let mut lab = Lab::new(Faults { overlaps, poison: Some(777), ..Faults::default() });
        let good: Vec<Asked> = (0..5).flat_map(|i| lab.ask(vec![111 + i, 2, 3, 4, 5, 6], 12, 1, None)).collect();
        let bad = lab.ask(vec![111, 2, 3, 777], 12, 1, None).remove(0);
        let found = lab.score((0..40).collect());
        let thread = lab.start();
        while let Some(event) = bad.events.wait() {
            let Event::Failed(error) = event else { panic!("a token") };
            assert!(error.to_string().contains("no poison"), "{error}");
        }
        assert!(good.iter().all(|asked| outcome(asked) == "finished"));
        assert_eq!(found.recv().unwrap().unwrap(), scores(&(0..40).collect::<Vec<u32>>()));
        let status = lab.status();
        assert!(status.stats.retries > 1 && status.restarts == 0);
        assert_eq!((status.running, status.waiting, status.blocks.held), (0, 0, 0));
        lab.commands.send(Command::Stop).unwrap();
        thread.join().unwrap();
    }
}

/// The requests of the step end, others are computed again: nothing that was in the device's memory is believed.
#[test]
fn a_device_that_is_lost_is_set_up_anew_and_serves_on() {
    for overlaps in [false, true] {
        for times in [0, 3] {
            let mut lab = Lab::new(Faults { overlaps, lost: Some((3, times)), ..Faults::default() });
            // Eight run at a time.
            let asked: Vec<Asked> = (0..30).flat_map(|i| lab.ask(vec![7, 2, 3, 4, 5, 6, i], 12, 1, None)).collect();
            let thread = lab.start();
            let ends: Vec<_> = asked.iter().map(outcome).collect();
            let failed = ends.iter().filter(|&&end| end == "failed").count();
            let finished = ends.iter().filter(|&&end| end == "finished").count();
            assert!(failed > 0 && finished > 10 && failed + finished == 30, "{ends:?}");
            let down = lab.incidents.try_iter().filter(|incident| matches!(incident, Incident::Down { .. })).count();
            // Whoever finds it down tries once, and the step after that once more.
            assert_eq!(down, times.div_ceil(2));
            assert_eq!(lab.status().restarts, 1);
            lab.commands.send(Command::Stop).unwrap();
            thread.join().unwrap();
        }
    }
}

#[test]
fn a_step_that_hangs_is_reported_with_what_it_is() {
    let mut lab = Lab::new(Faults { slow: Some((9, Duration::from_millis(900))), ..Faults::default() });
    // No token that ends it comes early.
    let asked = lab.ask(vec![112, 2, 3, 4, 5, 6], 12, 1, None).remove(0);
    let thread = lab.start();
    let incident = lab.incidents.recv_timeout(Duration::from_secs(60)).unwrap();
    let Incident::SlowStep(slow) = &incident else { panic!("{incident}") };
    assert_eq!((slow.size.tokens, slow.size.sequences, slow.size.longest), (1, 1, 14));
    assert!(slow.expected.is_some(), "{incident}");
    assert_eq!(outcome(&asked), "finished");
    assert_eq!(lab.status().slow_steps, 1);
    lab.commands.send(Command::Stop).unwrap();
    thread.join().unwrap();
}

fn scores(of: &[u32]) -> Vec<f32> {
    of[1..].iter().map(|&token| -(token as f32)).collect()
}

#[test]
fn scores_come_in_order_whatever_the_cut() {
    for overlaps in [false, true] {
        let mut lab = Lab::new(Faults { overlaps, ..Faults::default() });
        let prompt: Vec<u32> = (0..100).collect();
        let found = lab.score(prompt.clone());
        lab.start();
        assert_eq!(found.recv().unwrap().unwrap(), scores(&prompt));
        // Again, and of a text that goes on differently: what is known is not computed.
        let other: Vec<u32> = (0..70).chain(200..260).collect();
        for (text, known) in [(&prompt, 96), (&other, 64)] {
            let before = lab.status().stats.cached_tokens;
            assert_eq!(lab.score(text.clone()).recv().unwrap().unwrap(), scores(text));
            assert_eq!(lab.status().stats.cached_tokens - before, known);
        }
    }
}

/// Seven that grow (no token that ends one comes early) leave no room for the last to come, which starts again later.
#[test]
fn a_score_that_was_preempted_has_every_token_once() {
    for overlaps in [false, true] {
        let mut lab = Lab::new(Faults { overlaps, ..Faults::default() });
        let asked: Vec<Asked> = (0..7).flat_map(|i| lab.ask(vec![111 + i, 2, 3, 4], 24, 1, None)).collect();
        let prompt: Vec<u32> = (0..200).collect();
        let found = lab.score(prompt.clone());
        lab.start();
        assert_eq!(found.recv().unwrap().unwrap(), scores(&prompt));
        assert!(asked.iter().all(|asked| outcome(asked) == "finished"));
        assert!(lab.status().stats.preemptions > 0);
    }
}
