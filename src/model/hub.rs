//! Models of the Hugging Face hub, by way of the cache that all Hugging Face tools share.
//!
//! Layout, locks and environment variables are those of `huggingface_hub`: what Python has downloaded is used, and the
//! other way round. A file arrives as `blobs/<etag>.incomplete`, from whose end a later attempt goes on;
//! `refs/<revision>` is written when all files are there. Only what the engine reads is downloaded.

mod cache;
mod client;
mod transfer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};

use super::shards::{INDEX, SINGLE, named_files};
use super::source::{HubId, Progress};

use cache::ModelFolder;
use client::{Client, Failure};
use transfer::Transfer;

/// A hub and the local cache of it.
#[derive(Clone, Debug)]
pub struct Hub {
    pub endpoint: String,
    /// The folder that holds `models--…`.
    pub cache: PathBuf,
    /// Sent to the endpoint's host alone, wherever it redirects to.
    pub token: Option<String>,
    /// Never touch the network.
    pub offline: bool,
    /// Snapshots link to blobs. Without, or where links cannot be made, a snapshot holds the files themselves.
    pub symlinks: bool,
    /// How long a server may send nothing before the connection is given up.
    pub timeout: Duration,
    /// How long another process that downloads a file may write nothing before the file is downloaded beside it.
    pub lock_patience: Duration,
}

impl Hub {
    /// As the environment says, by the rules of `huggingface_hub`: `HF_ENDPOINT`; the cache from `HF_HUB_CACHE`, or
    /// `hub` in `HF_HOME` (by default `~/.cache/huggingface`); the token from `HF_TOKEN`, or the file `token` in
    /// `HF_HOME` (or that of `HF_TOKEN_PATH`); offline with `HF_HUB_OFFLINE=1`; no links with
    /// `HF_HUB_DISABLE_SYMLINKS=1`; the timeout in seconds from `HF_HUB_DOWNLOAD_TIMEOUT`, by default 10.
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
        let seconds = get("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.trim().parse().ok()).filter(|&s| s > 0);
        Ok(Self {
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            cache: get("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            symlinks: !on("HF_HUB_DISABLE_SYMLINKS"),
            timeout: Duration::from_secs(seconds.unwrap_or(10)),
            lock_patience: Duration::from_secs(60),
        })
    }

    /// The folder with the files of a model, all of them present.
    ///
    /// The hub is asked which commit the revision is. If that commit cannot be had, a complete copy of an earlier one in
    /// the cache serves, with a notice.
    ///
    /// # Errors
    /// There is no such model, it may not be read, it has no safetensors weights, or a download fails.
    pub fn snapshot(&self, id: &HubId, progress: &mut dyn Progress) -> Result<PathBuf> {
        let folder = ModelFolder::new(&self.cache, &id.name, self.symlinks);
        let cached = cached(&folder, id);
        if self.offline {
            return cached.ok_or_else(|| {
                let cache = self.cache.display();
                model_error(id, format!("not complete in the cache {cache}, and downloads are off (offline)"))
            });
        }
        match (self.download(id, &folder, progress), cached) {
            (Err(error), Some(copy)) => {
                progress.notice(&format!("{error}; using the copy in {}", copy.display()));
                Ok(copy)
            }
            (result, _) => result,
        }
    }

    fn download(&self, id: &HubId, folder: &ModelFolder, progress: &mut dyn Progress) -> Result<PathBuf> {
        let client = Client::new(self).map_err(|failure| download_error(&id.name, one_line(&failure)))?;
        let listed = client.list(&id.name, &id.revision);
        let (commit, names) = listed.map_err(|failure| match failure {
            Failure::Status { ref server, status, .. } if status == 404 => {
                model_error(id, format!("no such folder, and {server} has no such model or revision"))
            }
            failure => self.explain(&client, id, &id.name, &failure),
        })?;
        Transfer { hub: self, client: &client, id, commit: &commit, folder, progress }.run(&names)
    }

    /// What a failed request for `what` means for the user.
    fn explain(&self, client: &Client, id: &HubId, what: &str, failure: &Failure) -> Error {
        match failure {
            Failure::Status { server, status, message }
                if client.is_hub(server) && [401, 403].contains(&status.as_u16()) =>
            {
                // Without a message the hub does not tell a closed model from one that is missing.
                let missing = if message.is_empty() { "it does not exist, or " } else { "" };
                let token = match self.token {
                    None => "needs a token (HF_TOKEN)",
                    Some(_) => "the token (HF_TOKEN) may not read it",
                };
                model_error(id, format!("{}; {missing}{token}", one_line(failure)))
            }
            _ => download_error(what, one_line(failure)),
        }
    }
}

/// The cached snapshot of a revision, if nothing of it is missing.
fn cached(model: &ModelFolder, id: &HubId) -> Option<PathBuf> {
    let folder = model.snapshot(&model.commit_of(&id.revision).unwrap_or_else(|| id.revision.clone()));
    let weights = folder.join(SINGLE).exists()
        || named_files(&folder.join(INDEX)).is_ok_and(|files| files.iter().all(|file| folder.join(file).exists()))
        || !folder.join(INDEX).exists() && has_safetensors(&folder);
    (weights && folder.join("config.json").exists()).then_some(folder)
}

fn has_safetensors(folder: &Path) -> bool {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.map(|file| file.path()).any(|path| path.extension().is_some_and(|e| e == "safetensors") && path.exists())
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
