//! Models of the Hugging Face hub, by way of the cache that all Hugging Face tools share.
//!
//! The layout is theirs, `models--org--name/{blobs,refs,snapshots}`: what Python has downloaded is used, and the other
//! way round. A file arrives as `blobs/<etag>.part`, from whose end a later attempt goes on; `refs/<revision>` is
//! written when all files are there. Only what the engine reads is downloaded.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::error::{Error, Result};

use super::shards::{INDEX, SINGLE, named_files};
use super::source::{HubId, Progress};

/// Attempts at one file that bring no new byte before giving up.
const ATTEMPTS: u32 = 3;

/// A hub and the local cache of it.
#[derive(Clone, Debug)]
pub struct Hub {
    pub endpoint: String,
    /// The folder that holds `models--…`.
    pub cache: PathBuf,
    pub token: Option<String>,
    /// Never touch the network.
    pub offline: bool,
}

impl Hub {
    /// As the environment says, by the rules of `huggingface_hub`: `HF_ENDPOINT`; the cache from `HF_HUB_CACHE`, or
    /// `hub` in `HF_HOME` (by default `~/.cache/huggingface`); the token from `HF_TOKEN`, or the file `token` in
    /// `HF_HOME`; offline with `HF_HUB_OFFLINE=1`.
    ///
    /// # Errors
    /// There is neither `HF_HOME` nor a home folder.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// [`Hub::from_env`] with another environment.
    ///
    /// # Errors
    /// As [`Hub::from_env`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |name| lookup(name).filter(|value| !value.trim().is_empty());
        let on = |name| {
            let value = get(name).unwrap_or_default().to_ascii_lowercase();
            ["1", "true", "yes", "on"].contains(&value.as_str())
        };
        let under = |name, rest: &str| get(name).map(|folder| Path::new(&folder).join(rest));
        let home = get("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| under("XDG_CACHE_HOME", "huggingface"))
            .or_else(|| under("HOME", ".cache/huggingface"))
            .or_else(|| under("USERPROFILE", ".cache/huggingface"))
            .ok_or_else(|| Error::Download {
                what: "a model".to_owned(),
                reason: "no place to keep it: neither HF_HOME nor HOME is set".to_owned(),
            })?;
        let token_file = get("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = get("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
        Ok(Self {
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            cache: get("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
        })
    }

    /// The folder with the files of a model, all of them present.
    ///
    /// The hub is asked which commit the revision is; if it gives no answer, a complete copy in the cache serves, with
    /// a notice.
    ///
    /// # Errors
    /// There is no such model, it may not be read, it has no safetensors weights, or a download fails.
    pub fn snapshot(&self, id: &HubId, progress: &mut dyn Progress) -> Result<PathBuf> {
        let cached = self.cached(id);
        if self.offline {
            return cached.ok_or_else(|| {
                let cache = self.cache.display();
                model_error(id, format!("not complete in the cache {cache}, and downloads are off (offline)"))
            });
        }
        match self.download(id, progress) {
            Err(Refused(error)) => match cached {
                Some(folder) => {
                    progress.notice(&format!("{error}; using the copy in {}", folder.display()));
                    Ok(folder)
                }
                None => Err(error),
            },
            Ok(folder) => folder,
        }
    }

    /// The cached snapshot of a revision, if nothing of it is missing.
    fn cached(&self, id: &HubId) -> Option<PathBuf> {
        let model = self.folder(id);
        let commit = std::fs::read_to_string(model.join("refs").join(&id.revision));
        let commit = commit.map_or_else(|_| id.revision.clone(), |commit| commit.trim().to_owned());
        let folder = model.join("snapshots").join(commit);
        let weights = folder.join(SINGLE).exists()
            || named_files(&folder.join(INDEX)).is_ok_and(|files| files.iter().all(|file| folder.join(file).exists()))
            || !folder.join(INDEX).exists() && has_safetensors(&folder);
        (weights && folder.join("config.json").exists()).then_some(folder)
    }

    fn folder(&self, id: &HubId) -> PathBuf {
        self.cache.join(Repo::model(id.name.clone()).folder_name())
    }

    /// The inner error is final; [`Refused`] is the hub's failure to say what the model consists of.
    fn download(&self, id: &HubId, progress: &mut dyn Progress) -> Result<Result<PathBuf>, Refused> {
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.trim_end_matches('/').to_owned())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_user_agent("burrstone", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|e| Refused(self.explain(id, &e)))?;
        let repo = Repo::with_revision(id.name.clone(), RepoType::Model, id.revision.clone());
        let info = api.repo(repo).info().map_err(|e| Refused(self.explain(id, &e)))?;
        let commit = info.sha;
        if commit.is_empty() || !commit.bytes().all(|b| b.is_ascii_alphanumeric()) {
            let reason = format!("{} names the commit {commit:?}", self.endpoint);
            return Err(Refused(download_error(&id.name, reason)));
        }
        let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let transfer = Transfer { hub: self, id, api: &api, commit: &commit, folder: self.folder(id) };
        Ok(transfer.run(&names, progress))
    }

    /// What a failed request means for the user.
    fn explain(&self, id: &HubId, error: &ApiError) -> Error {
        let endpoint = &self.endpoint;
        let ApiError::RequestError(request) = error else {
            return download_error(&id.name, one_line(error));
        };
        match **request {
            ureq::Error::StatusCode(status @ (401 | 403)) => {
                let hint = match self.token {
                    None => "it does not exist, or needs a token (HF_TOKEN)",
                    Some(_) => "it does not exist, or the token (HF_TOKEN) may not read it",
                };
                model_error(id, format!("{endpoint} answers {status}: {hint}"))
            }
            ureq::Error::StatusCode(404) => {
                model_error(id, format!("no such folder, and {endpoint} has no such model or revision"))
            }
            _ => download_error(&id.name, format!("{endpoint}: {}", one_line(request))),
        }
    }
}

/// The hub did not say what a model consists of.
struct Refused(Error);

/// The download of one commit.
struct Transfer<'a> {
    hub: &'a Hub,
    id: &'a HubId,
    api: &'a Api,
    commit: &'a str,
    /// `models--…` in the cache.
    folder: PathBuf,
}

