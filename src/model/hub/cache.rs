//! A model's folder in the cache that all Hugging Face tools share, `models--org--name/{blobs,refs,snapshots}`, and the
//! locks on its blobs in `.locks`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How often a process that waits for another looks again.
const POLL: Duration = Duration::from_millis(100);

/// Whether a name from outside names one file in its folder, on every file system, with room for the endings of
/// partial files and locks.
pub(super) fn is_file_name(name: &str) -> bool {
    let reserved = |c: char| c.is_control() || r#"/\:*?"<>|"#.contains(c);
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && !name.ends_with(['.', ' '])
        && !name.contains(reserved)
}

/// What a process that waits for a lock is told.
pub(super) enum LockEvent {
    /// Another process holds the lock.
    Waiting,
    /// The other process has written nothing for as long as it may.
    TakenOver,
}

/// The folder of one model.
pub(super) struct ModelFolder {
    root: PathBuf,
    locks: PathBuf,
    symlinks: bool,
}

impl ModelFolder {
    pub fn new(cache: &Path, model: &str, symlinks: bool) -> Self {
        let name = format!("models--{}", model.replace('/', "--"));
        Self { root: cache.join(&name), locks: cache.join(".locks").join(name), symlinks }
    }

    pub fn path(&self) -> &Path {
        &self.root
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.blobs().join(etag)
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn revision(&self, revision: &str) -> PathBuf {
        self.root.join("refs").join(revision)
    }

    /// The commit that a branch or tag pointed at when it was last downloaded.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        Some(fs::read_to_string(self.revision(revision)).ok()?.trim().to_owned())
    }

    /// Points a branch or tag at a commit. Writes only if that is new: a cache may be read-only.
    pub fn set_commit_of(&self, revision: &str, commit: &str) -> io::Result<()> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.revision(revision);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&path, commit)
    }

    /// Where the bytes of a blob are collected by the holder of its lock. A later run goes on where it ends.
    pub fn partial(&self, etag: &str) -> PathBuf {
        self.blobs().join(format!("{etag}.incomplete"))
    }

    /// As [`Self::partial`], for a process without the lock: a name that no other process uses.
    pub fn private_partial(&self, etag: &str) -> io::Result<PathBuf> {
        let unique = getrandom::u32()?;
        Ok(self.blobs().join(format!("{etag}.{unique:08x}.incomplete")))
    }

    /// Takes the lock on a blob, which all Hugging Face tools respect, and waits while another process that makes
    /// progress has it. `None` if there is no lock to be had: its holder has written nothing for `patience`, or the file
    /// system has no locks.
    pub fn lock(&self, etag: &str, patience: Duration, mut tell: impl FnMut(LockEvent)) -> io::Result<Option<File>> {
        fs::create_dir_all(self.blobs())?;
        fs::create_dir_all(&self.locks)?;
        let path = self.locks.join(format!("{etag}.lock"));
        let mut watch: Option<Watch> = None;
        loop {
            // Opened again each time, since some tools delete the file when they are done.
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) => (),
            }
            let (state, now) = (self.partial_state(etag), Instant::now());
            let watch = watch.get_or_insert_with(|| {
                tell(LockEvent::Waiting);
                Watch { state, since: now }
            });
            if watch.is_stalled(state, now, patience) {
                tell(LockEvent::TakenOver);
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Bytes in all partial files of a blob, whatever tool writes them, and when the last ones came.
    fn partial_state(&self, etag: &str) -> (u64, Option<SystemTime>) {
        let entries = fs::read_dir(self.blobs()).into_iter().flatten().flatten();
        let partial = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(etag));
        partial
            .filter_map(|entry| entry.metadata().ok())
            .fold((0, None), |(bytes, last), file| (bytes + file.len(), last.max(file.modified().ok())))
    }

    /// Puts a blob into a snapshot: as a link, or as a file of its own where links cannot be made. `new` says that no
    /// other snapshot can have the blob yet, so that it may be moved.
    pub fn place(&self, etag: &str, file: &Path, new: bool) -> io::Result<()> {
        file.parent().map_or(Ok(()), fs::create_dir_all)?;
        if file.is_symlink() && !file.exists() {
            // A link to a blob that somebody deleted.
            fs::remove_file(file)?;
        }
        if self.symlinks && symlink(&Path::new("../../blobs").join(etag), file).is_ok() || file.exists() {
            return Ok(());
        }
        let blob = self.blob(etag);
        if new {
            return fs::rename(blob, file);
        }
        let copy = self.private_partial(etag)?;
        let copied = fs::copy(blob, &copy).and_then(|_| fs::rename(&copy, file));
        copied.inspect_err(|_| fs::remove_file(&copy).unwrap_or(()))
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

/// Tells whether the holder of a lock still makes progress.
struct Watch {
    /// As [`ModelFolder::partial_state`] says.
    state: (u64, Option<SystemTime>),
    since: Instant,
}

impl Watch {
    fn is_stalled(&mut self, state: (u64, Option<SystemTime>), now: Instant, patience: Duration) -> bool {
        if state != self.state {
            *self = Self { state, since: now };
        }
        now.duration_since(self.since) >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_stay_in_their_folder() {
        for name in ["model.safetensors", "a b+c=", "0x8D_~", &"x".repeat(200)] {
            assert!(is_file_name(name), "{name}");
        }
        for name in ["", ".", "..", ".x", "../x", "a/b", "a\\b", "c:x", "a\0", "a\nb", "x.", &"x".repeat(201)] {
            assert!(!is_file_name(name), "{name:?}");
        }
    }

    #[test]
    fn a_holder_is_waited_for_as_long_as_it_writes() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut watch = Watch { state: (0, None), since: start };
        for seconds in 1..100 {
            assert!(
                !watch.is_stalled((u64::from(seconds) / 4, None), start + second * seconds, 5 * second),
                "{seconds}"
            );
        }
        // A file written in place keeps its length.
        let touched = (24, Some(SystemTime::UNIX_EPOCH));
        assert!(!watch.is_stalled(touched, start + second * 100, 5 * second));
        assert!(!watch.is_stalled(touched, start + second * 104, 5 * second));
        assert!(watch.is_stalled(touched, start + second * 105, 5 * second));
    }
}
