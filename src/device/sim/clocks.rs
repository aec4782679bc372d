//! Happens-before order of accesses, by vector clocks.
//!
//! Each thread counts its epochs; a release (a barrier, an arrival) ends one. A thread knows, for each other thread,
//! the last epoch that is ordered before its own next step. Threads that have passed the same barrier share that
//! vector, so that a barrier of a whole block costs one vector, not one a thread.

use std::rc::Rc;

/// The last epoch of each thread that happened before a thread's next step.
pub(super) type Known = Rc<[u32]>;

#[derive(Debug, Default)]
pub(super) struct Clocks {
    /// The current epoch of each thread, from 1.
    epoch: Vec<u32>,
    known: Vec<Known>,
    /// The last epoch of each thread that is covered by its `fence_async`.
    fenced: Vec<u32>,
}

impl Clocks {
    pub(super) fn reset(&mut self, threads: usize) {
        self.epoch.clear();
        self.epoch.resize(threads, 1);
        self.fenced.clear();
        self.fenced.resize(threads, 0);
        let nothing: Known = vec![0; threads].into();
        self.known.clear();
        self.known.resize(threads, nothing);
    }

    pub(super) fn epoch(&self, thread: usize) -> u32 {
        self.epoch[thread]
    }

    /// Makes the writes of `thread` so far visible to the async proxy.
    pub(super) fn fence(&mut self, thread: usize) {
        self.fenced[thread] = self.epoch[thread];
        self.epoch[thread] += 1;
    }

    pub(super) fn is_fenced(&self, thread: usize, epoch: u32) -> bool {
        epoch <= self.fenced[thread]
    }

    /// Whether what `other` did in `epoch` happened before the next step of `thread`.
    pub(super) fn ordered(&self, other: usize, epoch: u32, thread: usize) -> bool {
        other == thread || epoch <= self.known[thread][other]
    }

    /// A barrier: what each thread did before it happens before what any does after it.
    pub(super) fn meet(&mut self, threads: impl Iterator<Item = usize> + Clone) {
        let mut all = self.nothing();
        let mut last: Option<Known> = None;
        for thread in threads.clone() {
            // Neighbouring threads mostly share a vector from the last barrier.
            let known = &self.known[thread];
            if !last.as_ref().is_some_and(|last| Rc::ptr_eq(last, known)) {
                all.iter_mut().zip(known.iter()).for_each(|(a, b)| *a = (*a).max(*b));
                last = Some(known.clone());
            }
            all[thread] = all[thread].max(self.epoch[thread]);
            self.epoch[thread] += 1;
        }
        let all: Known = all.into();
        for thread in threads {
            self.known[thread] = all.clone();
        }
    }

    pub(super) fn nothing(&self) -> Vec<u32> {
        vec![0; self.epoch.len()]
    }

    /// Release by `thread`: its steps so far happen before those of a thread that acquires `into`.
    pub(super) fn release(&mut self, thread: usize, into: &mut [u32]) {
        into.iter_mut().zip(self.known[thread].iter()).for_each(|(a, b)| *a = (*a).max(*b));
        into[thread] = into[thread].max(self.epoch[thread]);
        self.epoch[thread] += 1;
    }

    /// Acquire by `thread`: all that was released into `from` happens before its next step.
    pub(super) fn acquire(&mut self, thread: usize, from: &[u32]) {
        let known = &self.known[thread];
        if from.iter().zip(known.iter()).any(|(a, b)| a > b) {
            self.known[thread] = from.iter().zip(known.iter()).map(|(a, b)| *a.max(b)).collect();
        }
    }
}
