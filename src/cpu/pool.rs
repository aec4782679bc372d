//! A small thread pool for loops of independent tasks.
//!
//! Workers watch a gate for a bounded time and then sleep. A job is open while its caller works on it; a worker that
//! wakes too late finds it closed, so a caller waits only for workers that have really begun. Tasks are claimed one by
//! one: a thread that the machine takes away for a while costs one task, not a share of the job.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker watches the gate: longer than the pauses inside a step, far shorter than those between
/// requests.
const WATCH: Duration = Duration::from_micros(200);
/// Looks at the gate before a waiting thread begins to offer its core to others.
const EAGER_LOOKS: u32 = 256;

/// A gate's bits: open, shut down, how many workers are inside, and above them the job's number.
const OPEN: u64 = 1;
const SHUTDOWN: u64 = 2;
const INSIDE: u64 = 4;
const INSIDE_MASK: u64 = 0xfffc;
const JOB: u64 = 1 << 16;

type Task<'a> = &'a (dyn Fn(usize, usize) + Sync);

struct Job {
    task: Task<'static>,
    tasks: usize,
}

struct Shared {
    gate: AtomicU64,
    next: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    asleep: AtomicUsize,
    bed: Mutex<()>,
    alarm: Condvar,
}

// SAFETY: `job` is written only by the thread that holds `Pool::caller` while the gate is closed and nobody is inside,
// and read only by workers that went in while it was open; both go through `gate` with acquire and release.
unsafe impl Sync for Shared {}

/// A pool of `threads - 1` workers and the calling thread.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    caller: Mutex<()>,
}

