//! A device whose memory holds tokens, and which fails now and then.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::device::Counters;
use crate::engine::step::runner::Load;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Forward};
use crate::ops::{Batch, LogitEdits, PageMoves, Rates, SampleRow, Sampled};

pub const PAGE_SIZE: usize = 4;
pub const PAGES: usize = 64;
pub const FAILURE: &str = "the device has failed";
/// What memory holds that nobody has written.
const NOTHING: u32 = 12_345;

/// Its memory holds tokens; the next token is a sum over all that a query sees.
struct Fake {
    slots: Vec<u32>,
    plan: Faults,
    is_lost: bool,
    /// What the step that was begun last chose.
    sampled: Option<thread::Result<Result<Vec<Result<Sampled>>>>>,
    prepared: Option<Batch>,
}

/// What goes wrong.
#[derive(Clone, Default)]
pub struct Faults {
    /// It does so when the step is waited for.
    pub overlaps: bool,
    /// Now and then a step fails, or panics, or the device with it.
    pub faulty: bool,
    /// A step with this token fails.
    pub poison: Option<u32>,
    /// This step takes so long.
    pub slow: Option<(usize, Duration)>,
    /// The device fails in this step, and so often when it is set up anew.
    pub lost: Option<(usize, usize)>,
    /// A device that is lost stays so.
    pub for_good: bool,
    pub steps: Arc<AtomicUsize>,
    /// Steps that were prepared while another was under way.
    pub prepared: Arc<AtomicUsize>,
    pub loads: Arc<AtomicUsize>,
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
        let at = |p: usize| {
            self.slots[batch.page_table.pages()[span.pages + p / PAGE_SIZE] as usize * PAGE_SIZE + p % PAGE_SIZE]
        };
        (0..=span.kv_len - span.len + row - span.start).map(at).collect()
    }
}

const VOCAB: usize = 500;

pub fn next_token(seen: &[u32], seed: u64) -> u32 {
    seen.iter().fold(seed as u32, |sum, &token| sum.wrapping_mul(31).wrapping_add(token)) % VOCAB as u32
}

impl Forward for Fake {
    fn weight_bytes(&self) -> u64 {
        0
    }

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

    fn fails_for_good(&self) -> bool {
        self.plan.for_good
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

    fn sampled(&mut self) -> Result<Vec<Result<Sampled>>> {
        self.sampled.take().expect("a step").unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn target_logprobs(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.run(batch)?;
        Ok(batch.targets.iter().map(|&target| -(target as f32)).collect())
    }
}

impl Fake {
    fn step(&mut self, batch: &Batch, edits: LogitEdits<'_>) -> Result<Vec<Result<Sampled>>> {
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
            sample.check(VOCAB)?;
            Ok(Sampled { token, logprob: 0.0 })
        };
        Ok(rows.map(sampled).collect())
    }
}
