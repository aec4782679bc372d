//! A copy of the small repository in `tests/tree`, for a test to change.

use std::path::{Path, PathBuf};
use std::process::Command;

use burrstone_codegen::Tree;

pub struct Copy {
    root: tempfile::TempDir,
}

impl Copy {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tree"), root.path());
        Self { root }
    }

    pub fn tree(&self) -> Tree {
        Tree::at(self.root.path())
    }

    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside)
    }

    pub fn replace(&self, inside: &str, old: &str, new: &str) {
        let path = self.path(inside);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{inside} lacks {old:?}");
        std::fs::write(path, text.replace(old, new)).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

/// The target that this machine's compiler is for, as cargo tells it to build scripts.
pub fn target() -> String {
    let output = Command::new("rustc").arg("-vV").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}
