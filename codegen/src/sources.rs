//! Finds the source files of a translation unit, and hashes them to a key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Error;

/// Included files by path from the root. Each file is read once.
#[derive(Debug)]
pub struct Sources {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

#[derive(Debug)]
struct File {
    digest: [u8; 32],
    includes: Vec<PathBuf>,
}

impl Sources {
    /// Sources whose includes are relative to `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), files: BTreeMap::new() }
    }

    /// Hashes everything that a compilation's result depends on: `unit`, each file that it includes, directly or not,
    /// and `settings` (compiler, version, flags).
    ///
    /// Includes under conditions that do not hold count as well: the key may change too often, never too seldom.
    ///
    /// # Errors
    /// An included file does not exist or cannot be read.
    pub fn key(&mut self, unit: &str, settings: &[&str]) -> Result<String, Error> {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for setting in settings {
            part(setting.as_bytes());
        }
        part(unit.as_bytes());
        for file in self.included(unit)? {
            part(file.as_os_str().as_encoded_bytes());
            part(&self.files[&file].digest);
        }
        Ok(hex(&hash.finalize()))
    }

    /// The files that `unit` includes, directly or not.
    fn included(&mut self, unit: &str) -> Result<BTreeSet<PathBuf>, Error> {
        let mut found = BTreeSet::new();
        let mut next: Vec<_> = mentioned(unit).into_iter().map(PathBuf::from).collect();
        while let Some(file) = next.pop() {
            if found.contains(&file) {
                continue;
            }
            if !self.files.contains_key(&file) {
                let read = self.read(&file)?;
                self.files.insert(file.clone(), read);
            }
            next.extend_from_slice(&self.files[&file].includes);
            found.insert(file);
        }
        Ok(found)
    }

    fn read(&self, file: &Path) -> Result<File, Error> {
        let path = self.root.join(file);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        // As compilers do: relative to the including file, else to the root.
        let resolve = |name: &str| {
            let beside = file.with_file_name(name);
            if self.root.join(&beside).is_file() { beside } else { name.into() }
        };
        let includes = mentioned(&text).into_iter().map(resolve).collect();
        Ok(File { digest: Sha256::digest(&text).into(), includes })
    }
}

/// A hash of bytes, to check that they are intact.
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names in a text's `#include "…"` lines. System headers, in angle brackets, are left out.
fn mentioned(text: &str) -> Vec<&str> {
    fn quoted(line: &str) -> Option<&str> {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
        Some(rest.trim_start().strip_prefix('"')?.split_once('"')?.0)
    }
    text.lines().filter_map(quoted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("common")).unwrap();
        std::fs::write(root.path().join("a.cu"), "#include <stdint.h>\n#include \"common/b.cuh\"\n").unwrap();
        std::fs::write(root.path().join("common/b.cuh"), "# include \"c.cuh\"\n#include \"a.cu\"\n").unwrap();
        std::fs::write(root.path().join("common/c.cuh"), "int x;\n").unwrap();
        root
    }

    const UNIT: &str = "#include \"a.cu\"\nint y;\n";

    #[test]
    fn a_key_depends_on_all_included_files() {
        let root = tree();
        let key = |unit, settings: &[&str]| Sources::new(root.path()).key(unit, settings).unwrap();
        let first = key(UNIT, &["-O2"]);
        assert_eq!(first.len(), 64);
        assert_eq!(first, key(UNIT, &["-O2"]));
        assert_ne!(first, key(UNIT, &["-O", "2"]));
        assert_ne!(first, key("#include \"a.cu\"\nint z;\n", &["-O2"]));
        std::fs::write(root.path().join("common/c.cuh"), "int X;\n").unwrap();
        assert_ne!(first, key(UNIT, &["-O2"]));
    }

    #[test]
    fn a_missing_include_is_named() {
        let root = tree();
        std::fs::remove_file(root.path().join("common/c.cuh")).unwrap();
        let error = Sources::new(root.path()).key(UNIT, &[]).unwrap_err().to_string();
        assert!(error.contains("c.cuh: "), "{error}");
    }
}
