//! The constraint of one sequence: its state, and the mask of its next token, which a thread of its own computes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use super::ConstraintState;
use crate::engine::sampling::guarded::{defect, guarded};
use crate::error::{Error, Result};
use crate::ops::{Mask, MaskPromise};

/// What errors call it.
const CONSTRAINT: &str = "constraint";

/// A thread that computes masks, one after another. It ends when all handles are dropped.
#[derive(Clone)]
pub struct Masks(mpsc::Sender<Task>);

struct Task {
    state: Arc<Mutex<MaskState>>,
    promise: MaskPromise,
}

/// A sequence's constraint.
pub struct Guide {
    state: Arc<Mutex<MaskState>>,
    /// Of the next token.
    mask: Mask,
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
            for Task { state, promise } in receiver {
                let mut state = lock(&state);
                match state.mask() {
                    Ok(words) => promise.keep(words),
                    // The token that is chosen without a mask is not handed out: see `Guide::advance`.
                    Err(error) => state.failed = Some(error),
                }
            }
        };
        thread::Builder::new().name("burrstone-masks".to_owned()).spawn(work)?;
        Ok(Self(tasks))
    }
}

impl MaskState {
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
        Ok(Self { state: Arc::new(Mutex::new(state)), mask, has_own_thread: masks.is_none(), masks })
    }

    /// Which tokens may come next.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Goes on by a token, and has the next mask computed. True where the constraint is fulfilled and nothing may
    /// follow.
    ///
    /// # Errors
    /// There was no mask for this token, the constraint does not go on after it, or the system has no thread left.
    pub fn advance(&mut self, token: u32) -> Result<bool> {
        let mut state = lock(&self.state);
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        let constraint = &mut state.constraint;
        if guarded(CONSTRAINT, || constraint.advance(token))? {
            return Ok(true);
        }
        drop(state);
        let masks = match self.masks.take() {
            Some(masks) => masks,
            None => Masks::start().map_err(|cause| Error::request(CONSTRAINT, "a thread for its masks", cause))?,
        };
        let (mask, promise) = Mask::promised();
        self.mask = mask;
        let task = Task { state: Arc::clone(&self.state), promise };
        let masks = self.masks.insert(masks);
        masks.0.send(task).map_err(|_| defect(CONSTRAINT, "the end of the thread that computes masks"))?;
        Ok(false)
    }

    /// The same state, for another sequence.
    pub fn fork(&self) -> Self {
        let state = lock(&self.state);
        let (constraint, never) = (state.constraint.fork(), state.never.clone());
        let forked = MaskState { constraint, vocab: state.vocab, never, failed: None };
        let masks = self.masks.clone().filter(|_| !self.has_own_thread);
        let (mask, has_own_thread) = (self.mask.clone(), self.has_own_thread);
        Self { state: Arc::new(Mutex::new(forked)), mask, masks, has_own_thread }
    }
}

fn lock(state: &Mutex<MaskState>) -> MutexGuard<'_, MaskState> {
    // Callers' code, which may panic, is guarded.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
