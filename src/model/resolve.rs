//! Finds a model: a folder and a hub id are the same argument.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

use super::source::{HubId, Progress};

/// The folder of a model: `model` itself where it is a folder, else the hub's model of that id, downloaded into the
/// shared cache where it is not there yet (see [`super::hub`]). With `offline` only the cache is looked at.
///
/// # Errors
/// `model` is neither, or the hub cannot give it.
pub fn resolve(model: &str, offline: bool, progress: &mut dyn Progress) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    let fail = |reason: &str| Err(Error::Model { model: model.to_owned(), reason: reason.to_owned() });
    if path.is_file() {
        return fail("this is a file; a model is the folder around it");
    }
    match HubId::parse(model) {
        None => fail("no such folder, nor an id of the hub (organisation/name)"),
        Some(id) => download(&id, offline, progress),
    }
}

#[cfg(feature = "hub")]
fn download(id: &HubId, offline: bool, progress: &mut dyn Progress) -> Result<PathBuf> {
    let mut hub = super::hub::Hub::from_env()?;
    hub.offline |= offline;
    hub.snapshot(id, progress)
}

#[cfg(not(feature = "hub"))]
fn download(id: &HubId, _offline: bool, _progress: &mut dyn Progress) -> Result<PathBuf> {
    let reason = "no such folder, and this build cannot download (feature `hub`)";
    Err(Error::Model { model: id.name.clone(), reason: reason.to_owned() })
}
