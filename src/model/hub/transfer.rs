//! Downloads the files of one commit into the cache: attempts, resumption, verification.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest::{Context, SHA256};

use crate::error::{Error, Result};
use crate::model::quantization::QUANTIZATION_FILES;
use crate::model::shards::{INDEX, SINGLE, named_files};
use crate::model::source::{HubId, Progress};

use super::cache::{LockEvent, ModelFolder, is_file_name};
use super::client::{Client, Failure, RemoteFile};
use super::{Hub, download_error, model_error};

/// Attempts in a row that bring no new byte before giving up.
const ATTEMPTS: u32 = 3;

/// The download of one commit.
pub(super) struct Transfer<'a> {
    pub hub: &'a Hub,
    pub client: &'a Client,
    pub id: &'a HubId,
    pub commit: &'a str,
    pub folder: &'a ModelFolder,
    pub progress: &'a mut dyn Progress,
}

impl Transfer<'_> {
    /// Downloads those of the commit's files that the engine reads and that are not there yet; their folder.
    pub fn run(&mut self, names: &[String]) -> Result<PathBuf> {
        let snapshot = self.folder.snapshot(self.commit);
        let has = |name: &str| names.iter().any(|other| other == name);
        if !has("config.json") {
            return Err(model_error(self.id, "the hub's model has no config.json".to_owned()));
        }
        let safetensors = || names.iter().filter(|name| name.ends_with(".safetensors") && is_file_name(name));
        if safetensors().next().is_none() {
            let reason = "the hub's model has no safetensors weights, and others are not read".to_owned();
            return Err(model_error(self.id, reason));
        }
        for name in names.iter().filter(|name| is_small(name)) {
            self.fetch(&snapshot, name)?;
        }
        if has(SINGLE) {
            self.fetch(&snapshot, SINGLE)?;
        } else if has(INDEX) {
            self.fetch(&snapshot, INDEX)?;
            for name in named_files(&snapshot.join(INDEX))? {
                self.fetch(&snapshot, &name)?;
            }
        } else {
            for name in safetensors() {
                self.fetch(&snapshot, name)?;
            }
        }
        if let Err(e) = self.folder.set_commit_of(&self.id.revision, self.commit) {
            let HubId { name, revision } = self.id;
            self.progress.notice(&format!("{name}: offline, {revision} will not be found in the cache: {e}"));
        }
        Ok(snapshot)
    }

    /// Makes sure that a file is in the snapshot.
    fn fetch(&mut self, snapshot: &Path, name: &str) -> Result<()> {
        let path = snapshot.join(name);
        if !is_file_name(name) {
            return Err(download_error(&self.id.name, format!("expected a plain file name, found {name:?}")));
        }
        if path.exists() {
            return Ok(());
        }
        let mut attempts = Attempts::default();
        let remote = loop {
            match self.client.describe(&self.id.name, self.commit, name) {
                Ok(remote) => break remote,
                Err(failure) => attempts.failed(failure, false).map_err(|failure| self.explain(name, failure))?,
            }
        };
        self.fetch_blob(name, &path, &remote).map_err(|failure| self.explain(name, failure))
    }

    fn fetch_blob(&mut self, name: &str, path: &Path, remote: &RemoteFile) -> Result<(), Failure> {
        let RemoteFile { etag, size, .. } = remote;
        let (patience, progress) = (self.hub.lock_patience, &mut *self.progress);
        // Held until the blob is in the snapshot.
        let lock = self.folder.lock(etag, patience, |event| {
            progress.notice(&match event {
                LockEvent::Waiting => format!("{name}: waiting for another process that downloads it"),
                LockEvent::TakenOver => {
                    format!("{name}: the other process wrote nothing for {patience:?}; downloading it a second time")
                }
            });
        })?;
        if path.exists() {
            return Ok(());
        }
        let blob = self.folder.blob(etag);
        let known = fs::metadata(&blob).is_ok_and(|blob| blob.len() == *size);
        if !known {
            let partial = match lock {
                Some(_) => self.folder.partial(etag),
                None => self.folder.private_partial(etag)?,
            };
            let done = self.download(name, remote, &partial);
            if lock.is_none() && done.is_err() {
                // Nobody else will go on with it. A failure to remove it matters less than the one at hand.
                fs::remove_file(&partial).unwrap_or(());
            }
            done?;
            fs::rename(&partial, &blob)?;
        }
        Ok(self.folder.place(etag, path, !known)?)
    }

    /// Brings a partial file to its full length and verifies it.
    fn download(&mut self, name: &str, remote: &RemoteFile, partial: &Path) -> Result<(), Failure> {
        self.progress.start(name, remote.size);
        let (mut reported, mut attempts) = (0, Attempts::default());
        loop {
            let before = reported;
            match self.attempt(name, remote, partial, &mut reported) {
                Ok(()) => break,
                Err(failure) => attempts.failed(failure, reported > before)?,
            }
        }
        self.progress.finish();
        Ok(())
    }

    /// One request, for what a partial file still lacks. `reported` counts the bytes that progress was told of.
    fn attempt(&mut self, name: &str, remote: &RemoteFile, partial: &Path, reported: &mut u64) -> Result<(), Failure> {
        let size = remote.size;
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(partial)?;
        let mut length = file.metadata()?.len();
        if length > size {
            // Nobody knows which of its bytes are right.
            length = restart(&mut file)?;
        }
        let mut hash = remote.sha256.as_ref().map(|_| Context::new(&SHA256));
        if let Some(hash) = &mut hash {
            hash_bytes(&mut file, hash)?;
        }
        let mut tell = |length: u64| {
            if length > *reported {
                self.progress.advance(length - *reported);
                *reported = length;
            }
        };
        tell(length);
        if length < size {
            let mut part = self.client.read_from(&self.id.name, self.commit, name, length)?;
            if part.start < length {
                length = restart(&mut file)?;
                hash = hash.map(|_| Context::new(&SHA256));
            }
            file.seek(SeekFrom::Start(length))?;
            let mut buffer = vec![0; 128 << 10];
            loop {
                let read = part.reader.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                length += read as u64;
                if length > size {
                    restart(&mut file)?;
                    return Err(Failure::Body(format!("expected {size} bytes, found more")));
                }
                file.write_all(&buffer[..read])?;
                if let Some(hash) = &mut hash {
                    hash.update(&buffer[..read]);
                }
                tell(length);
            }
            if length < size {
                return Err(Failure::Body(format!("expected {size} bytes, found {length}")));
            }
        }
        if let (Some(hash), Some(expected)) = (hash, &remote.sha256) {
            let found: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            if found != *expected {
                restart(&mut file)?;
                return Err(Failure::Body(format!("sha256: expected {expected}, found {found}")));
            }
        }
        Ok(())
    }

    /// What a failure means for the user.
    fn explain(&self, name: &str, failure: Failure) -> Error {
        let file = format!("{}/{name}", self.id.name);
        match failure {
            Failure::Disk(e) => {
                let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
                let hint = if full.contains(&e.kind()) { "; what is there is kept, run again to go on" } else { "" };
                download_error(&file, format!("{e} ({}){hint}", self.folder.path().display()))
            }
            failure => self.hub.explain(self.client, self.id, &file, &failure),
        }
    }
}

/// Counts attempts that bring nothing, and pauses before the next one.
#[derive(Default)]
struct Attempts {
    in_vain: u32,
}

impl Attempts {
    /// # Errors
    /// `failure`, if no further attempt should be made.
    fn failed(&mut self, failure: Failure, progress: bool) -> Result<(), Failure> {
        self.in_vain = if progress { 1 } else { self.in_vain + 1 };
        if !failure.is_transient() || self.in_vain >= ATTEMPTS {
            return Err(failure);
        }
        std::thread::sleep(Duration::from_millis(300) * self.in_vain);
        Ok(())
    }
}

/// Empties a partial file; its new length.
fn restart(file: &mut File) -> io::Result<u64> {
    file.set_len(0)?;
    Ok(0)
}

/// Hashes what is in a file.
fn hash_bytes(file: &mut File, hash: &mut Context) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Small files that the engine reads, or that belong to those it reads.
fn is_small(name: &str) -> bool {
    let json = name.ends_with(".json");
    is_file_name(name)
        && (["config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"].contains(&name)
            || QUANTIZATION_FILES.contains(&name)
            || json && (name.starts_with("tokenizer") || name.starts_with("chat_template"))
            || name == "chat_template.jinja")
}
