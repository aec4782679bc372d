//! Finds the files of a folder that hold the weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::device::Bytes;
use crate::error::{Error, Result};

use super::fields::{brief, parse_object};
use super::lfs_pointer;
use super::safetensors_file::{Entry, read_header};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Endings of weights in other formats.
const OTHERS: [&str; 6] = ["bin", "gguf", "pt", "pth", "ckpt", "h5"];

/// A mapped safetensors file and what its header says.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: PathBuf,
    pub bytes: Bytes,
    pub entries: Vec<Entry>,
}

impl Shard {
    pub fn new(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let entries = read_header(&path, &bytes)?;
        Ok(Self { path, bytes, entries })
    }

    fn map(path: PathBuf) -> Result<Self> {
        // A pipe or a device would block or lie about its length.
        if path.exists() && !path.is_file() {
            return Err(Error::checkpoint(&path, "(whole file)", "a file", "something else"));
        }
        let bytes = Bytes::map(&path)?;
        Self::new(path, bytes)
    }
}

/// Maps the weights of a folder: `model.safetensors`, or the files in `model.safetensors.index.json`, or the only
/// safetensors file.
pub(super) fn map(folder: &Path) -> Result<Vec<Shard>> {
    let single = folder.join(SINGLE);
    if single.exists() {
        return Ok(vec![Shard::map(single)?]);
    }
    let index = folder.join(INDEX);
    if index.exists() {
        return indexed(folder, &index);
    }
    Ok(vec![Shard::map(lone(folder)?)?])
}

/// The shards of an index, each of which must contain the tensors that the index assigns to it.
fn indexed(folder: &Path, index: &Path) -> Result<Vec<Shard>> {
    let object = read(index)?;
    let mut shards = Vec::new();
    for (name, tensors) in placement(index, &object)? {
        let path = folder.join(name);
        if !path.exists() {
            let expected = format!("the shard {name} beside the index");
            return Err(Error::checkpoint(index, "weight_map", expected, "no such file"));
        }
        let shard = Shard::map(path)?;
        let held: BTreeSet<&str> = shard.entries.iter().map(|entry| entry.name.as_str()).collect();
        if let Some(missing) = tensors.into_iter().find(|tensor| !held.contains(tensor)) {
            let expected = format!("a tensor, as {INDEX} places it here");
            return Err(Error::checkpoint(&shard.path, missing, expected, "no such tensor"));
        }
        shards.push(shard);
    }
    Ok(shards)
}

/// The files that an index names.
#[cfg(feature = "hub")]
pub(super) fn named_files(index: &Path) -> Result<Vec<String>> {
    Ok(placement(index, &read(index)?)?.into_keys().map(str::to_owned).collect())
}

fn read(index: &Path) -> Result<Map<String, Value>> {
    let bytes = std::fs::read(index).map_err(|e| Error::io(index, e))?;
    lfs_pointer::refuse(index, &bytes)?;
    parse_object(index, &bytes)
}

/// `weight_map` inverted: file → tensors.
fn placement<'a>(index: &Path, object: &'a Map<String, Value>) -> Result<BTreeMap<&'a str, Vec<&'a str>>> {
    let map = object.get("weight_map").unwrap_or(&Value::Null);
    let Some(map) = map.as_object().filter(|map| !map.is_empty()) else {
        return Err(Error::checkpoint(index, "weight_map", "an object of tensors and their files", brief(map)));
    };
    let mut files = BTreeMap::<_, Vec<_>>::new();
    for (tensor, file) in map {
        // Only plain file names: an index must not reach outside its folder.
        let name = file.as_str().filter(|name| Path::new(name).file_name().is_some_and(|plain| plain == *name));
        let Some(name) = name else {
            let field = format!("weight_map.{tensor}");
            return Err(Error::checkpoint(index, field, "the name of a file beside the index", brief(file)));
        };
        files.entry(name).or_default().push(tensor.as_str());
    }
    Ok(files)
}

fn lone(folder: &Path) -> Result<PathBuf> {
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if ending == "safetensors" {
            found.push(path);
        } else if OTHERS.contains(&ending) {
            others.push(path);
        }
    }
    found.sort();
    others.sort();
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match (&found[..], &others[..]) {
        ([alone], _) => Ok(alone.clone()),
        ([first, ..], _) => {
            let expected = format!("{SINGLE}, or {INDEX} beside several files");
            Err(Error::checkpoint(folder, "weights", expected, format!("{} files, {} first", found.len(), name(first))))
        }
        ([], [first, ..]) => {
            let expected = "safetensors (other formats must be converted first)";
            Err(Error::checkpoint(folder, "weights", expected, name(first)))
        }
        ([], []) => Err(Error::checkpoint(folder, "weights", format!("{SINGLE} or {INDEX}"), "neither")),
    }
}
