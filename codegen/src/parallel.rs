//! Runs work on all cores, or on as many as cargo allows a build script.

use std::num::NonZero;
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread::ScopedJoinHandle;

use jobserver::Client;

/// The number of cores.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Runs `work` on each item in parallel; results are in the items' order. In a build script each thread but the first
/// waits for a token of cargo's jobserver, so that no more run than cargo allows.
pub fn map<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    map_with(cargo(), items, work)
}

fn map_with<T: Send, R: Send>(tokens: Option<&Client>, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let others = cores().min(items.len()).saturating_sub(1);
    let count = items.len();
    let queue = Mutex::new(items.into_iter().enumerate());
    let take = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let one_core = || {
        let mut done = Vec::new();
        while let Some((index, item)) = take() {
            done.push((index, work(item)));
        }
        done
    };
    // A message lets a thread work; with a jobserver it carries the token.
    let (sender, receiver) = mpsc::channel();
    let asking = match tokens {
        None => {
            (0..others).for_each(|_| drop(sender.send(None)));
            drop(sender);
            None
        }
        Some(client) => {
            // A token that arrives after the end is returned with the channel.
            let pass_on = move |token: std::io::Result<_>| drop(token.map(|token| sender.send(Some(token))));
            // If that thread cannot start there are no tokens, and one core works.
            client.clone().into_helper_thread(pass_on).ok()
        }
    };
    asking.iter().for_each(|asking| (0..others).for_each(|_| asking.request_token()));
    let receiver = Mutex::new(receiver);
    let mut results = std::thread::scope(|scope| {
        let other = || {
            let token = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            token.map_or_else(|_| Vec::new(), |_token| one_core())
        };
        let others: Vec<_> = (0..others).map(|_| scope.spawn(other)).collect();
        let mut results = one_core();
        // Ends the wait of the threads without a token.
        drop(asking);
        let join =
            |other: ScopedJoinHandle<'_, _>| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        results.extend(others.into_iter().flat_map(join));
        results
    });
    debug_assert_eq!(results.len(), count);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The jobserver of cargo, if this is a build script.
fn cargo() -> Option<&'static Client> {
    static CLIENT: OnceLock<Option<Client>> = OnceLock::new();
    // SAFETY: cargo keeps the pipe open, nothing here closes it, and a file of another kind with that number is
    // refused.
    CLIENT.get_or_init(|| unsafe { Client::from_env_ext(true) }.client.ok()).as_ref()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_keep_the_order_of_their_items() {
        assert_eq!(map((0..100).collect(), |i| i * i), (0..100).map(|i| i * i).collect::<Vec<_>>());
        assert_eq!(map(Vec::<u32>::new(), |i| i), []);
    }

    #[test]
    fn without_a_token_one_item_is_worked_on_at_a_time() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |i: u64| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(1));
            running.fetch_sub(1, Ordering::SeqCst);
            i
        };
        let client = Client::new(1).unwrap();
        let token = client.acquire().unwrap();
        assert_eq!(map_with(Some(&client), (0..50).collect(), work), (0..50).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::SeqCst), 1);
        drop(token);
        assert_eq!(map_with(Some(&client), (0..50).collect(), work), (0..50).collect::<Vec<_>>());
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert_eq!(client.available().unwrap(), 1, "the token was returned");
    }
}