impl Pool {
    /// # Errors
    /// The system refuses a thread.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            asleep: AtomicUsize::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
        });
        let mut pool = Self { shared, workers: Vec::new(), caller: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let name = format!("burrstone-{index}");
            pool.workers.push(std::thread::Builder::new().name(name).spawn(move || shared.work(index))?);
        }
        Ok(pool)
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(thread, index)` once for each index below `tasks`, on any thread below [`Pool::threads`], in any
    /// order; returns when all are done. A panic of a task surfaces here. A task must not call this pool.
    pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(|index| task(0, index));
            return;
        }
        let shared = &*self.shared;
        let _one_caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: only the lifetime changes. The reference is used by workers inside the gate alone, and this function
        // does not return, nor unwind, before the gate is closed and they have left.
        let task_static = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: the gate is closed and empty (this thread saw that, or nobody ever opened it), so nobody reads.
        unsafe { *shared.job.get() = Some(Job { task: task_static, tasks }) };
        shared.next.store(0, Ordering::Relaxed);
        shared.gate.fetch_add(JOB | OPEN, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            let _bed = shared.bed.lock().unwrap_or_else(PoisonError::into_inner);
            shared.alarm.notify_all();
        }
        shared.claim(0, task, tasks);
        shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while shared.gate.load(Ordering::Acquire) & INSIDE_MASK != 0 {
            pause(&mut looks);
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(_one_caller);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// [`Pool::run`] with a value of its own for each thread: `scratch` has at least [`Pool::threads`] of them.
    pub(crate) fn run_with<T: Send>(&self, scratch: &mut [T], tasks: usize, task: &(dyn Fn(&mut T, usize) + Sync)) {
        assert!(scratch.len() >= self.threads(), "one scratch per thread");
        let base = Shareable::new(scratch.as_mut_ptr());
        self.run(tasks, &|thread, index| {
            // SAFETY: `thread` is below the length just checked, and no two threads of a job share an index, so each
            // reference is the only one to its element while it lives.
            task(unsafe { &mut *base.get().add(thread) }, index);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.gate.fetch_or(SHUTDOWN, Ordering::SeqCst);
        {
            let _bed = self.shared.bed.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.alarm.notify_all();
        }
        for worker in self.workers.drain(..) {
            // Tasks are caught, so a worker has nothing to panic with.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, thread: usize) {
        let mut last = 0;
        while let Some(job) = self.enter(last) {
            last = job;
            // SAFETY: this thread is inside the gate, so the caller leaves `job` as it is.
            if let Some(Job { task, tasks }) = unsafe { &*self.job.get() } {
                self.claim(thread, *task, *tasks);
            }
            self.gate.fetch_sub(INSIDE, Ordering::Release);
        }
    }

    /// Waits for a job other than `last` and goes in; `None` at shutdown.
    fn enter(&self, last: u64) -> Option<u64> {
        let mut looks = 0;
        let mut since = None;
        loop {
            let gate = self.gate.load(Ordering::SeqCst);
            if gate & SHUTDOWN != 0 {
                return None;
            }
            if gate & OPEN != 0 && gate / JOB != last {
                let inside = gate + INSIDE;
                if self.gate.compare_exchange_weak(gate, inside, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return Some(gate / JOB);
                }
                continue;
            }
            pause(&mut looks);
            if looks > EAGER_LOOKS && since.get_or_insert_with(Instant::now).elapsed() > WATCH {
                self.sleep(last);
                (looks, since) = (0, None);
            }
        }
    }

    fn sleep(&self, last: u64) {
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        // Counted before the gate is read again: a caller either sees the sleeper, or this thread sees the open gate.
        self.asleep.fetch_add(1, Ordering::SeqCst);
        loop {
            let gate = self.gate.load(Ordering::SeqCst);
            if gate & SHUTDOWN != 0 || (gate & OPEN != 0 && gate / JOB != last) {
                break;
            }
            bed = self.alarm.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }

    fn claim(&self, thread: usize, task: Task<'_>, tasks: usize) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(thread, index))) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
        }
    }
}

/// Waits a little: at first by doing nothing, later by letting others have the core.
fn pause(looks: &mut u32) {
    *looks = looks.saturating_add(1);
    if *looks < EAGER_LOOKS { std::hint::spin_loop() } else { std::thread::yield_now() }
}

/// A pointer that tasks may share because each touches its own part.
pub(crate) struct Shareable<T>(*mut T);

impl<T> Shareable<T> {
    pub(crate) fn new(pointer: *mut T) -> Self {
        Self(pointer)
    }

    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

impl<T> Clone for Shareable<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shareable<T> {}

// SAFETY: a pointer does nothing by itself; each place that dereferences one says why its part is its own.
unsafe impl<T: Send> Send for Shareable<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shareable<T> {}

/// Threads that this process can run at once: its cgroup's and affinity's share, and no more than physical cores.
pub(crate) fn available_threads() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    physical_cores().map_or(logical, |cores| logical.min(cores)).max(1)
}

/// Distinct cores among the processors that this process may use, where the system tells.
fn physical_cores() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = std::collections::BTreeSet::new();
    for cpu in allowed.trim().split(',') {
        let (first, last) = cpu.split_once('-').unwrap_or((cpu, cpu));
        for cpu in first.parse::<usize>().ok()?..=last.parse::<usize>().ok()? {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            cores.insert(std::fs::read_to_string(path).ok()?);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|thread, index| {
                    assert!(thread < threads);
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn sleepers_wake() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(3 * WATCH);
            let sum = AtomicUsize::new(0);
            pool.run(100, &|_, index| {
                sum.fetch_add(index, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn a_panic_surfaces_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| {
            pool.run(50, &|_, index| assert!(index != 31, "task 31"));
        }));
        assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"task 31"));
        let ran = AtomicBool::new(false);
        pool.run(2, &|_, _| ran.store(true, Ordering::Relaxed));
        assert!(ran.into_inner());
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        pool.run(10, &|_, index| {
                            sum.fetch_add(index, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 45);
                    }
                });
            }
        });
    }

    #[test]
    fn each_thread_has_its_scratch() {
        let pool = Pool::new(2).unwrap();
        let mut counts = [0usize; 2];
        pool.run_with(&mut counts, 64, &|count, _| *count += 1);
        assert_eq!(counts.iter().sum::<usize>(), 64);
    }
}