impl Transfer<'_> {
    fn run(&self, names: &[String], progress: &mut dyn Progress) -> Result<PathBuf> {
        let snapshot = self.folder.join("snapshots").join(self.commit);
        let has = |name: &str| names.iter().any(|other| other == name);
        if !has("config.json") {
            return Err(model_error(self.id, "the hub's model has no config.json".to_owned()));
        }
        let safetensors = || names.iter().filter(|name| name.ends_with(".safetensors") && !name.contains('/'));
        if safetensors().next().is_none() {
            let reason = "the hub's model has no safetensors weights, and others are not read".to_owned();
            return Err(model_error(self.id, reason));
        }
        for name in names.iter().filter(|name| is_small(name)) {
            self.fetch(&snapshot, name, progress)?;
        }
        if has(SINGLE) {
            self.fetch(&snapshot, SINGLE, progress)?;
        } else if has(INDEX) {
            self.fetch(&snapshot, INDEX, progress)?;
            for name in named_files(&snapshot.join(INDEX))? {
                self.fetch(&snapshot, &name, progress)?;
            }
        } else {
            for name in safetensors() {
                self.fetch(&snapshot, name, progress)?;
            }
        }
        self.set_ref()?;
        Ok(snapshot)
    }

    /// Makes sure that a file is in the snapshot.
    fn fetch(&self, snapshot: &Path, name: &str, progress: &mut dyn Progress) -> Result<()> {
        let path = snapshot.join(name);
        if path.exists() {
            return Ok(());
        }
        if path.is_symlink() {
            // Its blob is gone.
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
        let repo = Repo::with_revision(self.id.name.clone(), RepoType::Model, self.commit.to_owned());
        let repo = self.api.repo(repo);
        let mut meter = Meter { progress, started: false, total: 0, here: 0, reported: 0 };
        let mut idle = 0;
        loop {
            let before = meter.reported;
            let error = match repo.download_with_progress(name, &mut meter) {
                Ok(_) => match self.verify(&path, meter.total) {
                    Ok(()) => {
                        meter.progress.finish();
                        return Ok(());
                    }
                    Err(error) => error,
                },
                Err(ApiError::RequestError(e)) if matches!(*e, ureq::Error::StatusCode(416)) => {
                    self.shorten(&repo, name)?;
                    download_error(&self.what(name), one_line(&e))
                }
                Err(error) if passing(&error) => self.explain(name, &error),
                Err(error) => return Err(self.explain(name, &error)),
            };
            idle = if meter.reported > before { 1 } else { idle + 1 };
            if idle >= ATTEMPTS {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(300) * idle);
        }
    }

    /// A server that ignores ranges leaves a file of the wrong length: away with it.
    fn verify(&self, path: &Path, expected: u64) -> Result<()> {
        let found = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
        if found == expected {
            return Ok(());
        }
        let blob = std::fs::canonicalize(path).map_err(|e| Error::io(path, e))?;
        for file in [path, &blob] {
            std::fs::remove_file(file).or_else(|e| if file.exists() { Err(Error::io(file, e)) } else { Ok(()) })?;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Err(download_error(&self.what(&name), format!("expected {expected} bytes, found {found}")))
    }

    /// A partial file that is complete has nothing left to ask for, which is an error to a server: let it ask for the
    /// last byte.
    fn shorten(&self, repo: &ApiRepo, name: &str) -> Result<()> {
        let metadata = self.api.metadata(&repo.url(name)).map_err(|e| self.explain(name, &e))?;
        let mut part = self.folder.join("blobs").join(metadata.etag());
        part.set_extension("part");
        let file = std::fs::OpenOptions::new().write(true).open(&part).map_err(|e| Error::io(&part, e))?;
        file.set_len((metadata.size() as u64).saturating_sub(1)).map_err(|e| Error::io(&part, e))
    }

    fn what(&self, name: &str) -> String {
        format!("{}/{name}", self.id.name)
    }

    fn explain(&self, name: &str, error: &ApiError) -> Error {
        match error {
            ApiError::RequestError(_) => match self.hub.explain(self.id, error) {
                Error::Download { reason, .. } => download_error(&self.what(name), reason),
                other => other,
            },
            ApiError::IoError(e) => {
                let folder = self.folder.display();
                download_error(&self.what(name), format!("{e} ({folder}); what is there is kept, run again to go on"))
            }
            other => download_error(&self.what(name), one_line(other)),
        }
    }

    /// Points the revision at the commit, now that all of it is there. A commit needs no ref of its own, though hf-hub
    /// writes one.
    fn set_ref(&self) -> Result<()> {
        let refs = self.folder.join("refs");
        let own = refs.join(self.commit);
        if own.exists() {
            std::fs::remove_file(&own).map_err(|e| Error::io(&own, e))?;
        }
        if self.id.revision == self.commit {
            return Ok(());
        }
        let path = refs.join(&self.id.revision);
        let parent = path.parent().unwrap_or(&refs);
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        std::fs::write(&path, self.commit).map_err(|e| Error::io(&path, e))
    }
}

/// hf-hub's idea of progress, which starts over with every attempt, as one count that only grows.
struct Meter<'a> {
    progress: &'a mut dyn Progress,
    started: bool,
    total: u64,
    /// Bytes of this attempt, those of earlier ones included.
    here: u64,
    /// Bytes that were passed on.
    reported: u64,
}

