//! Requests that wait, in the order in which they are begun.

use std::collections::BTreeSet;

use super::sequence::QueueKey;

/// All waiting requests; those with short prompts are listed a second time, so that they are found after any number of
/// long ones.
#[derive(Default)]
pub(super) struct Queue {
    all: BTreeSet<QueueKey>,
    short: BTreeSet<QueueKey>,
}

impl Queue {
    pub fn insert(&mut self, key: QueueKey, is_short: bool) {
        self.all.insert(key);
        if is_short {
            self.short.insert(key);
        }
    }

    pub fn remove(&mut self, key: &QueueKey) {
        self.all.remove(key);
        self.short.remove(key);
    }

    pub fn first(&self) -> Option<&QueueKey> {
        self.all.first()
    }

    pub fn iter(&self) -> impl Iterator<Item = &QueueKey> {
        self.all.iter()
    }

    /// Those with short prompts.
    pub fn short(&self) -> impl Iterator<Item = &QueueKey> {
        self.short.iter()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}
