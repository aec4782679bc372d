//! A queue between two threads, one of which may be a task: the receiver waits either way.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

struct Queue<T> {
    items: VecDeque<T>,
    closed: bool,
    waker: Option<Waker>,
}

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    filled: Condvar,
}

impl<T> Shared<T> {
    fn queue(&self) -> MutexGuard<'_, Queue<T>> {
        // Nothing that runs under the lock leaves the queue half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Queue<T>)) {
        let mut queue = self.queue();
        change(&mut queue);
        let waker = queue.waker.take();
        drop(queue);
        self.filled.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Dropping it ends the receiver's items.
pub struct Sender<T>(Arc<Shared<T>>);

pub struct Receiver<T>(Arc<Shared<T>>);

pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let queue = Mutex::new(Queue { items: VecDeque::new(), closed: false, waker: None });
    let shared = Arc::new(Shared { queue, filled: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    pub fn send(&self, item: T) {
        self.0.change(|queue| queue.items.push_back(item));
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.change(|queue| queue.closed = true);
    }
}

impl<T> Receiver<T> {
    /// Waits for the next item; `None` where none will come.
    pub fn wait(&self) -> Option<T> {
        let mut queue = self.0.queue();
        loop {
            match queue.items.pop_front() {
                None if !queue.closed => queue = self.0.filled.wait(queue).unwrap_or_else(PoisonError::into_inner),
                item => return item,
            }
        }
    }

    /// The next item, for a task.
    pub fn poll(&self, context: &Context<'_>) -> Poll<Option<T>> {
        let mut queue = self.0.queue();
        match queue.items.pop_front() {
            None if !queue.closed => {
                queue.waker = Some(context.waker().clone());
                Poll::Pending
            }
            item => Poll::Ready(item),
        }
    }
}