impl hf_hub::api::Progress for &mut Meter<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        (self.total, self.here) = (size as u64, 0);
        if !self.started {
            self.started = true;
            self.progress.start(filename, self.total);
        }
    }

    fn update(&mut self, size: usize) {
        self.here += size as u64;
        if self.here > self.reported {
            self.progress.advance(self.here - self.reported);
            self.reported = self.here;
        }
    }

    /// Called when an attempt ends; the file is finished once its length is checked.
    fn finish(&mut self) {}
}

/// Small files that the engine reads, or that belong to those it reads.
fn is_small(name: &str) -> bool {
    let json = name.ends_with(".json");
    !name.contains(['/', '\\'])
        && (["config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"].contains(&name)
            || json && (name.starts_with("tokenizer") || name.starts_with("chat_template"))
            || name == "chat_template.jinja")
}

fn has_safetensors(folder: &Path) -> bool {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.map(|file| file.path()).any(|path| path.extension().is_some_and(|e| e == "safetensors") && path.exists())
}

/// Whether the same request may succeed a moment later.
fn passing(error: &ApiError) -> bool {
    use std::io::ErrorKind as Kind;
    let io = |e: &std::io::Error| {
        matches!(
            e.kind(),
            Kind::UnexpectedEof
                | Kind::ConnectionReset
                | Kind::ConnectionAborted
                | Kind::ConnectionRefused
                | Kind::BrokenPipe
                | Kind::TimedOut
                | Kind::Interrupted
        )
    };
    match error {
        ApiError::IoError(e) => io(e),
        ApiError::RequestError(e) => match &**e {
            ureq::Error::StatusCode(status) => *status == 429 || *status >= 500,
            ureq::Error::Io(e) => io(e),
            ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => true,
            _ => false,
        },
        _ => false,
    }
}

fn one_line(error: &impl ToString) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn model_error(id: &HubId, reason: String) -> Error {
    Error::Model { model: id.name.clone(), reason }
}

fn download_error(what: &str, reason: String) -> Error {
    Error::Download { what: what.to_owned(), reason }
}
