//! A cache of cubins. The key covers everything that a cubin depends on.
//!
//! An entry is a file, `<key>-<digest of its bytes>.cubin`; a truncated or changed one does not match its name and
//! counts as missing. Entries are written elsewhere and renamed, so that several builds can share a folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::sources::digest;

const EXTENSION: &str = "cubin";

/// A folder of cubins.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    entries: BTreeMap<String, PathBuf>,
}

impl Cache {
    /// Opens the cache in `folder`, which is created if missing.
    ///
    /// # Errors
    /// The folder cannot be created or read.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut entries = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let path = entry.map_err(Error::io(folder))?.path();
            if path.extension().is_some_and(|e| e == EXTENSION)
                && let Some((key, _)) = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.split_once('-'))
            {
                entries.insert(key.to_owned(), path);
            }
        }
        Ok(Self { folder: folder.to_owned(), entries })
    }

    /// The file and bytes of an entry, if it exists and is intact.
    pub fn get(&self, key: &str) -> Option<(&Path, Vec<u8>)> {
        let path = self.entries.get(key)?;
        let bytes = std::fs::read(path).ok()?;
        (*path == self.path(key, &bytes)).then_some((path.as_path(), bytes))
    }

    /// Writes an entry, and returns its file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<PathBuf, Error> {
        let path = self.path(key, bytes);
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        std::fs::write(&partial, bytes).map_err(Error::io(&partial))?;
        std::fs::rename(&partial, &path).map_err(Error::io(&path))?;
        if let Some(old) = self.entries.get(key).filter(|old| **old != path) {
            std::fs::remove_file(old).map_err(Error::io(old))?;
        }
        Ok(path)
    }

    /// Removes the entries that are not in `kept`.
    ///
    /// # Errors
    /// An entry cannot be removed.
    pub fn keep_only<'a>(&self, kept: impl Iterator<Item = &'a Path>) -> Result<(), Error> {
        let kept: std::collections::BTreeSet<_> = kept.collect();
        let mut others = self.entries.values().filter(|path| !kept.contains(path.as_path()) && path.exists());
        others.try_for_each(|path| std::fs::remove_file(path).map_err(Error::io(path)))
    }

    fn path(&self, key: &str, bytes: &[u8]) -> PathBuf {
        self.folder.join(format!("{key}-{}.{EXTENSION}", &digest(bytes)[..16]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_intact_entries_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Cache::open(folder.path()).unwrap();
        assert!(open().get("a").is_none());
        let path = open().put("a", b"cubin").unwrap();
        assert_eq!(open().get("a").unwrap(), (path.as_path(), b"cubin".to_vec()));
        assert!(open().get("b").is_none());
        for damaged in [&b"cub"[..], b"cubiN", b""] {
            std::fs::write(&path, damaged).unwrap();
            assert!(open().get("a").is_none());
        }
        assert_eq!(open().put("a", b"other").unwrap(), open().get("a").unwrap().0);
        assert!(!path.exists());
    }

    #[test]
    fn unused_entries_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Cache::open(folder.path()).unwrap();
        open().put("a", b"1").unwrap();
        let kept = open().put("b", b"2").unwrap();
        open().keep_only([kept.as_path()].into_iter()).unwrap();
        assert!(open().get("a").is_none() && open().get("b").is_some());
    }
}
