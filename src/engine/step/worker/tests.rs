//! The step loop over a device that fails now and then.

mod fake;
mod lab;

use std::panic::resume_unwind;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::*;
use crate::engine::sampling::{ConstraintState, Guide, LogitsProcessor};
use crate::engine::step::incident::Incident;
use crate::error::Result;
use fake::{FAILURE, Faults, PAGE_SIZE, PAGES};
use lab::{Asked, Lab, outcome};

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
            (nothing, 0, "at least one token left"),
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

/// What is wrong with one row of a step ends that row's request, and the step is not tried again.
#[test]
fn a_row_that_cannot_be_sampled_ends_its_own_request() {
    for overlaps in [false, true] {
        let mut lab = Lab::new(Faults { overlaps, ..Faults::default() });
        let good: Vec<Asked> = (0..3).flat_map(|i| lab.ask(vec![111 + i, 2, 3, 4, 5, 6], 12, 1, None)).collect();
        let bad = lab.ask_with(vec![111, 2, 3, 4], 12, |rules| rules.sampling.logit_bias = vec![(999_999, 1.0)]);
        let thread = lab.start();
        match bad.events.wait() {
            Some(Event::Failed(error)) => assert!(error.to_string().contains("found 999999"), "{error}"),
            _ => panic!("no error"),
        }
        assert!(good.iter().all(|asked| outcome(asked) == "finished"));
        assert_eq!(lab.status().stats.retries, 0);
        lab.commands.send(Command::Stop).unwrap();
        thread.join().unwrap();
    }
}

/// Where a constraint waits until its gate is opened: for its third mask, or for its second token.
#[derive(Clone, Copy, PartialEq)]
enum Gated {
    Allow,
    Advance,
}

/// Allows all tokens.
struct Slow {
    gated: Gated,
    masks: usize,
    tokens: usize,
    gate: Arc<Mutex<mpsc::Receiver<()>>>,
    /// What the second token leads to.
    end: fn() -> Result<bool>,
}

impl Slow {
    fn wait(&self) -> Result<()> {
        let opened = self.gate.lock().unwrap().recv_timeout(Duration::from_secs(60));
        opened.map_err(|_| Error::request("gate", "to be opened", "a closed one"))
    }
}

impl ConstraintState for Slow {
    fn allow(&mut self, mask: &mut [u32]) -> Result<()> {
        self.masks += 1;
        if self.gated == Gated::Allow && self.masks == 3 {
            self.wait()?;
        }
        mask.fill(u32::MAX);
        Ok(())
    }

    fn advance(&mut self, _token: u32) -> Result<bool> {
        self.tokens += 1;
        if self.tokens != 2 {
            return Ok(false);
        }
        if self.gated == Gated::Advance {
            self.wait()?;
        }
        (self.end)()
    }

    fn fork(&self) -> Box<dyn ConstraintState> {
        Box::new(Self { gate: Arc::clone(&self.gate), ..*self })
    }
}

/// A request with such a constraint for 12 tokens, none of which ends it; and what opens the gate.
fn ask_slow(lab: &mut Lab, gated: Gated, end: fn() -> Result<bool>) -> (Asked, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel();
    let slow = Slow { gated, masks: 0, tokens: 0, gate: Arc::new(Mutex::new(gate)), end };
    let asked = lab.ask_with(vec![111, 2, 3, 4, 5, 6], 12, |rules| {
        rules.end_tokens.clear();
        rules.guide = Some(Guide::new(Box::new(slow), 500, Vec::new(), None).unwrap());
    });
    (asked, open)
}

/// A constraint that takes its time keeps its own request waiting, and nobody else; it can be cancelled meanwhile.
#[test]
fn a_slow_constraint_holds_up_its_own_request_alone() {
    for overlaps in [false, true] {
        for (gated, before) in [(Gated::Allow, 2), (Gated::Advance, 1)] {
            let mut lab = Lab::new(Faults { overlaps, ..Faults::default() });
            let slow = [(); 2].map(|()| ask_slow(&mut lab, gated, || Ok(false)));
            let thread = lab.start();
            for (asked, _) in &slow {
                assert!((0..before).all(|_| matches!(asked.events.wait(), Some(Event::Token { .. }))));
            }
            // Beside others, and when nothing else is left to do.
            for i in 0..3 {
                assert_eq!(outcome(&lab.ask(vec![112 + i, 2, 3, 4, 5, 6], 12, 1, None)[0]), "finished");
            }
            assert_eq!(lab.status().running, 2);
            lab.commands.send(Command::Cancel(slow[1].0.key)).unwrap();
            assert_eq!(lab.status().running, 1);
            slow.iter().for_each(|(_, open)| open.send(()).unwrap());
            let mut tokens = before;
            while let Some(event) = slow[0].0.events.wait() {
                assert!(matches!(event, Event::Token { .. }));
                tokens += 1;
            }
            assert_eq!(tokens, 12);
            let status = lab.status();
            assert_eq!((status.running, status.waiting, status.blocks.held), (0, 0, 0));
            lab.commands.send(Command::Stop).unwrap();
            thread.join().unwrap();
        }
    }
}

