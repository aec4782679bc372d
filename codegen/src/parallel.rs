//! Work over all cores, or over as many as cargo leaves to a build script.

use std::num::NonZero;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use jobserver::{Acquired, Client};

/// How many things this machine does at a time.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// `work` on each item, as many at a time as there are cores; the results in the items' order. In a build script each
/// thread but the first one takes a token of cargo's jobserver for each item, so that no more runs than cargo allows.
pub fn map<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    map_with(cargo(), items, work)
}

fn map_with<T: Send, R: Send>(tokens: Option<&Client>, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let workers = cores().min(items.len());
    let count = items.len();
    let queue = Mutex::new(items.into_iter().enumerate());
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let take = || lock().next();
    let one = || {
        let mut done = Vec::new();
        while let Some((index, item)) = take() {
            done.push((index, work(item)));
        }
        done
    };
    let more = || {
        let mut done = Vec::new();
        while let Some(_token) = token(tokens, || lock().len() > 0) {
            let Some((index, item)) = take() else { break };
            done.push((index, work(item)));
        }
        done
    };
    let mut results = std::thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(more)).collect();
        let mut results = one();
        let join =
            |other: ScopedJoinHandle<'_, _>| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        results.extend(others.into_iter().flat_map(join));
        results
    });
    debug_assert_eq!(results.len(), count);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The jobserver of the cargo that runs this process as a build script.
fn cargo() -> Option<&'static Client> {
    static CLIENT: OnceLock<Option<Client>> = OnceLock::new();
    // SAFETY: cargo leaves the pipe open that it names, nobody here closes it, and another file of that number is refused.
    CLIENT.get_or_init(|| unsafe { Client::from_env_ext(true) }.client.ok()).as_ref()
}

/// Leave to use one more core, where there is a jobserver by its token. Waits as long as work is left; then `None`.
fn token(tokens: Option<&Client>, is_left: impl Fn() -> bool) -> Option<Option<Acquired>> {
    const PAUSE: Duration = Duration::from_millis(10);
    while is_left() {
        let Some(client) = tokens else { return Some(None) };
        match client.try_acquire() {
            Ok(Some(token)) => return Some(Some(token)),
            Ok(None) => std::thread::sleep(PAUSE),
            // This system can only wait.
            Err(_) => return client.acquire().ok().map(Some),
        }
    }
    None
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
            std::thread::sleep(Duration::from_millis(1));
            running.fetch_sub(1, Ordering::SeqCst);
            i
        };
        let none_left = Client::new(1).unwrap();
        let token = none_left.acquire().unwrap();
        assert_eq!(map_with(Some(&none_left), (0..50).collect(), work), (0..50).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::SeqCst), 1);
        drop(token);
        assert_eq!(map_with(Some(&none_left), (0..50).collect(), work), (0..50).collect::<Vec<_>>());
        assert!(most.load(Ordering::SeqCst) <= 2);
    }
}
