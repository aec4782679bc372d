//! The constraint of one sequence: a thread beside the step loop's takes its tokens and computes their masks.

use std::collections::VecDeque;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::ConstraintState;
use crate::engine::sampling::guarded::{defect, guarded};
use crate::error::{Error, Result};
use crate::ops::{Mask, MaskPromise};

/// What errors call it.
const CONSTRAINT: &str = "constraint";
const ENDED: &str = "the end of the thread that runs it";

/// A thread that runs constraints, one after another. It ends when all handles are dropped.
#[derive(Clone)]
pub struct Masks(mpsc::Sender<Task>);

/// A token that a constraint goes on by.
struct Task {
    state: Arc<Mutex<MaskState>>,
    token: u32,
    /// Whether the constraint is fulfilled and nothing may follow.
    advanced: mpsc::Sender<Result<bool>>,
    /// Of the mask after the token.
    promise: MaskPromise,
}

/// A sequence's constraint.
pub struct Guide {
    state: Arc<Mutex<MaskState>>,
    /// Of the next token.
    mask: Mask,
    /// The result of the last token, until it is taken.
    advanced: Option<mpsc::Receiver<Result<bool>>>,
    /// `None` until the first token of a sequence that has a thread of its own.
    masks: Option<Masks>,
    has_own_thread: bool,
}

struct MaskState {
    constraint: Box<dyn ConstraintState>,
    vocab: usize,
    /// Tokens that never may come: those with a bias of −∞.
    never: Vec<u32>,
    /// Why there is no mask for the next token, if there is none.
    failed: Option<Error>,
}

impl Masks {
    /// # Errors
    /// The system has no thread left.
    pub fn start() -> std::io::Result<Self> {
        let (tasks, receiver) = mpsc::channel::<Task>();
        let work = move || {
            // The step loop waits for all tokens of a step before it waits for the first mask.
            let mut unmasked = VecDeque::new();
            loop {
                let task = if unmasked.is_empty() { receiver.recv().ok() } else { receiver.try_recv().ok() };
                if let Some(task) = task {
                    unmasked.extend(task.advance());
                } else if let Some((state, promise)) = unmasked.pop_front() {
                    mask(&state, promise);
                } else {
                    return;
                }
            }
        };
        thread::Builder::new().name("burrstone-masks".to_owned()).spawn(work)?;
        Ok(Self(tasks))
    }
}

impl Task {
    /// Goes on by the token. Returns what the mask after it needs, where another token may follow.
    fn advance(self) -> Option<(Arc<Mutex<MaskState>>, MaskPromise)> {
        let Self { state, token, advanced, promise } = self;
        let result = lock(&state).advance(token);
        let goes_on = matches!(result, Ok(false));
        // The sequence may have ended.
        let _ = advanced.send(result);
        goes_on.then_some((state, promise))
    }
}

fn mask(state: &Mutex<MaskState>, promise: MaskPromise) {
    let mut state = lock(state);
    match state.mask() {
        Ok(words) => promise.keep(words),
        // The token that is chosen without a mask is not handed out: see `MaskState::advance`.
        Err(error) => state.failed = Some(error),
    }
}

impl MaskState {
    fn advance(&mut self, token: u32) -> Result<bool> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => guarded(CONSTRAINT, || self.constraint.advance(token)),
        }
    }

    fn mask(&mut self) -> Result<Vec<u32>> {
        let mut words = vec![0; self.vocab.div_ceil(32)];
        let constraint = &mut self.constraint;
        guarded(CONSTRAINT, || constraint.allow(&mut words))?;
        for &token in &self.never {
            words[token as usize / 32] &= !(1 << (token % 32));
        }
        if !self.vocab.is_multiple_of(32)
            && let Some(last) = words.last_mut()
        {
            *last &= (1 << (self.vocab % 32)) - 1;
        }
        if words.iter().all(|word| *word == 0) {
            let found = "none but those that are banned";
            return Err(Error::request(CONSTRAINT, "a token that may come next", found));
        }
        Ok(words)
    }
}

impl Guide {
    /// At the start of a constraint over a vocabulary of `vocab` tokens, of which `never` are banned, all below
    /// `vocab`. Without `masks` the sequence gets a thread of its own with its first token.
    ///
    /// # Errors
    /// No token may come first.
    pub fn new(
        constraint: Box<dyn ConstraintState>,
        vocab: usize,
        never: Vec<u32>,
        masks: Option<Masks>,
    ) -> Result<Self> {
        let mut state = MaskState { constraint, vocab, never, failed: None };
        let mask = Mask::new(state.mask()?);
        let has_own_thread = masks.is_none();
        Ok(Self { state: Arc::new(Mutex::new(state)), mask, advanced: None, masks, has_own_thread })
    }

    /// Which tokens may come next.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Has the constraint go on by a token, and the next mask computed.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn advance(&mut self, token: u32) -> Result<()> {
        let masks = match self.masks.take() {
            Some(masks) => masks,
            None => Masks::start().map_err(|cause| Error::request(CONSTRAINT, "a thread of its own", cause))?,
        };
        let (mask, promise) = Mask::promised();
        let (advanced, receiver) = mpsc::channel();
        let task = Task { state: Arc::clone(&self.state), token, advanced, promise };
        (self.mask, self.advanced) = (mask, Some(receiver));
        self.masks.insert(masks).0.send(task).map_err(|_| defect(CONSTRAINT, ENDED))
    }

    /// Whether the constraint is fulfilled by the last token, so that nothing may follow. `None` where it has not gone
    /// on by the token before the deadline.
    ///
    /// # Errors
    /// There was no mask for the token, or the constraint does not go on after it.
    pub fn advanced(&mut self, deadline: Instant) -> Option<Result<bool>> {
        let Some(receiver) = &self.advanced else { return Some(Ok(false)) };
        let result = match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => Err(defect(CONSTRAINT, ENDED)),
        };
        self.advanced = None;
        Some(result)
    }

    /// The same state, for another sequence.
    pub fn fork(&self) -> Self {
        let state = lock(&self.state);
        let (constraint, never) = (state.constraint.fork(), state.never.clone());
        let forked = MaskState { constraint, vocab: state.vocab, never, failed: None };
        let masks = self.masks.clone().filter(|_| !self.has_own_thread);
        let (mask, has_own_thread) = (self.mask.clone(), self.has_own_thread);
        Self { state: Arc::new(Mutex::new(forked)), mask, advanced: None, masks, has_own_thread }
    }
}

fn lock(state: &Mutex<MaskState>) -> MutexGuard<'_, MaskState> {
    // Callers' code, which may panic, is guarded.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