/// A token is handed out once its constraint has accepted it, and says then whether it is the last.
#[test]
fn a_constraint_that_is_fulfilled_late_ends_its_request() {
    for overlaps in [false, true] {
        let mut lab = Lab::new(Faults { overlaps, ..Faults::default() });
        let fulfilled = ask_slow(&mut lab, Gated::Advance, || Ok(true));
        let stuck = ask_slow(&mut lab, Gated::Advance, || Err(Error::request("mine", "more", "nothing")));
        let thread = lab.start();
        assert_eq!(outcome(&lab.ask(vec![112, 2, 3, 4, 5, 6], 12, 1, None)[0]), "finished");
        for (asked, open) in [&fulfilled, &stuck] {
            assert!(matches!(asked.events.wait(), Some(Event::Token { finish: None, .. })));
            open.send(()).unwrap();
        }
        assert!(matches!(fulfilled.0.events.wait(), Some(Event::Token { finish: Some(FinishReason::Stop), .. })));
        assert!(fulfilled.0.events.wait().is_none());
        match stuck.0.events.wait() {
            Some(Event::Failed(error)) => assert!(error.to_string().starts_with("mine: expected more"), "{error}"),
            _ => panic!("no error"),
        }
        let status = lab.status();
        assert_eq!((status.running, status.waiting, status.blocks.held), (0, 0, 0));
        lab.commands.send(Command::Stop).unwrap();
        thread.join().unwrap();
    }
}

/// Steps fail and the device is set up again while a constraint is at work on a token: the sequence loses nothing.
#[test]
fn a_token_that_waits_for_its_constraint_outlives_the_device() {
    for overlaps in [false, true] {
        let mut lab = Lab::new(Faults { overlaps, lost: Some((9, 0)), ..Faults::default() });
        let (slow, open) = ask_slow(&mut lab, Gated::Advance, || Ok(false));
        let thread = lab.start();
        let other = lab.ask_with(vec![112, 2, 3, 4, 5, 6], 30, |rules| rules.end_tokens.clear());
        assert_eq!(outcome(&other), "failed");
        assert_eq!(lab.status().restarts, 1);
        open.send(()).unwrap();
        assert_eq!(outcome(&slow), "finished");
        lab.commands.send(Command::Stop).unwrap();
        thread.join().unwrap();
    }
}

/// Two failures that a request shared with others, one long after the other, do not end it.
#[test]
fn who_passed_one_retry_is_given_another() {
    for overlaps in [false, true] {
        let mut lab = Lab::new(Faults { overlaps, poison: Some(777), ..Faults::default() });
        let good = lab.ask_with(vec![112, 2, 3, 4, 5, 6], 200, |rules| rules.end_tokens.clear());
        let thread = lab.start();
        let mut tokens = 0;
        for _ in 0..3 {
            let bad = lab.ask(vec![111, 2, 3, 777], 12, 1, None).remove(0);
            let Some(Event::Failed(_)) = bad.events.wait() else { panic!("no error") };
            for _ in 0..8 {
                assert!(matches!(good.events.wait(), Some(Event::Token { .. })), "after {tokens}");
                tokens += 1;
            }
        }
        assert!(lab.status().stats.retries >= 3);
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

/// A GPU on which a kernel has faulted: nothing is loaded again, people are told once, and all requests end.
#[test]
fn a_device_that_is_lost_for_good_asks_for_a_restart_of_the_process() {
    for overlaps in [false, true] {
        let faults = Faults { overlaps, lost: Some((3, 0)), for_good: true, ..Faults::default() };
        let loads = faults.loads.clone();
        let mut lab = Lab::new(faults);
        // Eight run at a time.
        let asked: Vec<Asked> = (0..30).flat_map(|i| lab.ask(vec![7, 2, 3, 4, 5, 6, i], 12, 1, None)).collect();
        let thread = lab.start();
        let ends: Vec<_> = asked.iter().map(outcome).collect();
        // Those of the step that failed, and all others.
        assert!(ends.contains(&"failed") && ends.contains(&"lost"), "{ends:?}");
        assert!(ends.iter().all(|&end| end == "failed" || end == "lost"), "{ends:?}");
        let late = lab.ask(vec![1, 2, 3], 4, 1, None).remove(0);
        match late.events.wait() {
            Some(Event::Failed(error)) => assert!(error.to_string().ends_with("restart the process"), "{error}"),
            _ => panic!("no error"),
        }
        let incidents: Vec<_> = lab.incidents.try_iter().collect();
        let [Incident::Down { error, .. }] = &incidents[..] else { panic!("{incidents:?}") };
        assert!(error.ends_with("restart the process"), "{error}");
        assert_eq!((lab.status().restarts, loads.load(std::sync::atomic::Ordering::Relaxed)), (0, 1));
        lab.commands.send(Command::Stop).unwrap();
        thread.join().unwrap();
    }
}

/// #20950, the part of the report.
#[test]
fn issue_20950_a_step_that_hangs_is_reported_with_what_it_is() {
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
