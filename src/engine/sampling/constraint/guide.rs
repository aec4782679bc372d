//! One sequence's way through its constraint: the mask of its next token is computed while the step loop goes on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use super::ConstraintState;
use crate::engine::sampling::guarded::{defect, guarded};
use crate::error::{Error, Result};
use crate::ops::{Mask, MaskPromise};

/// What errors call it.
const CONSTRAINT: &str = "constraint";

/// A thread that computes masks. It ends when nobody can ask it any more.
#[derive(Clone)]
pub struct Masks(mpsc::Sender<Task>);

struct Task {
    way: Arc<Mutex<Way>>,
    promise: MaskPromise,
}

/// A sequence's constraint.
pub struct Guide {
    way: Arc<Mutex<Way>>,
    /// Of the next token.
    mask: Mask,
    masks: Masks,
}

struct Way {
    state: Box<dyn ConstraintState>,
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
            for Task { way, promise } in receiver {
                let mut way = lock(&way);
                match way.mask() {
                    Ok(words) => promise.keep(words),
                    // Whatever token comes is not handed out: see `Guide::advance`.
                    Err(error) => way.failed = Some(error),
                }
            }
        };
        thread::Builder::new().name("burrstone-masks".to_owned()).spawn(work)?;
        Ok(Self(tasks))
    }
}

impl Way {
    fn mask(&mut self) -> Result<Vec<u32>> {
        let mut words = vec![0; self.vocab.div_ceil(32)];
        let state = &mut self.state;
        guarded(CONSTRAINT, || state.allow(&mut words))?;
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
    /// At the start of a constraint over a vocabulary of `vocab` tokens, of which `never` are banned, all below `vocab`.
    ///
    /// # Errors
    /// No token may come first.
    pub fn new(state: Box<dyn ConstraintState>, vocab: usize, never: Vec<u32>, masks: Masks) -> Result<Self> {
        let mut way = Way { state, vocab, never, failed: None };
        let mask = Mask::new(way.mask()?);
        Ok(Self { way: Arc::new(Mutex::new(way)), mask, masks })
    }

    /// Which tokens may come next.
    pub fn mask(&self) -> Mask {
        self.mask.clone()
    }

    /// Goes on by a token, and has the next mask computed. True where the constraint is fulfilled and nothing may follow.
    ///
    /// # Errors
    /// There was no mask for this token, or the constraint does not go on after it.
    pub fn advance(&mut self, token: u32) -> Result<bool> {
        let mut way = lock(&self.way);
        if let Some(error) = way.failed.take() {
            return Err(error);
        }
        let state = &mut way.state;
        if guarded(CONSTRAINT, || state.advance(token))? {
            return Ok(true);
        }
        let (mask, promise) = Mask::promised();
        self.mask = mask;
        // Without the thread the promise is dropped, and the next token is as good as none.
        let task = Task { way: Arc::clone(&self.way), promise };
        self.masks.0.send(task).map_err(|_| defect(CONSTRAINT, "the end of the thread that computes masks"))?;
        Ok(false)
    }

    /// The same way so far, for another sequence.
    pub fn fork(&self) -> Self {
        let way = lock(&self.way);
        let forked = Way { state: way.state.fork(), vocab: way.vocab, never: way.never.clone(), failed: None };
        Self { way: Arc::new(Mutex::new(forked)), mask: self.mask.clone(), masks: self.masks.clone() }
    }
}

fn lock(way: &Mutex<Way>) -> MutexGuard<'_, Way> {
    // Nothing that may panic runs unguarded under the lock.
    way.lock().unwrap_or_else(PoisonError::into_inner)
}
